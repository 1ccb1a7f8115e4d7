"""Hostile and odd providers: raw asyncio servers that do exactly what a test scripts, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from gateway.upstream.connect import DirectConnector
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.message import Deadlines, Origin, UpstreamRequest
from gateway.upstream.pool import ConnectionPool, PoolLimits
from gateway.upstream.response import UpstreamResponse
from tests.fakes.tcp_server import TcpServer

FAST = Deadlines(connect_s=5, write_s=5, first_byte_s=5, idle_s=5, total_s=10)
DEV = EgressPolicy(allow_private=True)


@dataclass
class Wire:
    """One accepted connection, as the script sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    heads: list[bytes] = field(default_factory=list)

    async def request(self) -> tuple[bytes, bytes]:
        """Read one request with a Content-Length body; raises IncompleteReadError when the client is gone."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return head, await self.reader.readexactly(length)

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> None:
        """Wait until the client has closed."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


Script = Callable[[Wire], Awaitable[None]]


@dataclass
class Server:
    origin: Origin
    wires: list[Wire] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)


@contextlib.asynccontextmanager
async def serving(
    script: Script, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Server]:
    """Run `script` for every connection, on a free port."""
    server_view = Server(Origin("http", host, 0))

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer, len(server_view.wires))
        server_view.wires.append(wire)
        try:
            await script(wire)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:
            pass
        except BaseException as exc:  # noqa: BLE001 -- a failing script must fail its test
            server_view.errors.append(exc)

    server = TcpServer(handle)
    port = await server.start(host, tls=tls)
    server_view.origin = Origin("https" if tls else "http", host, port)
    try:
        yield server_view
    finally:
        await server.stop()
    assert not server_view.errors, server_view.errors


@contextlib.asynccontextmanager
async def pooling(
    limits: PoolLimits | None = None, connector: DirectConnector | None = None
) -> AsyncIterator[ConnectionPool]:
    pool = ConnectionPool(connector or DirectConnector(DEV), limits)
    try:
        yield pool
    finally:
        await pool.close()
        await asyncio.sleep(0)


def replying(*answers: bytes) -> Script:
    """Answer the requests of each connection with `answers` in turn, then close."""

    async def script(wire: Wire) -> None:
        for answer in answers:
            await wire.request()
            await wire.say(answer)

    return script


def ok(body: bytes = b"hello", extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%b\r\n%b" % (len(body), extra, body)


def post(body: bytes = b'{"model":"m"}') -> UpstreamRequest:
    return UpstreamRequest(b"POST", b"/v1/chat/completions", [(b"content-type", b"application/json")], body)


async def drain(response: UpstreamResponse) -> bytes:
    parts = []
    while data := await response.read():
        parts.append(data)
    return b"".join(parts)


class Chunks:
    """A body source that yields what a test says."""

    def __init__(self, chunks: list[bytes], length: int | None = None, stop: asyncio.Event | None = None) -> None:
        self.length = length
        self.chunks = chunks
        self.stop = stop
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for chunk in self.chunks:
                yield chunk
            if self.stop is not None:
                await self.stop.wait()
        finally:
            self.closed = True
