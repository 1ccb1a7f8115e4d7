"""The pool: reuse, bounds, fairness, stale connections, drain."""

from __future__ import annotations

import asyncio

import pytest

from gateway.upstream.errors import ConnectFailed, PoolExhausted, UpstreamBroken
from gateway.upstream.message import Deadlines, Origin, UpstreamRequest
from gateway.upstream.pool import ConnectionPool, PoolLimits
from tests.upstream.servers import FAST, Chunks, Server, Wire, drain, ok, pooling, post, replying, serving


async def fetch(pool: ConnectionPool, server: Server, request: UpstreamRequest | None = None) -> bytes:
    return await drain(await pool.send(server.origin, request or post(), FAST))


async def forever(wire: Wire) -> None:
    while True:
        _, body = await wire.request()
        await wire.say(ok(body))


async def test_reuses_the_connection_used_last() -> None:
    async with serving(forever) as server, pooling() as pool:
        await asyncio.gather(*(fetch(pool, server) for _ in range(3)))
        assert pool.view().idle == 3
        served = [len(wire.heads) for wire in server.wires]
        for _ in range(4):
            await fetch(pool, server)
        grown = sorted(len(wire.heads) - before for wire, before in zip(server.wires, served, strict=True))
        assert grown == [0, 0, 4]
        assert (pool.view().opened_total, pool.view().reused_total) == (3, 4)


@pytest.mark.parametrize("header", [b"connection: close\r\n", b"Connection: Close\r\n"])
async def test_a_connection_that_says_close_is_not_reused(header: bytes) -> None:
    async with serving(replying(ok(b"a", header))) as server, pooling() as pool:
        await fetch(pool, server)
        assert pool.view().idle == 0
        await fetch(pool, server)
        assert len(server.wires) == 2


async def closes_on_second(wire: Wire) -> None:
    await wire.request()
    await wire.say(ok(b"served"))
    await wire.request()
    if wire.number == 0:
        return
    await wire.say(ok(b"again"))


async def test_a_stale_connection_is_replaced_once() -> None:
    async with serving(closes_on_second) as server, pooling() as pool:
        assert await fetch(pool, server) == b"served"
        assert await fetch(pool, server) == b"served"
        assert [len(wire.heads) for wire in server.wires] == [2, 1]


async def test_a_body_that_cannot_be_sent_again_is_not() -> None:
    async with serving(closes_on_second) as server, pooling() as pool:
        await fetch(pool, server)
        with pytest.raises(UpstreamBroken):
            await fetch(pool, server, UpstreamRequest(b"POST", b"/", (), Chunks([b"abc"], 3)))
        assert len(server.wires) == 1


async def test_a_fresh_connection_that_closes_is_the_provider_s_failure() -> None:
    async def script(wire: Wire) -> None:
        await wire.request()

    async with serving(script) as server, pooling() as pool:
        with pytest.raises(UpstreamBroken, match="before it answered"):
            await fetch(pool, server)
        assert len(server.wires) == 1


async def test_a_reused_connection_that_broke_after_its_first_byte_is_not_retried() -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.say(ok())
        await wire.request()
        await wire.say(b"HTTP/1.1 2")

    async with serving(script) as server, pooling() as pool:
        await fetch(pool, server)
        with pytest.raises(UpstreamBroken):
            await fetch(pool, server)
        assert len(server.wires) == 1


async def test_bounds_hold_and_waiters_are_served_in_order() -> None:
    open_now = peak = 0
    order: list[int] = []

    async def script(wire: Wire) -> None:
        nonlocal open_now, peak
        while True:
            _, body = await wire.request()
            open_now += 1
            peak = max(peak, open_now)
            await asyncio.sleep(0)
            order.append(int(body))
            open_now -= 1
            await wire.say(ok(body))

    async with serving(script) as server, pooling(PoolLimits(per_origin=1)) as pool:
        bodies = await asyncio.gather(*(fetch(pool, server, post(b"%d" % n)) for n in range(20)))
        assert [int(body) for body in bodies] == order == list(range(20))
        assert peak == 1
        assert len(server.wires) == 1


