"""The `Channel` over ASGI 3 (asgi.readthedocs.io, HTTP & WebSocket specification)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from math import inf
from typing import Any

from gateway.forwarded import thumbprint_of
from gateway.proxy.channel import CallerGone, HeaderList, length_of
from gateway.proxy.head import NO_HEAD, RequestHead

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

WATCH_AFTER_S = 0.02
"""ASGI tells of a disconnect only to who awaits `receive`, which takes a task. Most answers are over before it is worth
one; a caller that leaves earlier than this is noticed at this time."""
RECHECK_S = 0.5
"""How often it is looked whether an upload is over, so that watching may begin."""


class AsgiChannel:
    """One ASGI HTTP request as a `Channel`."""

    __slots__ = (
        "_headers",
        "_on_gone",
        "_receive",
        "_send",
        "_timer",
        "_watch",
        "aborted",
        "body_over",
        "certificate",
        "ends_by",
        "head",
        "length",
        "method",
        "peer",
        "query",
        "raw_path",
        "task",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        self.query: bytes = scope["query_string"]
        # Servers may hand over any iterable of pairs; names are lower-case by the specification.
        headers = scope["headers"]
        self._headers: HeaderList = headers if isinstance(headers, list) else list(headers)
        self.head = RequestHead(self._headers)
        self.length = length_of(next((value for name, value in self._headers if name == b"content-length"), b""))
        self.certificate: str = thumbprint_of(scope)
        client = scope.get("client")
        # Behind a trusted proxy uvicorn has put the caller's own address in its place.
        self.peer: str = client[0] if client else ""
        self.task: asyncio.Task[None] | None = None
        self.ends_by = inf
        self.aborted = False
        self._receive = receive
        self._send = send
        self.body_over = False
        self._on_gone: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None

    async def receive(self) -> bytes:
        """See `Channel.receive`."""
        while not self.body_over:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise CallerGone
            self.body_over = not message.get("more_body", False)
            body: bytes = message.get("body", b"")
            if body:
                return body
        return b""

    def forget(self) -> None:
        """See `Channel.forget`."""
        self._headers.clear()  # in place: the server holds the same list
        self.head = NO_HEAD

    async def answer(self, status: int, headers: bytes, body: bytes, *, closes: bool = False) -> None:
        """See `Channel.answer`."""
        await self.send_head(status, headers, length=len(body), closes=closes)
        await self.finish(body)

    async def send_head(
        self, status: int, headers: bytes, *, length: int = -1, closes: bool = False, hold: bool = False
    ) -> None:
        """See `Channel.send_head`; the server reads and frames it by itself."""
        del length, closes, hold
        pairs = [tuple(line.split(b": ", 1)) for line in headers.split(b"\r\n")[:-1]]
        await self._pass({"type": "http.response.start", "status": status, "headers": pairs})

    async def send(self, chunk: bytes) -> None:
        """See `Channel.send`."""
        await self._pass({"type": "http.response.body", "body": chunk, "more_body": True})

    @property
    def is_free(self) -> bool:
        """See `Channel.is_free`: whether the server would wait is not known beforehand."""
        return False

    def pass_on(self, chunk: bytes) -> None:
        """See `Channel.pass_on`: this channel is never free."""
        del chunk
        raise RuntimeError("an ASGI server may wait: send")

    async def finish(self, last: bytes = b"") -> None:
        """See `Channel.finish`."""
        self.close()
        await self._pass({"type": "http.response.body", "body": last, "more_body": False})

    async def _pass(self, message: MutableMapping[str, Any]) -> None:
        """Hand to the server, which waits while the caller is slow; raises CallerGone when that has lasted too long."""
        try:
            async with asyncio.timeout_at(self.ends_by if self.ends_by < inf else None):
                await self._send(message)
        except TimeoutError:
            raise CallerGone from None

    def abort(self) -> None:
        """See `Channel.abort`: the ASGI application then returns with the answer unfinished, and the server closes."""
        self.aborted = True

    def on_gone(self, call: Callable[[], None]) -> None:
        """See `Channel.on_gone`."""
        self._on_gone = call
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._start_watch)

    def close(self) -> None:
        """See `Channel.close`."""
        self._on_gone = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _start_watch(self) -> None:
        loop = asyncio.get_running_loop()
        if self.body_over:
            self._watch = loop.create_task(self._watch_for_disconnect())
        else:
            # An upload is being read; its reader notices. Two readers would take each other's messages.
            self._timer = loop.call_later(RECHECK_S, self._start_watch)

    async def _watch_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        call, self._on_gone = self._on_gone, None
        self._watch = None
        if call is not None:
            call()
