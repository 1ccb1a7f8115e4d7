"""The client protocol against servers that behave, misbehave and attack, over real sockets."""

from __future__ import annotations

import asyncio

import pytest

from gateway.upstream.errors import UpstreamBroken, UpstreamTimeout
from gateway.upstream.message import Deadlines, UpstreamRequest
from gateway.upstream.response import HIGH_WATER_BYTES
from tests.upstream.servers import FAST, Wire, drain, ok, pooling, post, replying, serving

H = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        pytest.param(ok(), b"hello", id="content-length"),
        pytest.param(ok(b""), b"", id="empty"),
        pytest.param(
            H + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", b"abcde", id="chunked"
        ),
        pytest.param(
            H + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-t: v\r\n\r\n", b"a", id="trailers-dropped"
        ),
        pytest.param(H + b"\r\nuntil the end", b"until the end", id="close-delimited"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\nold", b"old", id="http-1.0"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + ok(), b"hello", id="100-skipped"),
        pytest.param(b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" + ok(), b"hello", id="103-skipped"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", b"", id="204"),
        pytest.param(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", b"", id="304"),
    ],
)
@pytest.mark.parametrize("split", [False, True], ids=["one-read", "byte-by-byte"])
async def test_reads_every_legal_framing(answer: bytes, body: bytes, split: bool) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        if not split:
            await wire.say(answer)
            return
        for index in range(len(answer)):
            await wire.say(answer[index : index + 1])

    async with serving(script) as server, pooling() as pool:
        response = await pool.send(server.origin, post(), FAST)
        assert await drain(response) == body
        assert await response.read() == b""
        assert all(name == name.lower() and name not in {b"x-t", b"link"} for name, _ in response.headers)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(H + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", id="cl-te"),
        pytest.param(H + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n", id="te-cl"),
        pytest.param(H + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd", id="two-lengths"),
        pytest.param(H + b"content-length: 3, 3\r\n\r\nabc", id="length-list"),
        pytest.param(H + b"content-length: +3\r\n\r\nabc", id="signed-length"),
        pytest.param(H + b"content-length: -1\r\n\r\nabc", id="negative-length"),
        pytest.param(H + b"content-length: 99999999999999999999\r\n\r\nabc", id="length-overflow"),
        pytest.param(H + b"content-length: " + b"0" * 5000 + b"3\r\n\r\nabc", id="length-of-5001-digits"),
        pytest.param(b"HTTP/1.1 600 Odd\r\ncontent-length: 2\r\n\r\n{}", id="status-600"),
        pytest.param(b"HTTP/1.1 999 Odd\r\ncontent-length: 2\r\n\r\n{}", id="status-999"),
        pytest.param(H + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", id="te-gzip"),
        pytest.param(H + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", id="te-unknown"),
        pytest.param(H + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", id="te-not-last"),
        pytest.param(H + b"a: b\r\n c\r\ncontent-length: 0\r\n\r\n", id="obs-fold"),
        pytest.param(H + b"a: b\0c\r\ncontent-length: 0\r\n\r\n", id="nul"),
        pytest.param(H + b"a: b\rc\r\ncontent-length: 0\r\n\r\n", id="bare-cr"),
        pytest.param(H + b"a: b\nx: y\r\ncontent-length: 0\r\n\r\n", id="bare-lf"),
        pytest.param(H + b"a : b\r\ncontent-length: 0\r\n\r\n", id="space-before-colon"),
        pytest.param(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", id="101"),
        pytest.param(b"HTTP/1.1 100 C\r\n\r\n" * 40 + ok(), id="endless-1xx"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n", id="not-http"),
        pytest.param(H + b"x: " + b"a" * 70_000 + b"\r\n\r\n", id="huge-head"),
        pytest.param(H + b"transfer-encoding: chunked\r\n\r\nzz\r\n", id="bad-chunk-size"),
        pytest.param(H + b"transfer-encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", id="chunk-too-long"),
        pytest.param(H + b"transfer-encoding: chunked\r\n\r\n3\r\nab", id="chunked-cut"),
        pytest.param(H + b"content-length: 9\r\n\r\nshort", id="length-cut"),
        pytest.param(H + b"content-len", id="head-cut"),
        pytest.param(b"", id="nothing"),
    ],
)
async def test_refuses_ambiguous_and_broken_answers(answer: bytes) -> None:
    async with serving(replying(answer)) as server, pooling() as pool:
        with pytest.raises(UpstreamBroken):
            await drain(await pool.send(server.origin, post(), FAST))
        assert pool.view().idle == 0


async def test_bytes_before_an_error_are_delivered_first() -> None:
    async with serving(replying(H + b"content-length: 9\r\n\r\nshort")) as server, pooling() as pool:
        response = await pool.send(server.origin, post(), FAST)
        assert await response.read() == b"short"
        with pytest.raises(UpstreamBroken, match="middle of the answer"):
            await response.read()


@pytest.mark.parametrize("extra", [ok(b"poison"), b"HTTP/1.1", b"junk"], ids=["second-answer", "half-head", "junk"])
async def test_an_answer_nobody_asked_for_never_reaches_the_next_request(extra: bytes) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.say(ok(b"first") + extra)
        await wire.request()
        await wire.say(ok(b"second"))

    async with serving(script) as server, pooling() as pool:
        assert await drain(await pool.send(server.origin, post(), FAST)) == b"first"
        assert pool.view().idle == 0
        assert await drain(await pool.send(server.origin, post(), FAST)) == b"first"
        assert len(server.wires) == 2


async def test_bytes_on_an_idle_connection_close_it() -> None:
    spoken = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.say(ok())
        await spoken.wait()
        await wire.say(ok(b"poison"))
        await wire.gone()

    async with serving(script) as server, pooling() as pool:
        await drain(await pool.send(server.origin, post(), FAST))
        assert pool.view().idle == 1
        spoken.set()
        while pool.view().open:
            await asyncio.sleep(0)


async def test_head_has_no_body_whatever_its_length_says() -> None:
    async with serving(replying(H + b"content-length: 5\r\n\r\n")) as server, pooling() as pool:
        response = await pool.send(server.origin, UpstreamRequest(b"HEAD", b"/"), FAST)
        assert (response.status, await drain(response)) == (200, b"")


async def test_a_slow_reader_bounds_what_is_held() -> None:
    total = 24 * 1024 * 1024
    sent = 0

    async def script(wire: Wire) -> None:
        nonlocal sent
        await wire.request()
        await wire.say(H + b"content-length: %d\r\n\r\n" % total)
        while sent < total:
            await wire.say(b"x" * 65536)
            sent += 65536

    async with serving(script) as server, pooling() as pool:
        response = await pool.send(server.origin, post(), FAST)
        before = -1
        while before != sent:  # until the server is stuck
            before = sent
            for _ in range(50):
                await asyncio.sleep(0)
        assert response.held_bytes <= 3 * HIGH_WATER_BYTES
        assert sent < total
        assert len(await drain(response)) == total
        assert pool.view().idle == 1


async def test_small_chunks_that_nobody_reads_are_bounded_by_what_they_take() -> None:
    chunks = 0

    async def script(wire: Wire) -> None:
        nonlocal chunks
        await wire.request()
        await wire.say(H + b"transfer-encoding: chunked\r\n\r\n")
        while chunks < 4_000_000:
            await wire.say(b"2\r\nxy\r\n" * 1000)
            chunks += 1000

    async with serving(script) as server, pooling() as pool:
        response = await pool.send(server.origin, post(), FAST)
        before = -1
        while before != chunks:  # until the server is stuck
            before = chunks
            for _ in range(50):
                await asyncio.sleep(0)
        # What one read from the socket brought, and hardly more: each takes some thirty times its bytes.
        assert len(response._parts) < HIGH_WATER_BYTES / 4
        await response.aclose()


async def _hang(wire: Wire) -> None:
    await wire.request()
    await wire.gone()


async def _hang_in_body(wire: Wire) -> None:
    await wire.request()
    await wire.say(H + b"content-length: 10\r\n\r\nhalf")
    await wire.gone()


async def _drip(wire: Wire) -> None:
    await wire.request()
    await wire.say(H + b"transfer-encoding: chunked\r\n\r\n")
    while not wire.reader.at_eof():
        await wire.say(b"1\r\nx\r\n")
        await asyncio.sleep(0.01)


async def _never_read(wire: Wire) -> None:
    await wire.reader.readuntil(b"\r\n\r\n")
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("script", "deadlines", "phase"),
    [
        pytest.param(_hang, Deadlines(first_byte_s=0.05), "first_byte", id="first-byte"),
        pytest.param(_hang_in_body, Deadlines(idle_s=0.05), "idle", id="idle"),
        pytest.param(_drip, Deadlines(total_s=0.1), "total", id="total"),
        pytest.param(_never_read, Deadlines(write_s=0.05), "write", id="write"),
    ],
)
async def test_every_phase_has_a_deadline(script, deadlines: Deadlines, phase: str) -> None:  # type: ignore[no-untyped-def]
    async with serving(script) as server, pooling() as pool:
        with pytest.raises(UpstreamTimeout) as caught:
            await drain(
                await pool.send(
                    server.origin, post(b"x" * (32 * 1024 * 1024) if phase == "write" else b"{}"), deadlines
                )
            )
        assert caught.value.phase == phase
        for _ in range(3):
            await asyncio.sleep(0)
        assert pool.view().open == 0


async def test_a_deadline_of_one_request_does_not_reach_into_the_next() -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.say(ok())
        await wire.request()
        await asyncio.sleep(0.6)
        await wire.say(ok(b"late"))

    async with serving(script) as server, pooling() as pool:
        await drain(await pool.send(server.origin, post(), Deadlines(first_byte_s=0.5, idle_s=0.5)))
        assert await drain(await pool.send(server.origin, post(), FAST)) == b"late"
        assert len(server.wires) == 1


@pytest.mark.parametrize("where", ["head", "body"])
async def test_cancelling_closes_the_connection(where: str) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        if where == "body":
            await wire.say(H + b"content-length: 10\r\n\r\n")
        asked.set()
        await wire.gone()
        gone.set()

    async with serving(script) as server, pooling() as pool:

        async def call() -> bytes:
            return await drain(await pool.send(server.origin, post(), FAST))

        task = asyncio.create_task(call())
        await asked.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 5)
        assert pool.view().open == 0


async def test_closing_a_good_answer_early_cancels_the_upstream() -> None:
    gone = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.say(H + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        await wire.gone()
        gone.set()

    async with serving(script) as server, pooling() as pool:
        response = await pool.send(server.origin, post(), FAST)
        await response.aclose()
        await asyncio.wait_for(gone.wait(), 5)


async def test_the_rest_of_a_short_error_is_thrown_away_and_its_connection_kept() -> None:
    go = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.say(b"HTTP/1.1 429 Slow\r\ncontent-length: 8\r\n\r\nhalf")
        await go.wait()
        await wire.say(b"half")
        await wire.request()
        await wire.say(ok(b"again"))

    async with serving(script) as server, pooling() as pool:
        response = await pool.send(server.origin, post(), FAST)
        await response.aclose()
        go.set()
        while not pool.view().idle:
            await asyncio.sleep(0)
        assert await drain(await pool.send(server.origin, post(), FAST)) == b"again"
        assert len(server.wires) == 1


async def test_a_long_unwanted_error_is_not_read_to_its_end() -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.say(b"HTTP/1.1 500 Oops\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            await wire.say(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")

    async with serving(script) as server, pooling() as pool:
        response = await pool.send(server.origin, post(), FAST)
        await response.aclose()
        while pool.view().open:
            await asyncio.sleep(0)
