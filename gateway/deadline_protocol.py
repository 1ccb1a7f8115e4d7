"""uvicorn's HTTP/1.1 protocol with deadlines for heads, bodies, readers and idle connections, and a connection cap."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from auth.certificates import thumbprint
from gateway.delivery import Delivery, acked_bytes, reset
from gateway.descriptors import LINGERING
from gateway.forwarded import CERTIFICATE
from gateway.paced_protocol import LARGE_READ_BYTES, MAX_PIPELINED, SMALL_READ_BYTES, PacedProtocol
from gateway.strict_protocol import JudgedHead, Refusal
from gateway.tls import ServerTls

if TYPE_CHECKING:
    from gateway.proxy.channel import HeaderList

_TOO_MANY = Refusal(
    503,
    "too_many_connections",
    "This process holds as many connections as it may.",
    "Try again, over fewer connections.",
    retry_after_s=1,
)
_SPARED = frozenset({b"/livez", b"/metrics"})
"""What is answered beyond the cap as well: a process that is full is alive, and its figures are wanted most then.

`/readyz` is not: who is full wants nothing more sent.
"""
_HEAD_LATE = Refusal(408, "head_timeout", "The request head did not arrive in time.", "Send it at once.")
_BODY_LATE = Refusal(408, "body_timeout", "The request body did not arrive in time.", "Send it without pauses.")


class DeadlineProtocol(PacedProtocol):
    """The paced protocol that notes since when it waits for the caller; `GatewayServer` sweeps the late ones.

    A note and a sweep a second cost less than a timer a request.
    """

    max_connections = 1_000_000
    first_head_s: float = 2.0
    """How long a drain, or a full process, waits for the head of a caller who has connected and not quite asked yet."""
    tls: ServerTls | None = None
    """What the connection is encrypted with, where the server ends TLS itself."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection; when there are too many, only to hear whether it asks for one of `_SPARED`."""
        super().connection_made(transport)
        self.beyond = False
        self.shown = ""
        """`x5t#S256` of the certificate that the caller showed to this very server, "" without one."""
        if self.tls is not None and self.tls.asks:
            found = self.tls.peer(transport.get_extra_info("ssl_object"))
            if found is not None:
                self.shown = thumbprint(found.der)
                self.app_state = {**self.app_state, CERTIFICATE: found}
        self.waiting_since: float | None = self.loop.time()
        self.idle_since = self.waiting_since
        self.heard_at = self.waiting_since
        self.heard = False
        self._delivery: Delivery | None = None
        too_many = len(self.connections) - self.max_connections
        if too_many > LINGERING:
            self.refuse(_TOO_MANY, lingering=False)
        elif too_many > 0:
            self.beyond = True

    def data_received(self, data: bytes) -> None:
        """Take bytes; the clock of a slow body starts again."""
        self.heard_at = self.loop.time()
        self.heard = True
        size = len(data)
        if self.pipeline or (
            # What follows the end of its head without a CR is a body: most reads are one request.
            size > SMALL_READ_BYTES and (size > LARGE_READ_BYTES or data.find(b"\r", data.find(b"\r\n\r\n") + 4) >= 0)
        ):
            self.pace(data)
        else:
            super().data_received(data)

    def on_message_begin(self) -> None:
        """Start the clock of a request head."""
        self.waiting_since = self.heard_at
        super().on_message_begin()

    def end_head(self) -> HeaderList | None:
        """Stop the clock of a request head."""
        lines = super().end_head()
        self.waiting_since = None
        return lines

    def judge(self, lines: HeaderList) -> JudgedHead:
        """Judge a head; beyond the cap few things are answered."""
        if self.beyond and self.url.partition(b"?")[0] not in _SPARED:
            self.stop(_TOO_MANY)
        return super().judge(lines)

    def send_400_response(self, msg: str) -> None:
        """Refuse; half of the places beyond the cap stay free of callers who only read why, or nobody could ask."""
        del msg
        crowded = len(self.connections) - self.max_connections > LINGERING // 2
        self.refuse(self.why, lingering=not crowded)

    def on_response_complete(self) -> None:
        """Begin the next request that waits, or the idle time: as uvicorn does, without a timer for each answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing() or self.lingers:
            return
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            if self.flow.read_paused:
                self._read_on()
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.refusal is not None:
            self.write_refusal()
        else:
            self.idle_since = self.loop.time()
            if self.headers is not None:
                self._forget_scope()

    def _forget_scope(self) -> None:
        """Let go of what uvicorn keeps of an answered request until the next one comes."""
        self.headers = self.scope = None  # type: ignore[assignment]
        if isinstance(self.cycle, RequestResponseCycle):
            self.cycle.scope, self.cycle.body = self.scope, bytearray()

    def _read_on(self) -> None:
        """A place in the line is free: parse on, then read on. The caller's clocks have stood still meanwhile."""
        self.heard_at = self.loop.time()
        self.parse_on()
        if self.waiting_since is not None:
            self.waiting_since = self.heard_at
        if len(self.pipeline) < MAX_PIPELINED:
            self.flow.resume_reading()

    def check_deadlines(self, now: float, head_s: float, body_s: float, send_s: float) -> None:
        """Close the connection if its caller is too slow with a head (`head_s`), the next body bytes (`body_s`), or
        the next request (the keep-alive time); drop it if it has taken nothing of what waits for it for `send_s`.
        """
        # One that is closing too: it waits for its caller to take the rest, which may be never.
        if left := self.transport.get_write_buffer_size():
            if self._is_overdue(now, left, send_s):
                reset(self.transport)
                return
        else:
            self._delivery = None
        if self.transport.is_closing() or self.refusal is not None or self.lingers:
            return
        if self.waiting_since is not None:
            # While we do not read it is not the caller that is late.
            # A connection that never sent a byte is closed in silence, as an idle one is.
            if self.beyond and now - self.waiting_since > self.first_head_s:
                self.refuse(_TOO_MANY, lingering=False)
            elif now - self.waiting_since > head_s and not self.flow.read_paused:
                if not self.heard:
                    self.transport.close()
                else:
                    self.refuse(_HEAD_LATE, lingering=False)
            return
        cycle = self.cycle
        if cycle is None:
            return
        if cycle.response_complete:
            if cycle.more_body:
                # Answered before its body was read: the rest is thrown away, but not for ever.
                late = now - self.idle_since > body_s
            else:
                late = now - max(self.idle_since, self.heard_at) > self.timeout_keep_alive
            if late:
                self.transport.close()
            return
        slow = cycle.more_body and not self.flow.read_paused
        if slow and now - self.heard_at > body_s:
            self.refuse(_BODY_LATE, lingering=False)

    def _is_overdue(self, now: float, left: int, send_s: float) -> bool:
        """Tell whether the caller has had its time to take the `left` bytes that wait for it."""
        acked, delivery = acked_bytes(self.transport), self._delivery
        if delivery is None:
            self._delivery = Delivery(now, left, acked)
            return False
        return delivery.stands_s(now, left, acked) > send_s

    def shutdown(self) -> None:
        """End with the answer that is under way, or at once; a head that comes in these moments is still answered.

        Its caller has seen this process accept the connection and cannot know that it should not send a request on it.
        """
        if self.waiting_since is None or self.refusal is not None or self.transport.is_closing():
            super().shutdown()
        else:
            self.loop.call_later(self.first_head_s, self._shut_down_unless_asked)

    def _shut_down_unless_asked(self) -> None:
        if self.waiting_since is not None and not self.transport.is_closing():
            self.transport.close()
