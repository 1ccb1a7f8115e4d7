"""What is poured goes on as it arrives, in order and once; what is declined, the end and errors are the reader's."""

from __future__ import annotations

import asyncio

import pytest

from gateway.upstream.errors import UpstreamBroken
from gateway.upstream.response import UpstreamResponse
from tests.upstream.servers import FAST, Wire, pooling, post, serving

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
PIECES = [b"%d;" % number * 50 for number in range(40)]


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


async def _pours(wire: Wire, end: bytes) -> None:
    await wire.request()
    await wire.say(HEAD + _chunk(PIECES[0]))
    for piece in PIECES[1:]:
        await asyncio.sleep(0)
        await wire.say(_chunk(piece))
    await wire.say(end)


async def _whole(wire: Wire) -> None:
    await _pours(wire, b"0\r\n\r\n")


async def _broken(wire: Wire) -> None:
    await _pours(wire, b"no chunk\r\n")


async def _relayed(response: UpstreamResponse, took: list[bytes], *, decline_each: int = 0) -> bytes:
    """Read and pour in turn, as the data path does; `decline_each`: of so many pieces one is declined."""
    all_of_it, offered = bytearray(), 0

    def take(piece: bytes) -> bool:
        nonlocal offered
        offered += 1
        if decline_each and offered % decline_each == 0:
            return False
        took.append(piece)
        all_of_it.extend(piece)
        return True

    while data := await response.read():
        all_of_it += data
        await response.pour(take)
    return bytes(all_of_it)


@pytest.mark.parametrize("decline_each", [0, 1, 2, 3])
async def test_every_byte_arrives_once_and_in_order(decline_each: int) -> None:
    async with serving(_whole) as server, pooling() as pool:
        took: list[bytes] = []
        response = await pool.send(server.origin, post(), FAST)
        assert await _relayed(response, took, decline_each=decline_each) == b"".join(PIECES)
        assert response.held_bytes == 0


async def test_pieces_are_taken_while_the_reader_waits() -> None:
    more = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.say(HEAD + _chunk(b"first"))
        for piece in (b"second", b"third"):
            await more.wait()
            more.clear()
            await wire.say(_chunk(piece))
        await more.wait()
        await wire.say(b"0\r\n\r\n")

    async with serving(script) as server, pooling() as pool:
        response = await pool.send(server.origin, post(), FAST)
        assert await response.read() == b"first"
        took: list[bytes] = []

        def take(piece: bytes) -> bool:
            took.append(piece)
            more.set()
            return True

        more.set()
        await response.pour(take)
        assert took == [b"second", b"third"]
        assert response.ended
        assert await response.read() == b""


async def test_an_error_is_the_readers() -> None:
    async with serving(_broken) as server, pooling() as pool:
        response = await pool.send(server.origin, post(), FAST)
        with pytest.raises(UpstreamBroken):
            await _relayed(response, [])
        assert response.failed


async def test_cancelling_closes_the_connection() -> None:
    gone = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.say(HEAD + _chunk(b"first"))
        await wire.gone()
        gone.set()

    async with serving(script) as server, pooling() as pool:
        response = await pool.send(server.origin, post(), FAST)
        assert await response.read() == b"first"
        pouring = asyncio.ensure_future(response.pour(lambda piece: bool(piece)))
        await asyncio.sleep(0)
        pouring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pouring
        async with asyncio.timeout(10):
            await gone.wait()
