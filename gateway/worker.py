"""One worker of `gateway.workers`: what a single process would be, over a socket that its supervisor has bound."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from gateway.asgi import Gateway
from gateway.descriptors import allow_files, within_files
from gateway.garbage import begin, settle
from gateway.server import make_server
from gateway.settings import settings_from_environment
from gateway.siblings import Siblings
from gateway.telemetry import configure_logging
from gateway.tls import make_tls
from gateway.workers import READY, Orders

if TYPE_CHECKING:
    from gateway.server import GatewayServer

log = logging.getLogger(__name__)


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

    def started() -> None:
        settle()
        tasks.append(asyncio.create_task(_follow(server, siblings, supervisor), name="supervisor"))

    server = make_server(
        app, settings, on_drain=app.health.drain, find_relay=app.find_relay, on_started=started, tls=tls
    )
    server.run(sockets=[socket.socket(fileno=orders.listening)])


async def _follow(server: GatewayServer, siblings: Siblings, supervisor: socket.socket) -> None:
    """Report that this worker serves, and drain when the supervisor is gone, also one that was gone before."""
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        await siblings.start()  # in the supervisor's directory, which goes with it
        await loop.sock_sendall(supervisor, READY)
        while await loop.sock_recv(supervisor, 1):
            pass
    log.info("the supervisor is gone")
    server.should_exit = True
    await siblings.close()


if __name__ == "__main__":
    main()
