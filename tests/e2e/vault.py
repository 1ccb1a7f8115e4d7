"""A Vault on a real socket that a test can disable, hang and take away: Transit's answers over plain HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.e2e.conftest import free_port
from tests.tenants.kms_servers import Transit


class RunningVault:
    """`transit` is the key; `stop` closes the port, `start` opens it again; `hang` makes answers wait for `release`.

    `hang_after`: hang by itself after so many calls.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.transit = Transit()
        self.asked = 0
        self.hang_after: int | None = None
        self._answering = threading.Event()
        self._answering.set()
        self._one_at_a_time = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    @property
    def kek(self) -> str:
        return f"vault+http://127.0.0.1:{self.port}/transit/llm-proxy"

    def start(self) -> None:
        vault = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                vault.asked += 1
                if vault.hang_after is not None and vault.asked > vault.hang_after:
                    vault.hang()
                vault._answering.wait(60)
                headers = {name.lower(): value for name, value in self.headers.items()}
                with vault._one_at_a_time:
                    found = asyncio.run(vault.transit.call(self.command, self.path, headers=headers, body=body))
                with suppress(ConnectionError):  # who asked may have been killed meanwhile
                    self.send_response(found.status)
                    self.send_header("content-length", str(len(found.body)))
                    self.end_headers()
                    self.wfile.write(found.body)

            do_GET = do_POST = answer  # noqa: N815

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class calls it so
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def hang(self) -> None:
        self._answering.clear()

    def release(self) -> None:
        self._answering.set()


@contextmanager
def running_vault() -> Iterator[RunningVault]:
    vault = RunningVault()
    vault.start()
    try:
        yield vault
    finally:
        vault.release()
        vault.stop()
