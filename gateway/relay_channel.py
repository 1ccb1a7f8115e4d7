"""The `Channel` straight over a connection: no ASGI scope, messages or events between a caller and the data path.

`RelayProtocol` feeds it; to uvicorn's own protocol, whose place for "the request being served" it takes, it is a cycle:
hence `response_started`, `response_complete`, `more_body` and `keep_alive`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from typing import TYPE_CHECKING, Final

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.proxy.channel import CallerGone, Channel
from gateway.proxy.head import NO_HEAD, RequestHead
from gateway.upstream.response import PIECE_BYTES

if TYPE_CHECKING:
    from gateway.relay_protocol import RelayProtocol

Serve = Callable[[Channel], Awaitable[None]]

_BODILESS: Final = frozenset({204, 304})
_TO_THE_END: Final = 1 << 62
"""What is left of an answer that the end of the connection ends."""
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class RelayChannel:
    """One POST over HTTP/1.1 or 1.0 as a `Channel`; see there for what its methods promise."""

    __slots__ = (
        "_arrived", "_chunked", "_connection", "_expects_continue", "_held", "_left", "_may_chunk", "_on_gone",
        "_pending", "certificate", "disconnected", "ends_by", "head", "held_bytes", "keep_alive", "length", "method",
        "more_body", "query", "raw_path", "response_complete", "response_started", "task",
    )  # fmt: skip

    def __init__(
        self,
        connection: RelayProtocol,
        raw_path: bytes,
        query: bytes,
        head: RequestHead,
        length: int | None,
        *,
        certificate: str,
        keep_alive: bool,
        expects_continue: bool,
        may_chunk: bool,
    ) -> None:
        self.method = "POST"
        self.raw_path = raw_path
        self.query = query
        self.head = head
        self.length = length
        self.certificate = certificate
        self.keep_alive = keep_alive
        self.more_body = True
        self.held_bytes = 0
        self.response_started = self.response_complete = self.disconnected = False
        self.task: asyncio.Task[None] | None = None
        self.ends_by = inf
        self._connection = connection
        self._expects_continue = expects_continue
        self._may_chunk = may_chunk
        self._held: list[bytes] = []
        self._arrived: asyncio.Future[None] | None = None
        self._on_gone: Callable[[], None] | None = None
        self._pending = b""
        self._chunked = False
        self._left = 0

    # --- the caller's bytes

    @property
    def peer(self) -> str:
        """See `Channel.peer`."""
        client = self._connection.client
        return client[0] if client else ""

    @property
    def body_over(self) -> bool:
        """See `Channel.body_over`."""
        return not self.more_body and not self._held

    async def receive(self) -> bytes:
        """See `Channel.receive`."""
        held = self._held
        if not held:
            if not self.more_body:
                return b""
            await self._more()
        if len(held) == 1:
            body = held.pop()
        else:
            body = b"".join(held)
            held.clear()
        self.held_bytes = 0
        return body

    async def _more(self) -> None:
        connection = self._connection
        if self._expects_continue:
            self._expects_continue = False
            connection.transport.write(_CONTINUE)
        while self.more_body and not self._held:
            if self.disconnected:
                raise CallerGone
            connection.flow.resume_reading()
            self._arrived = connection.loop.create_future()
            try:
                await self._arrived
            finally:
                self._arrived = None

    def feed(self, body: bytes) -> bool:
        """Take bytes of the body; False when so many are held that no more should be read."""
        self._held.append(body)
        self.held_bytes += len(body) + PIECE_BYTES
        if self._arrived is not None:
            self._wake()
        return self.held_bytes <= HIGH_WATER_LIMIT

    def end_body(self) -> None:
        """Take in that the body is over."""
        self.more_body = False
        if self._arrived is not None:
            self._wake()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def forget(self) -> None:
        """See `Channel.forget`."""
        self.head = NO_HEAD
        self._connection.head = None

    # --- the answer

    async def answer(self, status: int, headers: bytes, body: bytes, *, closes: bool = False) -> None:
        """See `Channel.answer`: head and body leave in one write."""
        if self.disconnected:
            return
        head = self._head(status, headers, b"", closes=closes)
        self._on_gone = None
        await self._write(head + body)
        self._complete()

    async def send_head(
        self, status: int, headers: bytes, *, length: int = -1, closes: bool = False, hold: bool = False
    ) -> None:
        """See `Channel.send_head`."""
        if self.disconnected:
            return
        framing = b""
        if status in _BODILESS:
            # RFC 9110 section 8.6, RFC 9112 section 6.1: neither a length nor chunks, whatever the provider said.
            headers = b"".join(
                line for line in headers.splitlines(keepends=True) if not line.startswith(b"content-length:")
            )
        elif length >= 0:
            self._left = length
        elif self._may_chunk:
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        else:
            self._left = _TO_THE_END
        head = self._head(status, headers, framing, closes=closes)
        if hold:
            self._pending = head
        else:
            await self._write(head)

    def _head(self, status: int, headers: bytes, framing: bytes, *, closes: bool) -> bytes:
        """Begin the answer, and return its head."""
        self.response_started = True
        if self._expects_continue:
            # RFC 9110 section 10.1.1: a caller that was not told to go on may leave its body out. What comes next could
            # be the one or another request.
            self._expects_continue = False
            self.keep_alive = self.keep_alive and not self.more_body
        defaults = self._connection.defaults()
        if closes or defaults.closes:
            self.keep_alive = False
        elif not self.keep_alive:
            framing += b"connection: close\r\n"
        return b"%b%b%b%b\r\n" % (STATUS_LINE[status], defaults.lines, headers, framing)

    async def send(self, chunk: bytes) -> None:
        """See `Channel.send`."""
        if self._chunked:
            chunk = b"%b%x\r\n%b\r\n" % (self._pending, len(chunk), chunk)
        else:
            self._count(chunk)
            chunk = self._pending + chunk if self._pending else chunk
        self._pending = b""
        connection = self._connection
        if connection.flow.write_paused:
            await self._write(chunk)
        elif not self.disconnected:
            connection.transport.write(chunk)

    @property
    def is_free(self) -> bool:
        """See `Channel.is_free`."""
        connection = self._connection
        return not (connection.flow.write_paused or self._pending or connection.transport.is_closing())

    def pass_on(self, chunk: bytes) -> None:
        """See `Channel.pass_on`."""
        if self._chunked:
            chunk = b"%x\r\n%b\r\n" % (len(chunk), chunk)
        else:
            self._count(chunk)
        self._connection.transport.write(chunk)

    async def finish(self, last: bytes = b"") -> None:
        """See `Channel.finish`."""
        if self.disconnected:
            return
        if self._chunked:
            piece = b"%x\r\n%b\r\n" % (len(last), last) if last else b""
            data = b"%b%b0\r\n\r\n" % (self._pending, piece)
        else:
            self._count(last)
            if 0 < self._left < _TO_THE_END:
                raise RuntimeError("the answer is shorter than its content-length")
            data = self._pending + last if self._pending else last
        self._on_gone = None
        self._pending = b""
        if data:
            await self._write(data)
        self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        # The connection keeps this until the next request: what it was sent and nobody has read is not wanted any more.
        self.head = NO_HEAD
        if self._held:
            self._held.clear()
            self.held_bytes = 0
        if not self.keep_alive:
            self._connection.hang_up(lingering=self.more_body)
        self._connection.on_response_complete()

    def _count(self, chunk: bytes) -> None:
        if self._left == _TO_THE_END:
            return
        self._left -= len(chunk)
        if self._left < 0:
            raise RuntimeError("the answer is longer than its content-length")

    async def _write(self, data: bytes) -> None:
        connection = self._connection
        if connection.flow.write_paused and not self.disconnected:
            await connection.flow.drain()
        if not self.disconnected:
            connection.transport.write(data)

    def abort(self) -> None:
        """See `Channel.abort`."""
        if self._pending and not self.disconnected:
            self._connection.transport.write(self._pending)
            self._pending = b""
        self._connection.transport.close()

    # --- the caller's leaving

    def on_gone(self, call: Callable[[], None]) -> None:
        """See `Channel.on_gone`."""
        self._on_gone = call
        if self.disconnected:
            self.lost()

    def close(self) -> None:
        """See `Channel.close`."""
        self._on_gone = None

    def lost(self) -> None:
        """Take in that the connection is gone."""
        self.disconnected = True
        self._wake()
        if self.body_over or self.response_started:
            call, self._on_gone = self._on_gone, None
            if call is not None:
                call()
