"""A pooler in transaction mode, as PgBouncer is before 1.21: all clients share one session at the server.

The session is that of whoever comes first: its login goes through to the server, and what the server said to it is
said again to those that come later. A client has the session from its first message until the server is idle again.
"""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress

from tests.fakes.tcp_server import TcpServer

_SSL_REQUEST = 80877103
_READY, _TERMINATE = b"Z", b"X"
_AUTHENTICATION, _OK = b"R", struct.pack("!I", 0)


class TransactionPooler:
    """Listens before the server at `port`; `start` gives its own port."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._relay = TcpServer(self._serve)
        self._turn = asyncio.Lock()
        self._session: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._greeting = b""

    async def start(self) -> int:
        return await self._relay.start("127.0.0.1")

    async def stop(self) -> None:
        await self._relay.stop()
        if self._session is not None:
            self._session[1].close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            startup = await _startup(reader)
            if startup[4:8] == struct.pack("!I", _SSL_REQUEST):
                writer.write(b"N")
                startup = await _startup(reader)
            async with self._turn:
                if self._session is None:
                    await self._log_in(startup, reader, writer)
                else:
                    writer.write(self._greeting)
            await self._take_turns(reader, writer)

    async def _log_in(self, startup: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection("127.0.0.1", self._port)
        to_there.write(startup)
        kept = b""
        while True:
            kind, message = await _message(there)
            writer.write(message)
            if kind == _AUTHENTICATION and message[5:9] != _OK:
                if message[5:9] != struct.pack("!I", 12):  # the end of SCRAM wants no answer
                    to_there.write((await _message(reader))[1])
                continue
            kept += message
            if kind == _READY:
                break
        self._session, self._greeting = (there, to_there), kept

    async def _take_turns(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._session is not None
        there, to_there = self._session
        asking = asyncio.create_task(_message(reader))
        try:
            while (await asking)[0] != _TERMINATE:
                async with self._turn:
                    answering = asyncio.create_task(_until_idle(there, writer))
                    try:
                        while not answering.done():
                            if asking.done():
                                to_there.write(asking.result()[1])
                                asking = asyncio.create_task(_message(reader))
                            await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        answering.cancel()
        finally:
            asking.cancel()


async def _until_idle(there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    kind, message = b"", b""
    while (kind, message[5:6]) != (_READY, b"I"):
        kind, message = await _message(there)
        writer.write(message)


async def _startup(reader: asyncio.StreamReader) -> bytes:
    length = await reader.readexactly(4)
    return length + await reader.readexactly(struct.unpack("!I", length)[0] - 4)


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], head + await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)
