"""A TCP server whose end leaves nothing open.

asyncio's own forgets two kinds of connections at its end, which are reported as unclosed when they are collected, in
whatever test runs then: those that were accepted and not made yet when the server closes, and those whose task is
cancelled before it begins.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_TURNS = 5
"""Within these turns of the loop what was accepted is made, and what was aborted is closed."""


class TcpServer:
    """Runs `serve` for each connection, and closes the connection after it; belongs to the loop that starts it."""

    def __init__(self, serve: Serve, *, limit: int = 1 << 16) -> None:
        self._serve = serve
        self._limit = limit
        self._open: set[asyncio.Transport] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(
        self, where: str | Sequence[str] | socket.socket, port: int = 0, *, tls: ssl.SSLContext | None = None
    ) -> int:
        """Listen on addresses, or on a socket that is bound; return the port."""
        loop = asyncio.get_running_loop()
        if isinstance(where, socket.socket):
            self._server = await loop.create_server(self._accepted, sock=where, ssl=tls)
        else:
            self._server = await loop.create_server(self._accepted, where, port, ssl=tls)
        number: int = self._server.sockets[0].getsockname()[1]
        return number

    async def stop(self) -> None:
        """End every connection and wait until all is closed; idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        loop = asyncio.get_running_loop()
        if isinstance(loop, asyncio.SelectorEventLoop):  # uvloop does not forget
            for listening in server.sockets:
                loop.remove_reader(listening)
        await _turns()
        server.close()
        for transport in list(self._open):
            transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await _turns()

    def _accepted(self) -> asyncio.StreamReaderProtocol:
        return _Accepted(asyncio.StreamReader(limit=self._limit), self._run, self._open)

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:
            if self._server is not None:
                raise  # else it was cancelled by `stop`, and asyncio's callback of a cancelled task fails
        finally:
            self._tasks.discard(task)
            writer.close()


class _Accepted(asyncio.StreamReaderProtocol):
    def __init__(self, reader: asyncio.StreamReader, serve: Serve, open_ones: set[asyncio.Transport]) -> None:
        super().__init__(reader, serve)
        self._open_ones = open_ones

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._mine = transport
        self._open_ones.add(transport)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open_ones.discard(self._mine)
        super().connection_lost(exc)


async def _turns() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)
