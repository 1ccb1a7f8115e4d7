"""The strategy `geographic` end to end: who says where a caller is, spilling, and residency whatever happens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.balancing.exchange import Exchange
from gateway.balancing.hedging import Hedge
from gateway.balancing.outcome import OutcomeKind
from gateway.balancing.retry import RetryBudget, RetryPolicy
from gateway.balancing.steps import Answered, Await, Overdue, Send
from gateway.balancing.strategies.registry import STRATEGY_NAMES, make_strategy
from gateway.proxy.channel import HeaderList
from tests.balancing.pools import ASK, endpoint
from tests.balancing.pools import pool as balancer_of
from tests.fakes.provider import RunningProvider, provider_config, running_provider
from tests.proxy.harness import key, pool, running_gateway, tenant

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
EU, US, JP = "eu-central-1", "us-east-1", "ap-northeast-1"


@pytest.fixture(scope="module")
def provider() -> Iterator[RunningProvider]:
    with running_provider(provider_config(a=10_000, b=10_000, c=10_000)) as running:
        yield running


def snapshot(provider: RunningProvider, **more: Any) -> Any:
    keys = (
        key("a", provider.base_url, region=EU), key("b", provider.base_url, region=US),
        key("c", provider.base_url, region=JP),
    )  # fmt: skip
    return tenant(pool("main", *keys, strategy="geographic", is_default=True, **more))


class Near:
    """`Places` that finds everybody in one place."""

    def __init__(self, place: str | None) -> None:
        self.place = place
        self.asked: list[str] = []

    def place_of(self, peer: str, headers: HeaderList) -> str | None:
        self.asked.append(peer)
        return self.place


SAID: list[tuple[str | None, str | None, str | None, str]] = [
    ("@JP", None, None, JP),
    ("@JP", US, None, US),
    ("@JP", US, EU, EU),
    (None, None, EU, EU),
    (None, JP, None, JP),
]


@pytest.mark.parametrize(("place", "header", "token", "served"), SAID)
async def test_token_then_caller_then_address_say_where_a_caller_is(
    provider: RunningProvider, place: str | None, header: str | None, token: str | None, served: str
) -> None:
    async with running_gateway(snapshot(provider)) as gateway:
        near = Near(place)
        gateway.data_path._places = near
        gateway.verifier.add("t", details=({"type": "llm_proxy", "caller_region": token},) if token else ())
        headers = {"x-llm-proxy-region": header} if header else {}
        for _ in range(3):
            reply = await gateway.call("/v1/chat/completions", CHAT, headers=headers, token="t")
            assert reply.headers["x-llm-proxy-region"] == served
        assert set(near.asked) == {"127.0.0.1"}


async def test_a_full_region_spills_to_the_next(provider: RunningProvider) -> None:
    async with running_gateway(snapshot(provider, limits={"rpm": 1})) as gateway:
        served = [
            (await gateway.call("/v1/chat/completions", CHAT, headers={"x-llm-proxy-region": EU})).headers
            for _ in range(3)
        ]
        assert [each["x-llm-proxy-region"] for each in served] == [EU, US, JP]


async def test_residency_is_never_spilled_over(provider: RunningProvider) -> None:
    limits = {"rpm": 1}
    async with running_gateway(snapshot(provider, limits=limits, settings={"retry": {"max_pause_s": 0}})) as gateway:
        asked = {"x-llm-proxy-region": EU, "x-llm-proxy-residency": "eu-*"}
        first = await gateway.call("/v1/chat/completions", CHAT, headers=asked)
        assert first.headers["x-llm-proxy-region"] == EU
        assert (await gateway.call("/v1/chat/completions", CHAT, headers=asked)).status == 429


ANSWERS = st.sampled_from([
    Answered(200, OutcomeKind.OK), Answered(429, OutcomeKind.RATE_LIMITED), Answered(500, OutcomeKind.SERVER_ERROR),
    Answered(401, OutcomeKind.AUTH_REJECTED),
])  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    strategy=st.sampled_from(STRATEGY_NAMES),
    regions=st.lists(st.sampled_from([EU, US, JP, None]), min_size=1, max_size=6),
    residency=st.frozensets(st.sampled_from([EU, US]), min_size=1),
    here=st.sampled_from([None, EU, "@JP", "@48,12"]),
    answers=st.lists(ANSWERS, max_size=10),
    overdue=st.booleans(),
)
def test_no_pick_retry_hedge_or_return_leaves_the_allowed_regions(
    *,
    strategy: str,
    regions: list[str | None],
    residency: frozenset[str],
    here: str | None,
    answers: list[Answered],
    overdue: bool,
) -> None:
    keys = [endpoint(f"k{n}", region=region, tier=n % 2, weight=n % 3) for n, region in enumerate(regions)]
    balancer = balancer_of(*keys, strategy=strategy)
    assert make_strategy(strategy).name == strategy
    allowed = {each.id for each in keys if each.region in residency}
    ask = ASK.__class__(model="gpt-4o", region=here, residency=residency)
    hedge = Hedge(0.1, 0.0, RetryBudget(1.0, burst=5.0))
    exchange = Exchange(balancer, ask, RetryPolicy(max_attempts=8), RetryBudget(), rng=random.Random(1), hedge=hedge)
    step, now = exchange.start(0.0), 0.0
    leases = [step.lease] if isinstance(step, Send) else []
    for answer in answers:
        now += 0.2
        if overdue and exchange.overdue_at is not None:
            step = exchange.step(Overdue(), now)
            leases += [step.lease] if isinstance(step, Send) else []
        if not isinstance(step, Send | Await):
            break
        current = exchange.current
        step = exchange.step(Answered(answer.status, answer.kind, lease=current), now)
        leases += [step.lease] if isinstance(step, Send) else []
    assert {lease.endpoint.id for lease in leases} <= allowed
    assert {attempt.endpoint_id for attempt in exchange.attempts} <= allowed
