"""Calls beside the data path obey the guard, end in time and say what happened; probes tell good keys from bad ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from auth.secret import Secret
from gateway.control.key_probe import KeyProbe
from gateway.guarded_calls import MAX_ANSWER_BYTES, GuardedCalls
from gateway.upstream.connect import DirectConnector
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.pool import ConnectionPool
from tenants.sources.protocol import SourceAway, SourceRefused

INSIDE = EgressPolicy(allow_private=True)


class Server:
    """Answers each request by its path; remembers what it was sent."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.seen.append(head)
        path = head.split(b" ")[1]
        if b"bearer good" in head.lower() or path == b"/ok?a=1":
            writer.write(b"HTTP/1.1 200 OK\r\nX-Told: yes\r\ncontent-length: 2\r\n\r\n{}")
        elif path == b"/moved":
            writer.write(b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n")
        elif path == b"/large":
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + b"x" * (MAX_ANSWER_BYTES + 1))
        elif path == b"/cut":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nx")
        else:
            writer.write(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    one = Server()
    listening = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    one.port = listening.sockets[0].getsockname()[1]
    yield one
    listening.close()


@pytest.fixture
async def pool() -> AsyncIterator[ConnectionPool]:
    made = ConnectionPool(DirectConnector(INSIDE))
    yield made
    await made.close()


async def test_an_answer_is_given_whole(server: Server, pool: ConnectionPool) -> None:
    calls = GuardedCalls(pool, INSIDE)
    answer = await calls.call("post", f"http://127.0.0.1:{server.port}/ok?a=1", headers={"X-A": "b"}, body=b"1")
    assert (answer.status, answer.body, answer.headers["x-told"]) == (200, b"{}", "yes")
    assert b"POST /ok?a=1 " in server.seen[0]
    assert b"x-a: b\r\n" in server.seen[0]


async def test_redirects_are_not_followed(server: Server, pool: ConnectionPool) -> None:
    answer = await GuardedCalls(pool, INSIDE).call("GET", f"http://127.0.0.1:{server.port}/moved")
    assert answer.status == 302
    assert len(server.seen) == 1


@pytest.mark.parametrize("repeatable", [False, True])
async def test_a_post_is_sent_again_over_another_connection_only_where_that_is_harmless(
    pool: ConnectionPool, repeatable: bool
) -> None:
    """A provider that has closed a kept connection: making a key twice would leak one, wrapping twice would not."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        if len(seen) == 1:
            seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/keys"
    calls = GuardedCalls(pool, INSIDE, repeatable=repeatable)
    await calls.call("GET", url)
    if repeatable:
        assert (await calls.call("POST", url, body=b"{}")).status == 200
    else:
        with pytest.raises(SourceAway):
            await calls.call("POST", url, body=b"{}")
    listening.close()
    assert [head.split(b" ")[0] for head in seen] == [b"GET", b"POST", *([b"POST"] if repeatable else [])]


@pytest.mark.parametrize("path", ["/large", "/cut"])
async def test_an_answer_that_cannot_be_used_counts_as_none(server: Server, pool: ConnectionPool, path: str) -> None:
    with pytest.raises(SourceAway):
        await GuardedCalls(pool, INSIDE).call("GET", f"http://127.0.0.1:{server.port}{path}")


@pytest.mark.parametrize(
    "url",
    ["http://example.com/", "https://127.0.0.1/", "https://169.254.169.254/x", "https://u:p@example.com/", "file:///x"],
)
async def test_forbidden_addresses_are_refused(pool: ConnectionPool, url: str) -> None:
    with pytest.raises(SourceRefused):
        await GuardedCalls(pool, EgressPolicy()).call("GET", url)


@pytest.mark.parametrize(("key", "result"), [("good", "works"), ("bad", "refused"), ("line\nbreak", "unclear")])
async def test_probes(server: Server, pool: ConnectionPool, key: str, result: str) -> None:
    url = f"http://127.0.0.1:{server.port}"
    assert await KeyProbe(pool, INSIDE).probe("simulated", url, Secret(key)) == result


async def test_a_provider_that_is_away_says_nothing_about_the_key(pool: ConnectionPool) -> None:
    assert await KeyProbe(pool, INSIDE).probe("simulated", "http://127.0.0.1:1", Secret("k")) == "unclear"
    assert await KeyProbe(pool, INSIDE).probe("nobody", None, Secret("k")) == "unclear"
