"""A Postgres that is there but not ready counts as away: callers get 503, not a failure that nobody foresaw."""

from __future__ import annotations

import asyncio

import pytest

from gateway.control.orm import OrmSessions
from gateway.database import DatabaseAway


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("57P03", "the database system is starting up"),
        ("57P01", "terminating connection due to administrator command"),
        ("53300", "sorry, too many clients already"),
    ],
)
async def test_a_server_that_is_not_ready_is_away(code: str, message: str) -> None:
    fields = f"SFATAL\0VFATAL\0C{code}\0M{message}\0\0".encode()
    refusal = b"E" + (len(fields) + 4).to_bytes(4, "big") + fields

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int.from_bytes(await reader.readexactly(4), "big")
        await reader.readexactly(length - 4)
        writer.write(refusal)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        sessions = OrmSessions(f"postgresql://u:p@127.0.0.1:{port}/d?sslmode=disable", pool_size=1)
        with pytest.raises(DatabaseAway):
            async with sessions.platform():
                raise AssertionError("there is no session")
        await sessions.aclose()
