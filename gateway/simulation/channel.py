"""One request's two ways over ASGI: reading the body, writing the answer, and noticing that the caller has left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CLOSE_EXTENSION = "llm_proxy.close_connection"
"""A server that offers this scope extension lets the provider cut a connection in mid-answer."""


class CallerLeft(Exception):
    """The caller closed the connection: there is nobody to answer."""


class BodyTooLarge(Exception):
    """The request body is over the configured size."""


class Channel:
    """Wraps one ASGI request; waits end early with `CallerLeft` when the caller goes, or when the server closes."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, closing: asyncio.Event) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._closing = closing
        self._left: asyncio.Task[None] | None = None
        self.started = False

    async def read_body(self, limit_bytes: int) -> bytes:
        """Return the whole request body."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise CallerLeft
            part = message.get("body", b"")
            size += len(part)
            if size > limit_bytes:
                raise BodyTooLarge
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    async def wait(self, seconds: float | None) -> None:
        """Let time pass (None: until the caller leaves or the server closes)."""
        if self._closing.is_set():
            raise CallerLeft
        if self._left is None:
            self._left = asyncio.create_task(self._watch())
        if not seconds and seconds is not None:
            await asyncio.sleep(0)
        else:
            closing = asyncio.create_task(self._closing.wait())
            try:
                await asyncio.wait((self._left, closing), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            finally:
                closing.cancel()
        if self._left.done() or self._closing.is_set():
            raise CallerLeft

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the status and headers."""
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def chunk(self, body: bytes, *, more: bool) -> None:
        """Send a part of the body."""
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def cut(self) -> None:
        """Close the connection with the answer unfinished, after what was sent is flushed."""
        close = (self._scope.get("extensions") or {}).get(CLOSE_EXTENSION)
        if close is not None:
            close()
            await self.wait(None)
        # A server without the extension closes the connection itself when an answer stays unfinished.
        raise CallerLeft

    async def aclose(self) -> None:
        """Stop watching for the caller."""
        if self._left is not None:
            self._left.cancel()
            await asyncio.wait((self._left,))
