"""Two attempts at a time on real sockets: the first answer is relayed, the other connection is closed."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from gateway.balancing.decision import Ask, Lease
from gateway.balancing.exchange import Exchange
from gateway.balancing.hedging import Hedge
from gateway.balancing.outcome import OutcomeKind
from gateway.balancing.retry import RetryBudget, RetryPolicy
from gateway.balancing.steps import Answered, Broke, CallerGone, Failure, Send
from gateway.upstream.chunks import chunks
from gateway.upstream.dispatch import Answer
from gateway.upstream.race import race
from tests.upstream.servers import Wire, ok, replying
from tests.upstream.test_dispatch import SSE, chunk
from tests.upstream.world import Leases, world


def at_once() -> Hedge:
    return Hedge(0.01, 0.0, RetryBudget(burst=1.0))


class Silent:
    """Reads the request, says nothing, and notes when it is hung up on."""

    def __init__(self, *first: bytes) -> None:
        self.first = first
        self.asked, self.gone = asyncio.Event(), asyncio.Event()

    async def __call__(self, wire: Wire) -> None:
        await wire.request()
        self.asked.set()
        for data in self.first:
            await wire.say(data)
        await wire.gone()
        self.gone.set()


@pytest.mark.parametrize("first", [(), (SSE,), (SSE + chunk(b": ping\n\n"),)], ids=["no head", "head", "ping"])
async def test_the_second_key_answers_for_one_that_is_late(first: tuple[bytes, ...]) -> None:
    silent = Silent(*first)
    async with world(a=silent, b=replying(ok(b'{"n": 2}'))) as w:
        answer = await w.call(hedge=at_once())
        assert isinstance(answer, Answer)
        assert answer.lease.endpoint.id == "b"
        assert [data async for data in chunks(answer)] == [b'{"n": 2}']
        await answer.finish()
        await asyncio.wait_for(silent.gone.wait(), 5)
        assert w.leases.kinds == [("a", OutcomeKind.ABANDONED), ("b", OutcomeKind.OK)]


async def test_the_first_key_answers_after_all() -> None:
    silent, go = Silent(), asyncio.Event()

    async def slow(wire: Wire) -> None:
        await wire.request()
        await go.wait()
        await wire.say(SSE + chunk(b'data: {"n":1}\n\n') + b"0\r\n\r\n")

    async def second(wire: Wire) -> None:
        go.set()
        await silent(wire)

    async with world(a=slow, b=second) as w:
        answer = await w.call(hedge=at_once())
        assert isinstance(answer, Answer)
        assert answer.lease.endpoint.id == "a"
        assert b'{"n":1}' in b"".join([data async for data in chunks(answer)])
        await answer.finish()
        await asyncio.wait_for(silent.gone.wait(), 5)
        assert w.leases.kinds == [("b", OutcomeKind.ABANDONED), ("a", OutcomeKind.OK)]


async def test_an_error_of_one_waits_for_the_other() -> None:
    observed: list[Any] = []

    async def slow(wire: Wire) -> None:
        await wire.request()
        while not observed:
            await asyncio.sleep(0.002)
        await wire.say(ok(b"{}"))

    async def failing(wire: Wire) -> None:
        await wire.request()
        await wire.say(SSE + chunk(b'event: error\ndata: {"error": {"type": "overloaded_error"}}\n\n'))
        await wire.gone()

    async with world(a=slow, b=failing) as w:
        w.leases.observed = observed
        answer = await w.call(hedge=at_once())
        assert isinstance(answer, Answer)
        await answer.finish()
        assert w.leases.kinds == [("b", OutcomeKind.SERVER_ERROR), ("a", OutcomeKind.OK)]


async def test_both_fail_and_the_last_answer_is_told() -> None:
    async with world(a=Silent(), b=replying(b"HTTP/1.1 503 Down\r\ncontent-length: 2\r\n\r\n{}")) as w:
        w.deadlines = replace(w.deadlines, first_byte_s=0.2)
        failure = await w.call(max_attempts=2, hedge=at_once())
        assert isinstance(failure, Failure)
        assert failure.kind is OutcomeKind.TIMEOUT
        assert w.leases.kinds == [("b", OutcomeKind.SERVER_ERROR), ("a", OutcomeKind.TIMEOUT)]


async def test_a_caller_that_leaves_ends_both() -> None:
    one, two = Silent(), Silent()
    async with world(a=one, b=two) as w:
        task: asyncio.Task[Any] = asyncio.create_task(w.call(hedge=at_once()))
        await asyncio.wait_for(asyncio.gather(one.asked.wait(), two.asked.wait()), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(asyncio.gather(one.gone.wait(), two.gone.wait()), 5)
        assert w.leases.kinds == [("a", OutcomeKind.ABANDONED), ("b", OutcomeKind.ABANDONED)]


class Attempt:
    """An attempt whose end is the test's: "b" answers, "a" takes its time to leave off."""

    def __init__(self, leaving: asyncio.Event) -> None:
        self.leaving = leaving
        self.dropped = False
        self.endpoint = ""

    async def attempt(self, lease: Lease) -> Answered | Broke:
        self.endpoint = lease.endpoint.id
        if self.endpoint == "b":
            return Answered(200, lease=lease)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.leaving.set()
            await asyncio.sleep(0)
            raise
        raise AssertionError("it ended by itself")

    def drop(self) -> None:
        self.dropped = True


async def test_a_caller_that_leaves_while_the_loser_leaves_off_ends_the_winner_too() -> None:
    leases, leaving, made = Leases(["a", "b"]), asyncio.Event(), list[Attempt]()
    exchange = Exchange(leases, Ask("m"), RetryPolicy(2), RetryBudget(), rng=random.Random(1), hedge=at_once())

    def runner(_: Lease) -> Attempt:
        made.append(Attempt(leaving))
        return made[-1]

    clock = asyncio.get_running_loop().time
    first = exchange.start(clock())
    assert isinstance(first, Send)
    task = asyncio.create_task(race(exchange, first.lease, runner, clock=clock))
    await asyncio.wait_for(leaving.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [(each.endpoint, each.dropped) for each in made] == [("a", True), ("b", True)]
    exchange.step(CallerGone(), clock())
    assert leases.kinds == [("a", OutcomeKind.ABANDONED), ("b", OutcomeKind.ABANDONED)]


async def test_a_key_is_looked_up_before_it_may_be_gone() -> None:
    async with world(a=Silent()) as w:
        calling = asyncio.create_task(w.call(hedge=at_once()))
        # A callback after the first step of the call, and before that of any task which it begins.
        looked: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: looked.set_result(list(w.prepared)))
        assert await looked == ["a"], "a reload that comes now may take it away"
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        assert not w.leases.open
