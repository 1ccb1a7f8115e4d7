"""uvicorn with what a public gateway needs beside it: deadlines for heads and bodies, a connection cap, a drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Generator
from math import inf
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from auth.errors import Fault
from gateway.deadline_protocol import DeadlineProtocol
from gateway.forwarded import ForwardedCaller
from gateway.relay_protocol import RelayProtocol
from gateway.teardown import CLOSE_S
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
        on_starting: Callable[[], None],
        on_started: Callable[[], None],
        on_end: Callable[[float], None],
        interrupt_start: Callable[[], None],
        accepts_at_once: bool,
        lead_s: float,
        drain_s: float,
        head_timeout_s: float,
        body_timeout_s: float,
        send_timeout_s: float,
        tls: ServerTls | None = None,
    ) -> None:
        super().__init__(config)
        self._tls = tls
        self._reloads = False
        self._on_drain = on_drain
        self._on_starting = on_starting
        self._on_started = on_started
        self._on_end = on_end
        self._interrupt_start = interrupt_start
        self._accepts_at_once = accepts_at_once
        self._sockets: list[socket.socket] = []
        self._end_by = inf
        self._lead_s = lead_s
        self._drain_s = drain_s
        self._timeouts_s = head_timeout_s, body_timeout_s, send_timeout_s
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
        self.end(hurries=sig == signal.SIGINT)

    def end(self, *, hurries: bool = False) -> None:
        """Begin the drain, without a lead time when it `hurries`; a second call cuts it short."""
        if self.should_exit:
            self.force_exit = True
            bound_s = 2 * _FORCED_S
        else:
            bound_s = (0.0 if hurries else self._lead_s) + self._drain_s + CLOSE_S
        self._interrupted = hurries
        self.should_exit = True
        now = time.monotonic()
        self._end_by = min(self._end_by, now + bound_s)
        self._on_end(self._end_by - now)

    def _ask_reload(self, sig: int, frame: FrameType | None) -> None:
        del sig, frame
        self._reloads = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then serving, and the sweep of slow callers; told to end meanwhile, it leaves off."""
        self._on_starting()
        self._sockets = sockets or []
        watch = asyncio.create_task(self._watch_start(), name="end during the start")
        try:
            await super().startup([])
        finally:
            watch.cancel()
        if self._accepts_at_once and not self.should_exit:
            self.started = False  # not yet: who waits for it connects next
            await self.accept()
            self.started = True
        self._sweeper = asyncio.create_task(self._sweep(), name="slow-caller sweep")
        self._renewer = None if self._tls is None else asyncio.create_task(self._renew(self._tls), name="tls renewal")
        self._on_started()

    async def _watch_start(self) -> None:
        while not self.should_exit:  # noqa: ASYNC110 -- set by a signal
            await asyncio.sleep(_SECOND_SIGNAL_S)
        self._interrupt_start()

    async def accept(self) -> None:
        """Accept callers from now on, unless it does already."""
        loop, config = asyncio.get_running_loop(), self.config
        if self.servers or self.should_exit:
            return

        def make_protocol() -> asyncio.Protocol:
            kind: Any = config.http_protocol_class
            made: asyncio.Protocol = kind(config=config, server_state=self.server_state, app_state=self.lifespan.state)
            return made

        for each in self._sockets:
            # A copy: it is closed with the server, and there may be another server later.
            server = await loop.create_server(
                make_protocol,
                sock=each.dup(),
                ssl=config.ssl,
                backlog=config.backlog,
                # No connection yet, so the sweep does not see it: a caller has as long for it as for a head after it.
                ssl_handshake_timeout=self._timeouts_s[0] if config.ssl else None,
            )
            self.servers.append(server)

    def leave_off(self) -> None:
        """Accept nobody until `accept` is called again; those who are connected are asked to come back."""
        for server in self.servers:
            server.close()
        self.servers.clear()
        for connection in list(self.server_state.connections):
            connection.shutdown()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Turn readiness off, wait the lead time (a balancer in front must notice), then finish what is in flight."""
        self._on_drain()
        # Each answer from here on asks its caller to come back over another connection: this one is about to be closed.
        self.server_state.default_headers.append((b"connection", b"close"))
        loop = asyncio.get_running_loop()
        lead_ends_at = loop.time() + (0.0 if self._interrupted or not self.servers else self._lead_s)
        while not self.force_exit and (left_s := lead_ends_at - loop.time()) > 0:  # noqa: ASYNC110 -- set by a signal
            await asyncio.sleep(min(left_s, _SECOND_SIGNAL_S))
        if self._renewer is not None:
            self._renewer.cancel()
        try:
            async with asyncio.timeout(self._drain_s + CLOSE_S):
                await super().shutdown(sockets)
        except TimeoutError:
            log.error("the application does not end")
        finally:
            self._sweeper.cancel()  # not before: who is too slow would hold up the drain
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
                    connection.check_deadlines(now, *self._timeouts_s)

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


def say_address(listening: socket.socket) -> None:
    """Log where callers connect to; with PORT=0 nothing else tells."""
    host, port = listening.getsockname()[:2]
    log.info("listening on %s:%s", f"[{host}]" if ":" in host else host, port)


def make_server(
    app: Callable[..., Any],
    settings: Settings,
    *,
    on_drain: Callable[[], None],
    find_relay: Callable[[], Serve | None] = lambda: None,
    on_starting: Callable[[], None] = lambda: None,
    on_started: Callable[[], None] = lambda: None,
    on_end: Callable[[float], None] = lambda _seconds: None,
    interrupt_start: Callable[[], None] = lambda: None,
    accepts_at_once: bool = True,
    tls: ServerTls | None = None,
) -> GatewayServer:
    """Make the server of one process for an ASGI app; `run(sockets=[open_socket(…)])` serves until a signal.

    `find_relay` gives what serves inference requests without ASGI between, None while nothing does. `on_end` is told at
    a signal within how many seconds the process should be gone, `interrupt_start` is called when that comes before the
    application has started. Unless it `accepts_at_once`, nobody is served before `GatewayServer.accept` is called.
    `tls`: the server ends TLS itself.
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
        on_starting=on_starting,
        on_started=on_started,
        on_end=on_end,
        interrupt_start=interrupt_start,
        accepts_at_once=accepts_at_once,
        lead_s=settings.drain_lead_s,
        drain_s=settings.drain_s,
        head_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        send_timeout_s=settings.send_timeout_s,
        tls=tls,
    )
