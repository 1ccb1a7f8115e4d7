"""One HTTP/1.1 connection to a provider: an asyncio protocol on llhttp (RFC 9112), one exchange at a time.

An exchange goes through these phases; each has one deadline, and `total` bounds them all:

    write       bytes that the kernel has not taken; progress renews it
    upload      the caller's body is being produced (only `total` runs: a slow caller is not the provider's fault)
    first_byte  all sent, no head yet
    idle        head seen, the body is coming
    blocked     our reader is slow, reading is paused (only `total` runs)

The answer is refused when a proxy in front could read it differently than we do: llhttp in its strict mode refuses
obs-fold, bare CR or LF, repeated or signed Content-Length and Content-Length beside Transfer-Encoding; this class
refuses every transfer coding but `chunked`, 101, and bytes that nobody asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

import httptools

from gateway.upstream.body_source import BodySource
from gateway.upstream.errors import UpstreamBroken, UpstreamTimeout
from gateway.upstream.head_shape import read_head
from gateway.upstream.message import Deadlines
from gateway.upstream.response import HIGH_WATER_BYTES, UpstreamResponse

MAX_HEAD_BYTES = 64 * 1024
MAX_INTERIM = 16
STALE_WINDOW_S = 1.0
"""A reused connection that closes this soon lost the keep-alive race; later, the provider may have done the work."""
_BODILESS = frozenset({204, 304})
JOIN_BYTES = 64 * 1024
"""Up to this size a body is copied behind its head, so that both leave in one write."""


class Http1Connection(asyncio.Protocol):
    """A connection that `Pool` owns; `on_free(connection, reusable)` and `on_lost(connection)` report its life."""

    __slots__ = (
        "_complete",
        "_deadlines",
        "_drained",
        "_head_bytes",
        "_headers",
        "_headless",
        "_interim",
        "_loop",
        "_lost",
        "_on_free",
        "_on_lost",
        "_parser",
        "_phase",
        "_pump",
        "_reading_paused",
        "_response",
        "_reusable",
        "_since",
        "_timer",
        "_timer_at",
        "_total_at",
        "_transport",
        "_unsent",
        "_until_close",
        "_within_s",
        "_writing_paused",
        "exchanges",
        "idle_since",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_free: Callable[[Http1Connection], None],
        on_lost: Callable[[Http1Connection], None],
    ) -> None:
        self._loop = loop
        self._on_free = on_free
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._response: UpstreamResponse | None = None
        self._pump: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = self._since = self._within_s = self._total_at = 0.0
        self._phase = ""
        self._deadlines = Deadlines()
        self._headers: list[tuple[bytes, bytes]] | None = []
        self._head_bytes = self._interim = self._unsent = 0
        self._until_close = self._complete = self._reusable = self._headless = False
        self._lost = self._reading_paused = self._writing_paused = False
        self.exchanges = 0
        self.idle_since = 0.0

    # --- the exchange, as the pool sees it

    @property
    def usable(self) -> bool:
        """Tell whether the next exchange may start here."""
        return (
            self._response is None
            and not self._lost
            and self._transport is not None
            and not self._transport.is_closing()
        )

    def begin(
        self, head: bytes, body: bytes | BodySource, deadlines: Deadlines, *, headless: bool = False
    ) -> UpstreamResponse:
        """Send one request; `headless` says that the answer has no body (HEAD).

        Whoever called waits until the answer has a `status`, or has `failed`: UpstreamTimeout, UpstreamBroken, or what
        the body's source raised; who does not wait any more calls `abort`.
        """
        transport = self._transport
        assert transport is not None
        assert self._response is None
        response = self._response = UpstreamResponse(self, self._loop)
        self.exchanges += 1
        self._headers, self._head_bytes = [], 0
        self._complete = False
        self._headless = headless
        self._deadlines = deadlines
        self._total_at = self._loop.time() + deadlines.total_s
        if isinstance(body, bytes):
            if len(body) <= JOIN_BYTES:
                transport.write(head + body)
            else:
                transport.write(head)
                transport.write(body)
            self._enter_sent()
        else:
            transport.write(head)
            self._enter("upload", inf)
            self._pump = self._loop.create_task(self._send_body(transport, body))
        return response

    def abort(self) -> None:
        """End the connection at once; a waiting reader gets UpstreamBroken."""
        self._fail(UpstreamBroken("the exchange was given up"))

    def resume(self) -> None:
        """Read from the socket again: the reader has taken what was held."""
        if self._reading_paused and self._transport is not None and not self._lost:
            self._reading_paused = False
            self._transport.resume_reading()
            self._enter("idle", self._deadlines.idle_s)

    def hurry(self, timeout_s: float) -> None:
        """Shorten the whole exchange to `timeout_s` from now: what comes is thrown away, only the connection counts."""
        self._total_at = min(self._total_at, self._loop.time() + timeout_s)
        self.resume()
        self._enter("idle", self._deadlines.idle_s)

    # --- sending

    async def _send_body(self, transport: asyncio.Transport, source: BodySource) -> None:
        length, sent = source.length, 0
        try:
            async for chunk in source:
                if not chunk:
                    continue
                sent += len(chunk)
                if length is not None and sent > length:
                    raise ValueError(f"the body is longer than the {length} bytes it announced")
                transport.write(chunk if length is not None else b"%x\r\n%b\r\n" % (len(chunk), chunk))
                if self._writing_paused:
                    if self._is_unanswered():
                        self._enter_write()
                    self._drained = self._loop.create_future()
                    await self._drained
                    if self._is_unanswered():
                        self._enter("upload", inf)
            if length is None:
                transport.write(b"0\r\n\r\n")
            elif sent != length:
                raise ValueError(f"the body ended after {sent} of {length} bytes")
            self._pump = None
            if self._is_unanswered():
                self._enter_sent()
        except Exception as exc:  # noqa: BLE001 -- the source's own error belongs to whoever awaits the answer
            self._pump = None
            self._fail(exc)

    def pause_writing(self) -> None:
        """The transport holds more than its high-water mark."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """The transport has drained."""
        self._writing_paused = False
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None
        elif self._phase == "write" and self._pump is None and self._is_unanswered():
            self._enter_sent()

    # --- deadlines: one timer a connection, moved only when it would ring too late; what rings too early looks again

    def _is_unanswered(self) -> bool:
        return self._response is not None and not self._response.status

    def _enter_sent(self) -> None:
        if self._writing_paused:
            self._enter_write()
        else:
            self._enter("first_byte", self._deadlines.first_byte_s)

    def _enter_write(self) -> None:
        self._unsent = self._transport.get_write_buffer_size() if self._transport is not None else 0
        self._enter("write", self._deadlines.write_s)

    def _enter(self, phase: str, within_s: float) -> None:
        """Begin a phase that may take so long; inf: as long as the whole exchange."""
        now = self._loop.time()
        self._phase, self._since, self._within_s = phase, now, within_s
        if self._timer is None or self._timer_at > now + within_s or self._timer_at > self._total_at:
            self._set_timer()

    def _expires_at(self) -> float:
        return min(self._since + self._within_s, self._total_at)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._expires_at()
        self._timer = self._loop.call_at(self._timer_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._response is None or self._lost:
            return
        now = self._loop.time()
        if now < self._expires_at():
            self._set_timer()
            return
        if self._phase == "write" and now < self._total_at and self._transport is not None:
            unsent = self._transport.get_write_buffer_size()
            if unsent < self._unsent:
                self._enter_write()
                return
        self._fail(UpstreamTimeout("total" if now >= self._total_at else self._phase))

    # --- receiving: asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports do not inherit asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        """Parse what came; whoever reads is woken once, however many chunks it held."""
        response = self._response
        if response is None:
            self._close()  # nobody asked: the next answer on this connection could not be trusted
            return
        if not response.status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            if not self._complete:
                self._fail(UpstreamBroken(f"the upstream's answer violates HTTP/1.1: {exc.__context__ or exc}"))
                return
            self._reusable = False
        if self._complete:
            self._finish(response)
            return
        if response.status:
            response.wake()
            if response.held_bytes > HIGH_WATER_BYTES and not self._reading_paused and self._transport is not None:
                self._reading_paused = True
                self._transport.pause_reading()
                self._enter("blocked", inf)
            elif self._phase == "idle":
                self._since = self._loop.time()
            else:
                self._enter("idle", self._deadlines.idle_s)
        elif self._head_bytes > MAX_HEAD_BYTES:
            self._fail(UpstreamBroken(f"the answer's head is longer than {MAX_HEAD_BYTES} bytes"))

    def eof_received(self) -> None:
        """Let the transport close: `connection_lost` decides what that means."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Settle the exchange: an end is an end only for an answer that is delimited by it (section 6.3 rule 8)."""
        self._lost = True
        response = self._response
        if response is not None:
            if self._until_close and exc is None and response.status:
                self._finish(response)
            else:
                started_at = self._total_at - self._deadlines.total_s
                in_window = self._loop.time() - started_at < STALE_WINDOW_S
                stale = self.exchanges > 1 and not self._head_bytes and in_window
                detail = "in the middle of the answer" if response.status else "before it answered"
                self._fail(UpstreamBroken(f"the upstream closed the connection {detail}", stale=stale))
        self._cancel_pending()
        self._on_lost(self)
        del self._parser  # it holds this connection's methods: without it no collector is needed to free both

    def _finish(self, response: UpstreamResponse) -> None:
        self._response = None
        response.complete()
        if not self._reusable or self._pump is not None or self._writing_paused:
            # An early answer: the rest of the request would be read as the next one.
            self._close()
        elif not self._lost:
            if self._reading_paused and self._transport is not None:
                self._reading_paused = False
                self._transport.resume_reading()
            self.idle_since = self._loop.time()
            self._on_free(self)

    def _fail(self, error: BaseException) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.fail(error)
        self._close()

    def _close(self) -> None:
        self._cancel_pending()
        if self._transport is not None and not self._lost:
            self._transport.abort()

    def close(self) -> None:
        """Close an idle connection in good order."""
        self._cancel_pending()
        if self._transport is not None and not self._lost:
            self._transport.close()

    def _cancel_pending(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pump is not None:
            self._pump.cancel()
            self._pump = None

    def on_message_begin(self) -> None:
        """A second message in answer to one request is an attack or a bug (response splitting)."""
        if self._complete:
            raise UpstreamBroken("the upstream sent more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; trailers (after the head) are dropped."""
        if self._headers is not None:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Publish the head, or skip it when it is an interim one (RFC 9110 section 15.2)."""
        response, headers, status = self._response, self._headers, self._parser.get_status_code()
        assert response is not None
        assert headers is not None
        if status == 101 or self._parser.get_http_version()[:2] != "1.":
            raise UpstreamBroken("the upstream switched protocols without being asked")
        if status > 599:
            raise UpstreamBroken(f"{status} is no status of HTTP")
        if status < 200:
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise UpstreamBroken("the upstream sends interim answers without end")
            return
        if self._head_bytes > MAX_HEAD_BYTES and sum(len(n) + len(v) for n, v in headers) > MAX_HEAD_BYTES:
            raise UpstreamBroken(f"the answer's head is longer than {MAX_HEAD_BYTES} bytes")
        if headers:
            response.shape, response.values = read_head(headers)
        shape = response.shape
        for at in shape.codings:
            if response.values[at].strip().lower() != b"chunked":
                raise UpstreamBroken("the upstream uses a transfer coding other than chunked")
        response.status, self._headers = status, None
        self._interim = 0
        self._reusable = self._parser.should_keep_alive()
        delimited = shape.length >= 0 or bool(shape.codings)
        if self._headless or status in _BODILESS:
            # llhttp cannot be told that a HEAD answer ends here, and 204/304 with a length are ambiguous downstream.
            self._complete, self._until_close = True, False
            if delimited:
                self._reusable = False
        else:
            self._until_close = not delimited

    def on_body(self, data: bytes) -> None:
        """Hold a piece of the body until the reader takes it."""
        response = self._response
        if response is not None and not self._complete:
            response.feed(data)

    def on_message_complete(self) -> None:
        """The end of an answer, or of an interim one."""
        response = self._response
        if response is not None and response.status:
            self._complete = True
        else:
            self._headers = []
