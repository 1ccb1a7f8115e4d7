"""What the client protocol writes: exact bytes, refused requests, bodies that are produced while they are sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.upstream.message import UpstreamRequest
from tests.upstream.servers import FAST, Chunks, Wire, drain, ok, pooling, replying, serving


async def test_request_bytes_on_the_wire() -> None:
    async with serving(replying(ok())) as server, pooling() as pool:
        request = UpstreamRequest(
            b"POST", b"/v1/x?a=b", [(b"accept", b"*/*")], b"{}", fixed=b"authorization: Bearer k\r\n"
        )
        await drain(await pool.send(server.origin, request, FAST))
        assert server.wires[0].heads == [
            b"POST /v1/x?a=b HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nauthorization: Bearer k\r\naccept: */*\r\n"
            b"content-length: 2\r\n\r\n" % server.origin.port
        ]


@pytest.mark.parametrize(
    ("method", "target", "header"),
    [
        (b"POST", b"/ HTTP/1.1\r\nx: y", (b"a", b"b")),
        (b"POST", b"http://evil/x", (b"a", b"b")),
        (b"POST", b"//evil\\x", (b"a", b"b")),
        (b"POST", b"/a#b", (b"a", b"b")),
        (b"POST", b"/a\xff", (b"a", b"b")),
        (b"POST", b"", (b"a", b"b")),
        (b"CONNECT", b"/", (b"a", b"b")),
        (b"PO ST", b"/", (b"a", b"b")),
        (b"POST", b"/", (b"a", b"b\r\nx: y")),
        (b"POST", b"/", (b"a", b"b\nx: y")),
        (b"POST", b"/", (b"a", b"b\rc")),
        (b"POST", b"/", (b"a", b"b\0")),
        (b"POST", b"/", (b"a: b\r\nc", b"d")),
        (b"POST", b"/", (b"a b", b"c")),
        (b"POST", b"/", (b"", b"c")),
        (b"POST", b"/", (b"Transfer-Encoding", b"chunked")),
        (b"POST", b"/", (b"content-length", b"1")),
        (b"POST", b"/", (b"Host", b"evil")),
        (b"POST", b"/", (b"connection", b"x")),
    ],
)
async def test_nothing_ambiguous_is_ever_written(method: bytes, target: bytes, header: tuple[bytes, bytes]) -> None:
    async with serving(replying(ok())) as server, pooling() as pool:
        with pytest.raises(ValueError):
            await pool.send(server.origin, UpstreamRequest(method, target, [header], b"x"), FAST)
        assert server.wires == []


@pytest.mark.parametrize("length", [None, 6])
async def test_sends_a_body_that_is_produced_meanwhile(length: int | None) -> None:
    got = []

    async def script(wire: Wire) -> None:
        head, body = await wire.request()
        got.append((head, body or await wire.reader.readuntil(b"0\r\n\r\n")))
        await wire.say(ok())

    async with serving(script) as server, pooling() as pool:
        request = UpstreamRequest(b"POST", b"/", (), Chunks([b"abc", b"", b"def"], length))
        assert not request.replayable
        assert await drain(await pool.send(server.origin, request, FAST)) == b"hello"
        assert pool.view().idle == 1
    assert got[0][1] == (b"abcdef" if length else b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")


@pytest.mark.parametrize("chunks", [[b"abc"], [b"abcdefgh"]], ids=["short", "long"])
async def test_a_body_of_another_length_than_announced_is_an_error(chunks: list[bytes]) -> None:
    async def script(wire: Wire) -> None:
        await wire.gone()

    async with serving(script) as server, pooling() as pool:
        with pytest.raises(ValueError, match="body"):
            await pool.send(server.origin, UpstreamRequest(b"POST", b"/", (), Chunks(chunks, 6)), FAST)
        assert pool.view().open in {0, 1}


async def test_an_early_answer_is_relayed_and_the_upload_stops() -> None:
    async def script(wire: Wire) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        await wire.say(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await wire.gone()

    source = Chunks([b"x" * 1000], stop=asyncio.Event())
    async with serving(script) as server, pooling() as pool:
        response = await pool.send(server.origin, UpstreamRequest(b"POST", b"/", (), source), FAST)
        assert (response.status, await drain(response)) == (413, b"big")
        await asyncio.sleep(0)
        assert source.closed
        assert pool.view().idle == 0


async def test_an_error_of_the_body_source_reaches_the_sender() -> None:
    class Failing(Chunks):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"a"
            raise LookupError("the caller is gone")

    async def script(wire: Wire) -> None:
        await wire.gone()

    async with serving(script) as server, pooling() as pool:
        with pytest.raises(LookupError):
            await pool.send(server.origin, UpstreamRequest(b"POST", b"/", (), Failing([])), FAST)


async def test_a_slow_upstream_stops_the_body_source() -> None:
    produced = 0
    go = asyncio.Event()

    class Endless(Chunks):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            nonlocal produced
            for _ in range(400):
                produced += 65536
                yield b"x" * 65536
                await asyncio.sleep(0)

    async def script(wire: Wire) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        await go.wait()
        await wire.reader.readexactly(400 * 65536)
        await wire.say(ok())

    async with serving(script) as server, pooling() as pool:
        request = UpstreamRequest(b"POST", b"/", (), Endless([], 400 * 65536))
        task = asyncio.create_task(pool.send(server.origin, request, FAST))
        before = -1
        while before != produced or not produced:
            before = produced
            for _ in range(50):
                await asyncio.sleep(0)
        assert produced < 400 * 65536
        go.set()
        assert await drain(await task) == b"hello"
        assert pool.view().idle == 1
