"""The simulated provider beside `llm-proxy dev`, on a loopback port and a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Self

from gateway.simulation.app import SimulatedProvider
from gateway.simulation.config import development_config
from gateway.simulation.server import fetch_document, make_server


class BackgroundProvider:
    """Runs the development provider until `stop`; `wanted_port` is taken when free, so that stored keys stay right."""

    def __init__(self, wanted_port: int) -> None:
        self._socket = _bind(wanted_port)
        self.port: int = self._socket.getsockname()[1]
        self._server = make_server(SimulatedProvider(development_config(), fetch=fetch_document))
        self._thread = threading.Thread(target=self._serve, name="simulated provider", daemon=True)

    @property
    def base_url(self) -> str:
        """Where keys are to point."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Begin to serve; connections wait in the socket's queue until it does."""
        self._socket.listen(512)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the server and wait for its thread."""
        self._server.should_exit = True
        self._thread.join(5)

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))


def _bind(wanted: int) -> socket.socket:
    for port in (wanted, 0):
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind(("127.0.0.1", port))
        except OSError:
            made.close()
            if port == 0:
                raise
            continue
        return made
    raise OSError("no free port on 127.0.0.1")
