"""`AsyncLoadBalancer`: the same engine on the caller's loop."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections import Counter

import pytest

from gateway.simulation.faults import Fault, FaultKind
from llm_proxy import AsyncLoadBalancer, BalancerClosed, LLMProxyError, ProviderError
from tests.fakes.provider import RunningProvider
from tests.llm_proxy.conftest import HELLO, WEIGHTS, document


async def test_complete_stream_messages_stats(provider: RunningProvider) -> None:
    async with AsyncLoadBalancer(document(provider)) as balancer:
        whole = await balancer.complete(model="gpt-4o", messages=HELLO)
        async with await balancer.stream(model="gpt-4o", messages=HELLO) as stream:
            text = "".join([chunk.text async for chunk in stream])
        message = await balancer.messages(model="claude-sonnet-5", messages=HELLO, max_tokens=50)
        events = [
            event
            async for event in await balancer.messages(
                model="claude-sonnet-5", messages=HELLO, max_tokens=50, stream=True
            )
        ]
        stats = balancer.stats()
    assert whole.text == text != ""
    assert message.text == "".join(event.text for event in events)
    assert sum(key.outcomes["ok"] for key in stats.keys if key.outcomes) == 4
    with pytest.raises(BalancerClosed):
        await balancer.complete(model="gpt-4o", messages=HELLO)


async def test_many_at_once_have_exact_weights(provider: RunningProvider) -> None:
    async with AsyncLoadBalancer(document(provider)) as balancer:
        answers = await asyncio.gather(*(balancer.complete(model="gpt-4o", messages=HELLO) for _ in range(100)))
    assert Counter(answer.key for answer in answers) == WEIGHTS


async def test_cancelling_gives_the_lease_and_the_connection_back(provider: RunningProvider) -> None:
    for name in WEIGHTS:
        provider.fault(name, Fault(kind=FaultKind.HANG))
    async with AsyncLoadBalancer(document(provider)) as balancer:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await balancer.complete(model="gpt-4o", messages=HELLO)
        stats = balancer.stats()
    assert (stats.in_flight, stats.waiting, stats.idle_connections) == (0, 0, 0)


async def test_callers_wait_in_line_and_each_gets_through(provider: RunningProvider) -> None:
    async with AsyncLoadBalancer(document(provider, max_in_flight=1)) as balancer:
        tasks = [asyncio.create_task(balancer.complete(model="gpt-4o", messages=HELLO)) for _ in range(40)]
        tasks[35].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert balancer.stats().waiting == 0
    assert len([answer for answer in answers if not isinstance(answer, BaseException)]) == 39
    assert max(provider.use(name).max_in_flight for name in WEIGHTS) == 1


async def test_a_dropped_stream_gives_its_lease_back(provider: RunningProvider) -> None:
    async with AsyncLoadBalancer(document(provider)) as balancer:
        stream = await balancer.stream(model="gpt-4o", messages=HELLO)
        await anext(stream)
        await stream.close()
        assert balancer.stats().in_flight == 0
        stream = await balancer.stream(model="gpt-4o", messages=HELLO)
        await anext(stream)
        del stream
        await asyncio.sleep(0)
        assert balancer.stats().in_flight == 0


async def test_errors_are_the_same(provider: RunningProvider) -> None:
    async with AsyncLoadBalancer(document(provider)) as balancer:
        with pytest.raises(ProviderError, match="non-empty array"):
            await balancer.complete(model="gpt-4o", messages=[])
    assert "sim-key" not in repr(balancer)


def test_it_outlives_its_loop_and_keeps_what_it_learned(provider: RunningProvider) -> None:
    balancer = AsyncLoadBalancer(document(provider))
    with warnings.catch_warnings():
        # The sockets of a loop that ended without `close` are collected, and Python says so to those who ask.
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(3):
            assert asyncio.run(balancer.complete(model="gpt-4o", messages=HELLO)).text
        assert sum(key.requests for key in balancer.stats().keys) == 3
        asyncio.run(balancer.close())
        del balancer
        gc.collect()


def test_a_stream_that_outlives_its_loop_gives_its_place_back(provider: RunningProvider) -> None:
    balancer = AsyncLoadBalancer(document(provider, max_in_flight=1))
    kept = []

    async def begin(balancer: AsyncLoadBalancer) -> None:
        kept.append(await balancer.stream(model="gpt-4o", messages=HELLO))
        await anext(kept[-1])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(2 * len(WEIGHTS)):
            asyncio.run(begin(balancer))
        assert balancer.stats().in_flight == 1, "that of the last loop"
        asyncio.run(balancer.close())
        kept.clear()
        del balancer
        gc.collect()


async def test_two_loops_at_once_are_refused(provider: RunningProvider) -> None:
    async with AsyncLoadBalancer(document(provider)) as balancer:
        await balancer.complete(model="gpt-4o", messages=HELLO)

        def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="one event loop at a time"):
                asyncio.run(balancer.complete(model="gpt-4o", messages=HELLO))

        await asyncio.to_thread(elsewhere)


async def test_closing_ends_calls_that_are_under_way(provider: RunningProvider) -> None:
    for name in WEIGHTS:
        provider.fault(name, Fault(kind=FaultKind.HANG))
    balancer = AsyncLoadBalancer(document(provider))
    task = asyncio.create_task(balancer.complete(model="gpt-4o", messages=HELLO))
    while not balancer.stats().in_flight or not sum(provider.requests.values()):
        await asyncio.sleep(0)
    await balancer.close()
    with pytest.raises(LLMProxyError):
        await task
