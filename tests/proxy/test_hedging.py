"""Hedging as a caller of the gateway sees it: who answered, what it is told, what is counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gateway.balancing.hedging import LEAST_SAMPLES, HedgePolicy, Hedging
from gateway.balancing.outcome import OutcomeKind, TokenUsage
from gateway.balancing.steps import Attempt
from gateway.metering.pricing import load_prices
from gateway.proxy.record import GivenUp
from gateway.proxy.runtime import PoolRuntime
from gateway.simulation.faults import Fault, FaultKind
from tests.fakes.provider import RunningProvider, provider_config, running_provider
from tests.proxy.harness import Gateway, key, pool, running_gateway, tenant

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
ON: dict[str, Any] = {"hedging": {"share": 0.5, "least_s": 0.01}}


@pytest.fixture
def provider() -> Iterator[RunningProvider]:
    with running_provider(provider_config(a=10_000, b=10_000)) as running:
        yield running


def snapshot(provider: RunningProvider, settings: dict[str, Any], **more: Any) -> Any:
    keys = key("a", provider.base_url, region="eu-1"), key("b", provider.base_url, region=more.get("region", "eu-2"))
    return tenant(pool("main", *keys, settings=settings, is_default=True))


def warmed(gateway: Gateway) -> PoolRuntime:
    """Return the pool, after enough answers of 0.4 s each."""
    found = next(iter(gateway.directory)).pools["main"]
    if found.hedging is not None:
        for _ in range(LEAST_SAMPLES):
            found.hedging.ended("gpt-4o", [Attempt("x", 0.0, OutcomeKind.OK, 200, 0.4, 0.4)], "x")
    return found


@pytest.mark.parametrize("stream", [False, True])
async def test_the_second_key_answers_and_is_named(provider: RunningProvider, stream: bool) -> None:
    async with running_gateway(snapshot(provider, ON)) as gateway:
        found = warmed(gateway)
        provider.fault("a", Fault(kind=FaultKind.HANG, delay_s=30.0))
        replies = [
            await gateway.call("/v1/chat/completions", {**CHAT, "stream": stream}, headers={"x-llm-proxy-explain": "1"})
            for _ in range(2)
        ]
        assert [reply.headers["x-llm-proxy-key"] for reply in replies] == ["b", "b"]
        hedged = [reply for reply in replies if "x-llm-proxy-hedge" in reply.headers]
        assert [reply.headers["x-llm-proxy-hedge"] for reply in hedged] == ["won"]
        assert hedged[0].headers["x-llm-proxy-attempts"] == "2"
        rows = await gateway.settled(2)
        assert {row.region for row in rows} == {"eu-2"}
        assert sorted(row.attempts for row in rows) == [1, 2]
        assert found.hedging is not None
        assert (found.hedging.won, found.hedging.lost) == (1, 0)
        (answered,) = {(row.input_tokens, row.output_tokens) for row in rows}
        estimated = found.hedging.est_input_tokens, found.hedging.est_output_tokens
        assert estimated == (answered[0], 0 if stream else answered[1]), "what was given up, once"
        assert found.balancer.in_flight == 0


async def test_it_is_off_unless_it_is_set(provider: RunningProvider) -> None:
    async with running_gateway(snapshot(provider, {})) as gateway:
        assert warmed(gateway).hedging is None


async def test_residency_is_not_left_for_speed(provider: RunningProvider) -> None:
    async with running_gateway(snapshot(provider, ON, region="us-1")) as gateway:
        warmed(gateway)
        provider.fault("a", Fault(kind=FaultKind.DELAY, delay_s=0.8))
        reply = await gateway.call("/v1/chat/completions", CHAT, headers={"x-llm-proxy-residency": "eu-*"})
        assert reply.headers["x-llm-proxy-key"] == "a"
        assert "x-llm-proxy-hedge" not in reply.headers
        assert provider.use("b").requests == 0


async def test_a_change_of_settings_keeps_what_was_measured(provider: RunningProvider) -> None:
    async with running_gateway(snapshot(provider, ON)) as gateway:
        before = warmed(gateway).hedging
        gateway.directory._put(snapshot(provider, {**ON, "failover": False}))
        assert warmed(gateway).hedging is before


@pytest.mark.parametrize(("streamed", "output"), [(False, 30), (True, 0)])
@pytest.mark.parametrize(("usage", "prompt"), [(TokenUsage(200, 30, 150), 200), (TokenUsage(0, 30, 0), 70)])
def test_what_was_given_up_is_estimated_by_what_answered(
    usage: TokenUsage, prompt: int, streamed: bool, output: int
) -> None:
    prices, hedging = load_prices(), Hedging(HedgePolicy())
    GivenUp(hedging, "openai", "gpt-4o", 70).estimate(usage, prices, streamed=streamed)
    cost = prices.cost_nanos("openai", "gpt-4o", TokenUsage(prompt, output))
    assert cost is not None
    assert (hedging.est_input_tokens, hedging.est_output_tokens) == (prompt, output)
    assert hedging.est_cost_nanos == cost
    GivenUp(hedging, "openai", "made up", 70).estimate(usage, prices, streamed=streamed)
    assert hedging.est_cost_nanos == cost, "no price, no cost"
