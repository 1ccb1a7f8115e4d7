"""One worker of `gateway.workers`: what a single process would be, over a socket that its supervisor has bound."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from gateway.asgi import Gateway
from gateway.descriptors import allow_files, within_files
from gateway.garbage import begin, settle
from gateway.last_resort import end_within
from gateway.server import make_server
from gateway.settings import settings_from_environment
from gateway.siblings import Siblings
from gateway.telemetry import configure_logging
from gateway.tls import make_tls
from gateway.workers import ACCEPT, READY, UP, Orders

if TYPE_CHECKING:
    from gateway.health import Health
    from gateway.server import GatewayServer

log = logging.getLogger(__name__)

_LOOK_S: Final = 0.1
"""How often one that is not ready looks whether it is."""


def main() -> None:
    """Serve as ordered by the one argument."""
    begin()
    orders = Orders.decode(sys.argv[1])
    settings = settings_from_environment()
    configure_logging(settings.log_level, settings.log_format)
    settings = within_files(settings, allow_files())
    tls = make_tls(settings)
    app = Gateway(settings, data_path=orders.data_path, control=orders.control, tls=tls)
    siblings = Siblings(orders.directory, orders.index, app.metrics.scrape)
    app.health.speak_for(siblings)
    supervisor = socket.socket(fileno=orders.supervisor)
    supervisor.setblocking(False)
    tasks: list[asyncio.Task[None]] = []

    def starting() -> None:
        tasks.append(asyncio.create_task(_heed(server, app.health, siblings, supervisor), name="supervisor"))

    def started() -> None:
        settle()
        tasks.append(asyncio.create_task(_report(server, app.health, siblings, supervisor), name="report"))

    server = make_server(
        app,
        settings,
        on_drain=app.health.drain,
        find_relay=app.find_relay,
        on_starting=starting,
        on_started=started,
        on_end=end_within,
        interrupt_start=app.interrupt_start,
        accepts_at_once=False,
        tls=tls,
    )
    server.run(sockets=[socket.socket(fileno=orders.listening)])


async def _report(server: GatewayServer, health: Health, siblings: Siblings, supervisor: socket.socket) -> None:
    """Say that this worker is up, and accept as soon as it is ready: until then its siblings serve better."""
    loop = asyncio.get_running_loop()
    with suppress(OSError):  # the supervisor is gone, and its directory with it: `_heed` ends this worker
        await siblings.start()
        if not health.readiness()[0]:
            await loop.sock_sendall(supervisor, UP)
        while not health.readiness()[0]:  # noqa: ASYNC110 -- it looks at memory, and may depend on anything
            await asyncio.sleep(_LOOK_S)
        await server.accept()
        await loop.sock_sendall(supervisor, READY)


async def _heed(server: GatewayServer, health: Health, siblings: Siblings, supervisor: socket.socket) -> None:
    """Do what the supervisor says, and drain when it is gone, also one that was gone before or during the start."""
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while word := await loop.sock_recv(supervisor, 1):
            if word == ACCEPT:
                await server.accept()
            elif not health.readiness()[0]:  # else the word has crossed ours
                server.leave_off()
    log.info("the supervisor is gone")
    if not server.should_exit:
        server.end()
    await siblings.close()


if __name__ == "__main__":
    main()