async def test_the_total_bound_moves_connections_between_origins() -> None:
    async with serving(forever) as one, serving(forever) as two, pooling(PoolLimits(total=2)) as pool:
        calls = [fetch(pool, server, post(b"%d" % n)) for n in range(10) for server in (one, two)]
        assert sorted(await asyncio.gather(*calls)) == sorted([b"%d" % n for n in range(10)] * 2)
        assert pool.view().open <= 2
        assert pool.view().waiting == 0


async def test_a_dying_connection_frees_its_slot_for_the_next_waiter() -> None:
    async with (
        serving(replying(ok(b"x", b"connection: close\r\n"))) as server,
        pooling(PoolLimits(per_origin=2)) as pool,
    ):
        assert await asyncio.gather(*(fetch(pool, server) for _ in range(9))) == [b"x"] * 9
        assert len(server.wires) == 9


async def test_waiting_for_a_connection_has_a_deadline() -> None:
    async def script(wire: Wire) -> None:
        await wire.gone()

    async with serving(script) as server, pooling(PoolLimits(per_origin=1)) as pool:
        first = asyncio.create_task(fetch(pool, server))
        while not server.wires:
            await asyncio.sleep(0)
        with pytest.raises(PoolExhausted):
            await pool.send(server.origin, post(), Deadlines(connect_s=0.02))
        assert pool.view().waiting == 0
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_a_cancelled_waiter_gives_its_turn_to_the_next() -> None:
    async with serving(forever) as server, pooling(PoolLimits(per_origin=1)) as pool:
        tasks = [asyncio.create_task(fetch(pool, server, post(b"%d" % n))) for n in range(12)]
        await asyncio.sleep(0)
        for task in tasks[1::2]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert done[::2] == [b"%d" % n for n in range(0, 12, 2)]
        assert await fetch(pool, server, post(b"after")) == b"after"
        assert pool.view().open == 1


@pytest.mark.parametrize("seed", range(5))
async def test_no_slot_leaks_under_random_cancellation(seed: int) -> None:
    import random

    rng = random.Random(seed)

    async def script(wire: Wire) -> None:
        while True:
            _, body = await wire.request()
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            if rng.random() < 0.2:
                return
            await wire.say(ok(body))

    async with serving(script) as server, pooling(PoolLimits(per_origin=3, total=3)) as pool:
        tasks = [asyncio.create_task(fetch(pool, server, post(b"%d" % n))) for n in range(60)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            if rng.random() < 0.3:
                rng.choice(tasks).cancel()
            assert 0 <= pool.view().open <= 3
        for n, result in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
            assert result == b"%d" % n or isinstance(result, asyncio.CancelledError | UpstreamBroken)
        for _ in range(10):
            await asyncio.sleep(0)
        assert pool.view().open == pool.view().idle
        assert pool.view().waiting == 0


async def test_unused_connections_age_out() -> None:
    async with serving(forever) as server, pooling(PoolLimits(keep_alive_s=0.02)) as pool:
        await fetch(pool, server)
        assert pool.view().idle == 1
        while pool.view().idle:
            await asyncio.sleep(0.005)
        assert pool.view().open == 0


async def test_refused_and_closed() -> None:
    async with serving(forever) as server:
        port = server.origin.port
    async with pooling() as pool:
        with pytest.raises(ConnectFailed):
            await pool.send(Origin("http", "127.0.0.1", port), post(), FAST)
        assert pool.view().open == 0
        await pool.close()
        with pytest.raises(ConnectFailed, match="shutting down"):
            await pool.send(Origin("http", "127.0.0.1", port), post(), FAST)


async def test_close_lets_what_is_under_way_finish() -> None:
    go = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await go.wait()
        await wire.say(ok(b"finished"))

    async with serving(script) as server, pooling() as pool:
        task = asyncio.create_task(fetch(pool, server))
        while not server.wires or not server.wires[0].heads:
            await asyncio.sleep(0)
        closing = asyncio.create_task(pool.close(drain_s=5))
        await asyncio.sleep(0)
        go.set()
        assert await task == b"finished"
        await closing
        assert pool.view().open == 0
