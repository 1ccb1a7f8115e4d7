"""A deadline that the caller names: nobody waits, is retried or listens past it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from gateway.balancing.hedging import LEAST_SAMPLES
from gateway.balancing.outcome import HUNG_S, OutcomeKind, late_kind
from gateway.balancing.steps import Attempt
from gateway.simulation.faults import Fault, FaultKind
from gateway.upstream.connect import Factory
from gateway.upstream.http1 import Http1Connection
from gateway.upstream.message import Origin
from tests.fakes.provider import RunningProvider, provider_config, running_provider
from tests.proxy.harness import Gateway, key, pool, running_gateway, tenant
from tests.proxy.scripted import Exchange, Script, scripted_upstream

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def provider() -> Iterator[RunningProvider]:
    with running_provider(provider_config(a=10_000, b=10_000)) as running:
        yield running


async def test_who_cannot_be_served_in_time_is_told_at_once(provider: RunningProvider) -> None:
    snapshot = tenant(
        pool("main", key("a", provider.base_url), limits={"rpm": 2}, settings={"retry": {"max_pause_s": 60}})
    )
    async with running_gateway(snapshot) as gateway:
        for _ in range(2):
            assert (await gateway.call("/v1/chat/completions", CHAT)).status == 200
        reply = await gateway.call("/v1/chat/completions", CHAT, headers={"x-llm-proxy-deadline": "0.5"})
        assert reply.status == 429
        assert int(reply.headers["retry-after"]) >= 10
        assert (await gateway.settled(3))[-1].total_ms < 400


async def test_an_answer_that_does_not_begin_in_time_is_given_up(provider: RunningProvider) -> None:
    provider.fault("a", Fault(kind=FaultKind.HANG, delay_s=30.0))
    settings = {"fallbacks": [{"pool": "other"}], "deadlines": {"total_s": 20}}
    snapshot = tenant(
        pool("main", key("a", provider.base_url), settings=settings, is_default=True),
        pool("other", key("b", provider.base_url)),
    )
    async with running_gateway(snapshot) as gateway:
        reply = await gateway.call("/v1/chat/completions", CHAT, headers={"x-llm-proxy-deadline": "0.2"})
        assert reply.status == 504
        assert (await gateway.row()).attempts == 1
        assert provider.use("b").requests == 0, "nothing falls back past the deadline"


async def test_nobody_gets_a_key_too_late_to_be_answered(provider: RunningProvider) -> None:
    one = tenant(pool("main", key("a", provider.base_url, max_in_flight=1)))
    async with running_gateway(one) as gateway:
        provider.fault("a", Fault(kind=FaultKind.DELAY, delay_s=0.4))
        first = asyncio.create_task(gateway.call("/v1/chat/completions", CHAT))
        assert (await first).status == 200, "the pool is known to take 0.4 s"
        held = asyncio.create_task(gateway.call("/v1/chat/completions", CHAT))
        await asyncio.sleep(0.02)
        reply = await gateway.call("/v1/chat/completions", CHAT, headers={"x-llm-proxy-deadline": "0.6"})
        assert reply.status == 429, "its turn would come after 0.4 s, and its answer after 0.8"
        assert (await held).status == 200
        assert provider.use("a").requests == 2, "nothing was sent to be cut"


async def test_who_waits_is_told_how_many_stood_before(provider: RunningProvider) -> None:
    async with running_gateway(tenant(pool("main", key("a", provider.base_url, max_in_flight=1)))) as gateway:
        replies = await asyncio.gather(*(gateway.call("/v1/chat/completions", CHAT) for _ in range(5)))
        behind = sorted(
            int(reply.headers["x-llm-proxy-queued-behind"])
            for reply in replies
            if "x-llm-proxy-queued-behind" in reply.headers
        )
        assert behind == list(range(len(behind)))
        assert len(behind) >= 3


@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "1e3", "٣", "99999999"])
async def test_what_is_no_number_of_seconds_is_refused(provider: RunningProvider, value: str) -> None:
    async with running_gateway(tenant(pool("main", key("a", provider.base_url)))) as gateway:
        reply = await gateway.call("/v1/chat/completions", CHAT, headers={"x-llm-proxy-deadline": value})
        assert reply.status == 400
        assert "x-llm-proxy-deadline" in reply.json()["error"]["message"]


async def _head_alone(exchange: Exchange) -> None:
    await exchange.head_of_stream()
    await exchange.closed_by_gateway()


async def _head_of_json(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n")
    await exchange.closed_by_gateway()


async def _signs_of_life(exchange: Exchange) -> None:
    await exchange.head_of_stream()
    await exchange.chunk(b": OPENROUTER PROCESSING\n\n")
    await exchange.closed_by_gateway()


@pytest.mark.parametrize("script", [_head_alone, _head_of_json, _signs_of_life])
@pytest.mark.parametrize("settings", [{}, {"hedging": {"share": 0.5}}])
async def test_a_head_is_no_beginning_of_an_answer(script: Script, settings: dict[str, object]) -> None:
    async with scripted_upstream(script) as upstream:
        main = pool("main", key("a", upstream.base_url), settings={"deadlines": {"idle_s": 9}, **settings})
        async with running_gateway(tenant(main)) as gateway:
            warm(gateway)
            async with asyncio.timeout(5):
                reply = await gateway.call("/v1/chat/completions", CHAT, headers={"x-llm-proxy-deadline": "0.2"})
            assert reply.status == 504
            assert (await gateway.row()).outcome == "deadline"
            assert len(upstream.exchanges) == 1
            assert next(iter(gateway.directory)).pools["main"].balancer.in_flight == 0


def warm(gateway: Gateway) -> None:
    """Let the pool hedge, if it does, from the first request on."""
    hedging = next(iter(gateway.directory)).pools["main"].hedging
    for _ in range(0 if hedging is None else LEAST_SAMPLES):
        assert hedging is not None
        hedging.ended("gpt-4o", [Attempt("x", 0.0, OutcomeKind.OK, 200, 0.01, 0.01)], "x")


async def test_a_deadline_covers_the_way_to_the_provider() -> None:
    class Unreachable:
        async def connect(self, origin: Origin, factory: Factory) -> Http1Connection:
            await asyncio.get_running_loop().create_future()
            raise AssertionError("never")

    async with running_gateway(
        tenant(pool("main", key("a", "http://127.0.0.1:9"))), connector=Unreachable()
    ) as gateway:
        async with asyncio.timeout(4):
            reply = await gateway.call("/v1/chat/completions", CHAT, headers={"x-llm-proxy-deadline": "0.2"})
        assert reply.status == 504
        assert gateway.upstream.view().open == 0


async def test_impatient_callers_take_no_key_out_of_service(provider: RunningProvider) -> None:
    async def slow_for_some(exchange: Exchange) -> None:
        if b"slow" in exchange.body:
            await exchange.closed_by_gateway()
        else:
            await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")

    async with scripted_upstream(slow_for_some) as upstream:
        snapshot = tenant(
            pool("main", key("a", upstream.base_url), settings={"fallbacks": [{"pool": "other"}]}, is_default=True),
            pool("other", key("b", provider.base_url)),
        )
        async with running_gateway(snapshot) as gateway:
            for _ in range(12):
                headers = {"x-llm-proxy-deadline": "0.05"}
                reply = await gateway.call("/v1/chat/completions", {**CHAT, "user": "slow"}, headers=headers)
                assert reply.status == 504
            reply = await gateway.call("/v1/chat/completions", CHAT)
            assert reply.headers["x-llm-proxy-key"] == "a", "nothing fell back from a key that works"


@pytest.mark.parametrize(
    ("had_s", "has_answered", "expected"),
    [
        (0.05, False, OutcomeKind.ABANDONED),
        (HUNG_S - 0.1, False, OutcomeKind.ABANDONED),
        (HUNG_S, False, OutcomeKind.TIMEOUT),
        (HUNG_S * 10, True, OutcomeKind.ABANDONED),
    ],
)
def test_only_a_key_that_answers_nobody_has_hung(had_s: float, has_answered: bool, expected: OutcomeKind) -> None:
    assert late_kind(had_s, has_answered=has_answered) is expected
