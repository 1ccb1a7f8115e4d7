"""What pools agree on and callers may ask for: shared quotas, waiting, strategies, prices, regions, priorities."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from auth.details import Detail, read_details
from gateway.balancing.decision import Ask, Picked
from gateway.balancing.outcome import Outcome, OutcomeKind
from gateway.metering.price_list import Price
from gateway.metering.pricing import PriceTable
from gateway.policy.access import Denied, judge
from gateway.proxy.choice import choose_pool
from gateway.proxy.faults import NoKeyInRegion
from gateway.proxy.head import NO_WISHES, RequestHead, Wishes
from gateway.proxy.runtime import TenantRuntime, Workshop, build_tenant
from gateway.upstream.guard import EgressPolicy
from tenants.snapshot import TenantSnapshot
from tests.fakes.provider import RunningProvider, provider_config, running_provider
from tests.proxy.harness import key, pool, running_gateway, tenant

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
IMPATIENT = {"retry": {"max_pause_s": 0}}
URL = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def provider() -> Iterator[RunningProvider]:
    with running_provider(provider_config(a=10_000, b=10_000)) as running:
        yield running


def built(
    snapshot: TenantSnapshot, before: TenantRuntime | None = None, prices: PriceTable | None = None
) -> TenantRuntime:
    workshop = Workshop(EgressPolicy(allow_private=True), lambda: 0.0, random.Random(0), prices=prices)
    return build_tenant(snapshot, before, workshop)


async def test_a_quota_that_two_pools_share_is_spent_once(provider: RunningProvider) -> None:
    one = UUID(int=7)
    first = pool("first", key("a", provider.base_url, quota_id=one), settings=IMPATIENT, limits={"rpm": 1})
    second = pool("second", key("b", provider.base_url, quota_id=one), settings=IMPATIENT, limits={"rpm": 1})
    async with running_gateway(tenant(first, second)) as gateway:
        assert (await gateway.call("/pools/first/v1/chat/completions", CHAT)).status == 200
        refused = await gateway.call("/pools/second/v1/chat/completions", CHAT)
        assert refused.status == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60


async def test_who_finds_every_key_busy_waits_and_is_told_how_long(provider: RunningProvider) -> None:
    async with running_gateway(tenant(pool("main", key("a", provider.base_url, max_in_flight=1)))) as gateway:
        replies = await asyncio.gather(*(gateway.call("/v1/chat/completions", CHAT) for _ in range(6)))
        assert {reply.status for reply in replies} == {200}
        assert sum("x-llm-proxy-queued-ms" in reply.headers for reply in replies) >= 4


async def test_a_full_queue_turns_away(provider: RunningProvider) -> None:
    settings = {"max_waiting": 0}
    snapshot = tenant(pool("main", key("a", provider.base_url, max_in_flight=1), settings=settings))
    async with running_gateway(snapshot) as gateway:
        replies = await asyncio.gather(*(gateway.call("/v1/chat/completions", CHAT) for _ in range(6)))
        assert {reply.status for reply in replies} == {200, 429}


def test_a_deleted_pool_serves_nobody_and_gives_its_quotas_back() -> None:
    before = built(tenant(pool("gone", key("a", URL)), pool("kept", key("b", URL))))
    gone = before.pools["gone"]
    after = built(tenant(pool("kept", key("b", URL)), revision=2), before)
    assert list(after.pools) == ["kept"]
    assert after.book is before.book
    assert gone.targets == {}
    assert not gone.serves("m", "openai")
    assert gone.balancer.explain(Ask("m"), 0.0).refused == "no_endpoints"


def test_options_reach_the_strategy_and_a_change_replaces_it() -> None:
    plain = built(tenant(pool("main", key("a", URL), strategy="weighted")))
    strategy = plain.pools["main"].strategy
    same = built(tenant(pool("main", key("a", URL), strategy="weighted"), revision=2), plain)
    assert same.pools["main"].strategy is strategy
    settings = {"strategy_options": {"cache_affinity": True}}
    affine = built(tenant(pool("main", key("a", URL), strategy="weighted", settings=settings), revision=3), same)
    assert affine.pools["main"].strategy.name == "weighted+cache_affinity"
    assert affine.pools["main"].has_affinity


def test_a_pool_may_leave_its_strategy_to_the_tenant_and_a_change_loses_nothing() -> None:
    def snapshot(revision: int, **settings: Any) -> TenantSnapshot:
        found = tenant(pool("main", key("a", URL), key("b", URL), strategy="default"), revision=revision)
        return replace(found, settings=settings)

    plain = built(snapshot(1))
    found = plain.pools["main"]
    assert found.strategy.name == "rate_limit_aware"
    decision = found.balancer.acquire(Ask("m"), now=0.0)
    assert isinstance(decision, Picked)
    found.balancer.observe(decision.lease, Outcome(OutcomeKind.OK, first_byte_s=0.5, total_s=1.0), now=1.0)
    place = found.queue.place("x", client_id="app", priority=1, deadline=9.0)
    known = found.balancer.view(1.0)
    for revision, name in ((2, "adaptive"), (3, "predictive"), (4, "round_robin")):
        changed = built(snapshot(revision, default_strategy=name), plain).pools["main"]
        assert changed.strategy.name == name
        assert changed.balancer is found.balancer
        assert changed.queue is found.queue
        after = changed.balancer.view(1.0)
        assert after.endpoints == known.endpoints, "picks, latencies, breakers"
        assert [each.in_flight for each in after.quotas] == [each.in_flight for each in known.quotas]
    assert place.ticket.id == 1
    broken = built(snapshot(5, default_strategy="best"), plain).pools["main"]
    assert broken.strategy.name == "weighted"


def test_keys_are_priced_by_model_and_provider() -> None:
    prices = PriceTable([Price("m", 1.0, 2.0, provider="groq"), Price("m", 3.0, 6.0), Price("n", 0.5, 0.5)])
    runtime = built(
        tenant(pool("main", key("a", URL), key("g", None, provider="groq"), strategy="lowest_cost")), prices=prices
    )
    balancer = runtime.pools["main"].balancer
    names = {endpoint.id: endpoint.provider for endpoint in runtime.pools["main"].endpoints}

    def scores(model: str) -> dict[str, float | None]:
        found = balancer.explain(Ask(model, est_input_tokens=1_000_000), 0.0)
        return {names[each.endpoint_id]: each.score for each in found.considered}

    assert scores("m") == {"groq": 1.0, "simulated": 3.0}
    assert scores("n") == {"groq": 0.5, "simulated": 0.5}


REGIONS = tenant(
    pool("both", key("a", URL, region="eu-1"), key("b", URL, region="us-1"), is_default=True),
    pool("none", key("c", URL)),
    pool("swiss", key("d", URL, region="ch-1")),
)


@pytest.mark.parametrize(
    ("setting", "wished", "detail", "expected"),
    [
        (None, (), {}, ("both", set())),
        (None, ("eu-*",), {}, ("both", {"eu-1"})),
        (None, ("ch-*", "eu-*"), {"pools": ["swiss"]}, ("swiss", {"ch-1"})),
        (None, ("ch-1",), {}, ("swiss", {"ch-1"})),
        (None, ("eu-*",), {"regions": ["eu-*", "us-*"]}, ("both", {"eu-1"})),
        (["eu-*"], (), {}, ("both", {"eu-1"})),
        (["eu-*"], ("us-*",), {}, None),
        (["eu-*"], ("*",), {"regions": ["us-*"]}, None),
        (None, ("us-*",), {"regions": ["eu-*"]}, None),
        (None, ("mars",), {}, None),
        ("eu-1", (), {}, None),
        ([3], (), {}, None),
    ],
)
def test_residency_is_what_tenant_token_and_request_agree_on(
    setting: Any, wished: tuple[str, ...], detail: dict[str, Any], expected: tuple[str, set[str]] | None
) -> None:
    settings = {} if setting is None else {"residency": setting}
    runtime = built(replace(REGIONS, settings=settings))
    details = read_details([{"type": "llm_proxy", **detail}] if detail else [])
    wishes = Wishes(residency=wished)
    if expected is None:
        with pytest.raises(NoKeyInRegion):
            choose_pool(runtime, details, named=None, wishes=wishes, model="m", dialect="openai", now=0.0)
        return
    found = choose_pool(runtime, details, named=None, wishes=wishes, model="m", dialect="openai", now=0.0)
    assert (found.pool.name, set(found.residency)) == expected


@pytest.mark.parametrize(
    ("wished", "held", "expected"),
    [(None, None, 1), (0, None, 0), (9, None, 9), (None, 3, 3), (0, 3, 3), (5, 3, 5), (0, 0, 0)],
)
def test_no_request_is_more_urgent_than_its_token(wished: int | None, held: int | None, expected: int) -> None:
    details = () if held is None else (Detail(type="llm_proxy", priority=held),)
    found = choose_pool(
        built(REGIONS), details, named=None, wishes=Wishes(priority=wished), model="m", dialect="openai", now=0.0
    )
    assert found.priority == expected


def test_wishes_are_read_from_headers() -> None:
    headers = [
        (b"x-llm-proxy-pool", b" main "), (b"x-llm-proxy-priority", b"0"), (b"x-llm-proxy-region", b"eu-1"),
        (b"x-llm-proxy-residency", b"eu-*, ch-1"), (b"x-llm-proxy-explain", b"True"), (b"x-llm-proxy-new", b"1"),
    ]  # fmt: skip
    wishes = RequestHead(headers).wishes()
    assert wishes == Wishes("main", 0, "eu-1", ("eu-*", "ch-1"), explain=True)
    assert RequestHead([(b"accept", b"*/*")]).wishes() is NO_WISHES


@pytest.mark.parametrize(
    "headers",
    [
        {"x-llm-proxy-priority": "urgent"},
        {"x-llm-proxy-priority": "10"},
        {"x-llm-proxy-priority": "-1"},
        {"x-llm-proxy-residency": ""},
        {"x-llm-proxy-residency": "eu,,us"},
        {"x-llm-proxy-residency": ",".join("abcdefghijklmnopqrstuvwxyz")},
    ],
)
async def test_wishes_that_mean_nothing_are_refused(headers: dict[str, str]) -> None:
    async with running_gateway(tenant(pool("main", key("a", URL)))) as gateway:
        reply = await gateway.call("/v1/chat/completions", CHAT, headers=headers)
        assert reply.status == 400
        assert next(iter(headers)) in reply.json()["error"]["message"]


def test_a_region_that_no_key_has_refuses_by_the_token_s_member() -> None:
    found = judge((Detail(type="llm_proxy", regions=("mars",)),), pool="p", models=("m",), regions=("eu",), now=0.0)
    assert found == Denied("regions")
