"""Key sets fetched from where clients publish them: past the guard, and only what is a JSON object."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from auth.errors import Unavailable
from gateway.guarded_calls import GuardedCalls
from gateway.published_keys import GuardedJwks
from gateway.upstream.connect import DirectConnector
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.pool import ConnectionPool

ANSWERS = {
    "/jwks": (200, b'{"keys": [{"kid": "a"}]}'),
    "/list": (200, b"[]"),
    "/text": (200, b"keys"),
    "/deep": (200, b'{"keys":' + b"[" * 100_000),
    "/gone": (404, b'{"keys": []}'),
    "/moved": (302, b"{}"),
}


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status, body = ANSWERS[head.split(b" ")[1].decode()]
        writer.write(
            b"HTTP/1.1 %d x\r\nlocation: /jwks\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (status, len(body))
        )
        writer.write(body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
async def jwks() -> AsyncIterator[GuardedJwks]:
    policy = EgressPolicy(allow_private=True)
    pool = ConnectionPool(DirectConnector(policy))
    yield GuardedJwks(GuardedCalls(pool, policy))
    await pool.close()


async def test_a_key_set_is_fetched(jwks: GuardedJwks, port: int) -> None:
    assert await jwks.fetch(f"http://127.0.0.1:{port}/jwks") == {"keys": [{"kid": "a"}]}


@pytest.mark.parametrize("path", [path for path in ANSWERS if path != "/jwks"])
async def test_anything_else_counts_as_no_answer(jwks: GuardedJwks, port: int, path: str) -> None:
    with pytest.raises(Unavailable):
        await jwks.fetch(f"http://127.0.0.1:{port}{path}")


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1/jwks", "https://169.254.169.254/", "https://10.0.0.1/jwks", "https://[::1]/", "file:///x"]
)
async def test_the_inside_of_the_network_is_out_of_reach(uri: str) -> None:
    policy = EgressPolicy()
    pool = ConnectionPool(DirectConnector(policy))
    with pytest.raises(Unavailable):
        await GuardedJwks(GuardedCalls(pool, policy)).fetch(uri)
    await pool.close()
