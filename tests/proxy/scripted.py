"""An upstream that does, byte by byte, what a test tells it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Exchange:
    """One request as it arrived, and the way to answer it."""

    head: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    body: bytes = b""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head_of_stream(self) -> None:
        await self.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def closed_by_gateway(self) -> None:
        """Return when the gateway has closed the connection."""
        async with asyncio.timeout(10):
            with suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass


Script = Callable[[Exchange], Awaitable[None]]


@dataclass
class ScriptedUpstream:
    base_url: str
    exchanges: list[Exchange] = field(default_factory=list)


@asynccontextmanager
async def scripted_upstream(script: Script, *, read_body: bool = True) -> AsyncIterator[ScriptedUpstream]:
    """Serve `script` for each request until the block ends."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            exchange = Exchange(head, reader, writer)
            if read_body:
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                exchange.body = await reader.readexactly(length)
            running.exchanges.append(exchange)
            await script(exchange)
        writer.close()
        tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    running = ScriptedUpstream(f"http://127.0.0.1:{port}")
    try:
        yield running
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
