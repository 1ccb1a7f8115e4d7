"""uvicorn with what a public gateway needs beside it: deadlines for heads and bodies, a connection cap, a drain."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
from collections.abc import Callable, Generator
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from auth.errors import Fault
from gateway.forwarded import ForwardedCaller
from gateway.telemetry import new_request_id

if TYPE_CHECKING:
    from gateway.settings import Settings

log = logging.getLogger(__name__)

_SWEEP_S: Final = 1.0
_SECOND_SIGNAL_S: Final = 0.1
"""How long a second signal may wait to cut the lead time short."""


class DeadlineProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol that notes since when it waits for the caller; `GatewayServer` sweeps the late ones.

    A note and a sweep a second cost less than a timer a request.
    """

    max_connections = 1_000_000

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or answer 503 and close it when there are too many."""
        super().connection_made(transport)
        self.waiting_since: float | None = self.loop.time()
        self.heard_at = self.waiting_since
        self.heard = False
        if len(self.connections) > self.max_connections:
            self._refuse(
                503,
                "too_many_connections",
                "This process holds as many connections as it may.",
                "Try again, over fewer connections.",
            )

    def data_received(self, data: bytes) -> None:
        """Take bytes; the clock of a slow body starts again."""
        self.heard_at = self.loop.time()
        self.heard = True
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Start the clock of a request head."""
        self.waiting_since = self.heard_at
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop the clock of a request head."""
        self.waiting_since = None
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP/1.1 request."""
        del msg
        self._refuse(400, "malformed_http", "These bytes are not a valid HTTP/1.1 request.", "Use an HTTP library.")

    def check_deadlines(self, now: float, head_s: float, body_s: float) -> None:
        """Close the connection if its caller is too slow with a head (`head_s`) or the next body bytes (`body_s`)."""
        if self.transport.is_closing():
            return
        if self.waiting_since is not None:
            # A connection that never sent a byte is closed in silence, as an idle one is.
            if now - self.waiting_since > head_s:
                if not self.heard:
                    self.transport.close()
                else:
                    self._refuse(408, "head_timeout", "The request head did not arrive in time.", "Send it at once.")
            return
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None:
            return
        slow = cycle.more_body and not cycle.response_complete and not self.flow.read_paused
        if slow and now - self.heard_at > body_s:
            if cycle.response_started:
                self.transport.close()
            else:
                self._refuse(408, "body_timeout", "The request body did not arrive in time.", "Send it without pauses.")

    def _refuse(self, status: int, code: str, detail: str, hint: str) -> None:
        titles = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}
        request_id = new_request_id()
        body = json.dumps(
            {
                "type": f"urn:llm-proxy:problem:{code}",
                "title": titles[status],
                "status": status,
                "detail": detail,
                "code": code,
                "hint": hint,
                "request_id": request_id,
            }
        ).encode()
        head = (
            f"HTTP/1.1 {status} {titles[status]}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nx-llm-proxy-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class GatewayServer(uvicorn.Server):
    """A uvicorn server that drains: `on_drain` (readiness turns false), a lead time, no new connections, then the rest.

    A second signal ends it at once. Signals do not end the process behind its back: `serve` returns.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_drain: Callable[[], None],
        lead_s: float,
        head_timeout_s: float,
        body_timeout_s: float,
    ) -> None:
        super().__init__(config)
        self._on_drain = on_drain
        self._lead_s = lead_s
        self._head_timeout_s = head_timeout_s
        self._body_timeout_s = body_timeout_s
        self._interrupted = False

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle SIGINT and SIGTERM while serving, and hand them back without raising them again."""
        try:
            previous = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: whoever started us stops us
            yield
            return
        try:
            yield
        finally:
            for each, handler in previous.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the drain; a second signal cuts it short."""
        del frame
        if self.should_exit:
            self.force_exit = True
        self._interrupted = sig == signal.SIGINT
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving, and the sweep of slow callers."""
        await super().startup(sockets)
        self._sweeper = asyncio.create_task(self._sweep(), name="slow-caller sweep")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Turn readiness off, wait the lead time (a balancer in front must notice), then finish what is in flight."""
        self._on_drain()
        # Each answer from here on asks its caller to come back over another connection: this one is about to be closed.
        self.server_state.default_headers.append((b"connection", b"close"))
        loop = asyncio.get_running_loop()
        lead_ends_at = loop.time() + (0.0 if self._interrupted else self._lead_s)
        while not self.force_exit and (left_s := lead_ends_at - loop.time()) > 0:  # noqa: ASYNC110 -- set by a signal
            await asyncio.sleep(min(left_s, _SECOND_SIGNAL_S))
        self._sweeper.cancel()
        await super().shutdown(sockets)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = loop.time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, DeadlineProtocol):
                    connection.check_deadlines(now, self._head_timeout_s, self._body_timeout_s)


class AddressTaken(Fault):
    """The address to listen on is in use, or not ours."""

    code = "address_taken"


def open_socket(host: str, port: int) -> socket.socket:
    """Bind the address to listen on, before anything slow is done; raises `AddressTaken` with the mend."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise AddressTaken(
            f"{host}:{port} cannot be listened on: {error.strerror}.",
            hint="Stop what uses it, or choose another port: PORT=8081.",
        ) from None
    made.set_inheritable(False)
    return made


def make_server(
    app: Callable[..., Any],
    settings: Settings,
    *,
    on_drain: Callable[[], None],
) -> GatewayServer:
    """Make the server of one process for an ASGI app; `run(sockets=[open_socket(…)])` serves until a signal."""
    protocol = type("Protocol", (DeadlineProtocol,), {"max_connections": settings.max_connections})
    believes_certificates = settings.client_certificates != "off"
    if believes_certificates:
        app = ForwardedCaller(app, trusted=settings.trusted_proxies, form=settings.client_certificates)
    config = uvicorn.Config(
        app,
        loop="auto",
        http=protocol,
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=not believes_certificates,
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_keep_alive=round(settings.keep_alive_s),
        timeout_graceful_shutdown=round(settings.drain_s),
        backlog=4096,
    )
    return GatewayServer(
        config,
        on_drain=on_drain,
        lead_s=settings.drain_lead_s,
        head_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
    )
