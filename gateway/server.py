"""uvicorn with what a public gateway needs beside it: deadlines for heads and bodies, a connection cap, a drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Generator
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from auth.errors import Fault
from gateway.deadline_protocol import DeadlineProtocol
from gateway.forwarded import ForwardedCaller
from gateway.relay_protocol import RelayProtocol
from gateway.tls import ServerTls, TlsUnusable

if TYPE_CHECKING:
    from gateway.relay_channel import Serve
    from gateway.settings import Settings

log = logging.getLogger(__name__)

_SWEEP_S: Final = 1.0
_RENEWAL_S: Final = 10.0
_SECOND_SIGNAL_S: Final = 0.1
"""How long a second signal may wait to cut the lead time short."""
_FORCED_S: Final = 5.0
"""How long each step of an end at once may take."""


class GatewayServer(uvicorn.Server):
    """A uvicorn server that drains: `on_drain` (readiness turns false), a lead time, no new connections, then the rest.

    A second signal ends it at once. Signals do not end the process behind its back: `serve` returns.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_drain: Callable[[], None],
        on_started: Callable[[], None],
        lead_s: float,
        head_timeout_s: float,
        body_timeout_s: float,
        tls: ServerTls | None = None,
    ) -> None:
        super().__init__(config)
        self._tls = tls
        self._reloads = False
        self._on_drain = on_drain
        self._on_started = on_started
        self._lead_s = lead_s
        self._head_timeout_s = head_timeout_s
        self._body_timeout_s = body_timeout_s
        self._interrupted = False

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle SIGINT and SIGTERM while serving, and hand them back without raising them again."""
        try:
            previous = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
            if self._tls is not None or not os.isatty(0):
                # Who has a terminal ends with it; anybody else who sends this asks for a reload, as daemons read it.
                previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._ask_reload)
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

    def _ask_reload(self, sig: int, frame: FrameType | None) -> None:
        del sig, frame
        self._reloads = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving, and the sweep of slow callers."""
        await super().startup(sockets)
        self._sweeper = asyncio.create_task(self._sweep(), name="slow-caller sweep")
        self._renewer = None if self._tls is None else asyncio.create_task(self._renew(self._tls), name="tls renewal")
        self._on_started()

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
        if self._renewer is not None:
            self._renewer.cancel()
        await super().shutdown(sockets)
        if self.force_exit:
            await self._end_at_once()

    async def _end_at_once(self) -> None:
        """End what is in flight, then the application: what was cut short still has its usage row, leases go back.

        uvicorn would leave both to the end of the event loop.
        """
        tasks = set(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_FORCED_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FORCED_S):
                await self.lifespan.shutdown()

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = loop.time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, DeadlineProtocol):
                    connection.check_deadlines(now, self._head_timeout_s, self._body_timeout_s)

    async def _renew(self, tls: ServerTls) -> None:
        """Take up renewed certificates; one that cannot be used leaves the old one in place, and a line in the log."""
        looks_in_s = _RENEWAL_S
        while True:
            await asyncio.sleep(_SWEEP_S)
            looks_in_s -= _SWEEP_S
            asked, self._reloads = self._reloads, False
            if not asked and looks_in_s > 0:
                continue
            looks_in_s = _RENEWAL_S
            try:
                if asked or await asyncio.to_thread(tls.is_outdated):
                    await asyncio.to_thread(tls.reload)
                    log.info("TLS certificate read again")
            except TlsUnusable as fault:
                log.error("the renewed TLS certificate is not used", extra={"reason": fault.public})


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
    find_relay: Callable[[], Serve | None] = lambda: None,
    on_started: Callable[[], None] = lambda: None,
    tls: ServerTls | None = None,
) -> GatewayServer:
    """Make the server of one process for an ASGI app; `run(sockets=[open_socket(…)])` serves until a signal.

    `find_relay` gives what serves inference requests without ASGI between, None while nothing does. `tls`: the server
    ends TLS itself.
    """
    members: dict[str, Any] = {
        "max_connections": settings.max_connections,
        "find_relay": staticmethod(find_relay),
        "tls": tls,
    }
    believes_certificates = settings.client_certificates in ("client-cert", "nginx")
    if believes_certificates:
        app = forwarded = ForwardedCaller(app, trusted=settings.trusted_proxies, form=settings.client_certificates)
        members["certificate_of"] = staticmethod(forwarded.thumbprint)
    protocol = type("Protocol", (RelayProtocol,), members)
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
        ssl_context_factory=None if tls is None else lambda _config, _default: tls.front,
    )
    return GatewayServer(
        config,
        on_drain=on_drain,
        on_started=on_started,
        lead_s=settings.drain_lead_s,
        head_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        tls=tls,
    )
