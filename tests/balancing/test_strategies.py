"""Each strategy: its named cases, and the properties that all of them share."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import groupby, pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.balancing.balancer import Balancer
from gateway.balancing.decision import Ask, Picked, Wait
from gateway.balancing.hints import Hint, WindowHint
from gateway.balancing.outcome import Outcome, OutcomeKind
from gateway.balancing.quota import Limits, Quota
from gateway.balancing.strategies.registry import (
    ALIASES,
    STRATEGY_NAMES,
    StrategyOptions,
    UnknownStrategy,
    canonical_name,
    make_strategy,
)
from gateway.balancing.strategies.weighted import MAX_CYCLE, REWEIGH_S, smooth_cycle
from tests.balancing.pools import ASK, end, endpoint, pick, pool, serve

AFFINE = "least_connections+cache_affinity"
EVERY = pytest.mark.parametrize("strategy", [*STRATEGY_NAMES, AFFINE])


@pytest.mark.parametrize(
    "name", [*STRATEGY_NAMES, *ALIASES, "Weighted-Round-Robin", " ROUND ROBIN ", "geo + cache-affinity"]
)
def test_names_and_aliases_are_known(name: str) -> None:
    assert make_strategy(name).name == canonical_name(name)


@pytest.mark.parametrize("name", ["random", "", "weighted+round_robin", "weighted+fast"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UnknownStrategy, match="round_robin, weighted"):
        make_strategy(name)


# --- weighted -------------------------------------------------------------------------------------------------------


def sequence(weights: dict[str, int], picks: int, seed: int = 1) -> list[str]:
    balancer = pool(*(endpoint(name, weight) for name, weight in weights.items()), seed=seed)
    return [serve(balancer) for _ in range(picks)]


@pytest.mark.parametrize("seed", range(5))
def test_any_100_consecutive_picks_are_exactly_50_30_20(seed: int) -> None:
    picks = sequence({"a": 50, "b": 30, "c": 20}, 1000, seed)
    for start in range(len(picks) - 100):
        assert Counter(picks[start : start + 100]) == {"a": 50, "b": 30, "c": 20}


def test_50_30_20_never_bunches() -> None:
    picks = sequence({"a": 50, "b": 30, "c": 20}, 1000)
    longest = {name: max(len(list(run)) for key, run in groupby(picks) if key == name) for name in "abc"}
    assert longest == {"a": 2, "b": 1, "c": 1}


def test_nginx_own_example() -> None:
    assert smooth_cycle([5, 1, 1]) == [0, 0, 1, 0, 2, 0, 0]


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_the_cycle_is_exact_and_smooth(weights: list[int]) -> None:
    cycle = smooth_cycle(weights)
    shares = Counter(cycle)
    total = sum(weights)
    for index, weight in enumerate(weights):
        assert shares[index] * total == weight * len(cycle)
        # Between two turns of a key lies at most about its period, also across the end of the cycle.
        turns = [position for position, turn in enumerate(cycle + cycle) if turn == index]
        widest = max(after - before for before, after in pairwise(turns))
        assert widest <= 2 * -(-total // weight)


def test_a_huge_pool_of_odd_weights_has_a_bounded_cycle() -> None:
    rng = Random(5)
    weights = [rng.randrange(1, 10_000) for _ in range(1000)]
    cycle = smooth_cycle(weights)
    assert len(cycle) <= MAX_CYCLE + len(weights)
    assert set(cycle) == set(range(1000))


def test_turns_of_a_key_that_is_out_go_to_the_others_in_proportion() -> None:
    balancer = pool(endpoint("a", 50), endpoint("b", 30), endpoint("c", 20))
    ask = replace(ASK, excluded=frozenset({"a"}))
    assert Counter(serve(balancer, ask) for _ in range(100)) == {"b": 60, "c": 40}


def test_a_key_that_comes_back_does_not_catch_up_in_a_burst() -> None:
    balancer = pool(endpoint("a", 50), endpoint("b", 30), endpoint("c", 20))
    for _ in range(500):
        serve(balancer, replace(ASK, excluded=frozenset({"a"})))
    assert Counter(serve(balancer) for _ in range(100)) == {"a": 50, "b": 30, "c": 20}


def test_a_reload_keeps_the_turn() -> None:
    endpoints = [endpoint("a"), endpoint("b"), endpoint("c"), endpoint("d")]
    balancer = pool(*endpoints, strategy="round_robin")
    strategy = balancer.strategy
    seen = Counter()  # type: Counter[str]
    for _ in range(400):
        seen[serve(balancer)] += 1
        balancer.reconfigure(endpoints, [], strategy)
    assert min(seen.values()) >= 60


def test_standby_keys_serve_only_when_nothing_else_is_ready() -> None:
    balancer = pool(endpoint("a", 3), endpoint("spare", 0))
    assert {serve(balancer) for _ in range(20)} == {"a"}
    assert serve(balancer, replace(ASK, excluded=frozenset({"a"}))) == "spare"


# --- round robin ----------------------------------------------------------------------------------------------------


def test_round_robin_takes_each_in_turn_whatever_the_weight() -> None:
    balancer = pool(endpoint("a", 90), endpoint("b", 1), endpoint("c", 9), strategy="round_robin")
    picks = [serve(balancer) for _ in range(30)]
    assert picks[:3] * 10 == picks
    assert set(picks) == {"a", "b", "c"}


# --- least connections ----------------------------------------------------------------------------------------------


def test_least_connections_follows_load_over_capacity() -> None:
    balancer = pool(
        endpoint("big", max_in_flight=30), endpoint("small", max_in_flight=10), strategy="least_connections"
    )
    held = Counter(pick(balancer).endpoint.id for _ in range(20))
    assert held == {"big": 15, "small": 5}


def test_least_connections_sends_to_the_key_that_finished() -> None:
    balancer = pool(endpoint("a"), endpoint("b"), endpoint("c"), strategy="least_connections")
    leases = {lease.endpoint.id: lease for lease in (pick(balancer) for _ in range(3))}
    assert set(leases) == {"a", "b", "c"}
    end(balancer, leases["b"])
    assert pick(balancer).endpoint.id == "b"


# --- rate limit aware -----------------------------------------------------------------------------------------------


def test_rate_limit_aware_takes_the_most_headroom() -> None:
    limits = {"q-a": Limits(rpm=3000), "q-b": Limits(rpm=1000)}
    balancer = pool(endpoint("a"), endpoint("b"), strategy="rate_limit_aware", limits=limits)
    shares = Counter(serve(balancer) for _ in range(400))
    assert shares["a"] == pytest.approx(300, abs=3)


def test_rate_limit_aware_looks_at_the_tightest_dimension() -> None:
    limits = {"q-a": Limits(rpm=10_000, tpm=1_000), "q-b": Limits(rpm=100, tpm=1_000_000)}
    balancer = pool(endpoint("a"), endpoint("b"), strategy="rate_limit_aware", limits=limits)
    assert Counter(serve(balancer) for _ in range(5))["b"] >= 4


def test_daily_limits_are_spent_on_overflow_when_asked_for() -> None:
    limits = {"q-daily": Limits(rpd=1000), "q-minute": Limits(rpm=5)}
    for option, daily_first in ((False, True), (True, False)):
        balancer = pool(
            endpoint("daily"),
            endpoint("minute"),
            strategy="rate_limit_aware",
            limits=limits,
            options=StrategyOptions(overflow_daily=option),
        )
        served = [serve(balancer) for _ in range(8)]
        assert (served[:5] != ["minute"] * 5) is daily_first
        assert served[6:] == ["daily"] * 2


# --- weighted by what is known ---------------------------------------------------------------------------------------


def test_weights_may_follow_the_limit_and_what_remains_of_it() -> None:
    limits = {"q-a": Limits(rpm=3000), "q-b": Limits(rpm=1000)}
    endpoints = [endpoint("a"), endpoint("b")]
    by_limit = pool(*endpoints, options=StrategyOptions(weight_by="limit"), limits=limits)
    shares = Counter(serve(by_limit) for _ in range(133))
    assert shares["a"] == pytest.approx(100, abs=2)
    remaining = pool(*endpoints, options=StrategyOptions(weight_by="remaining"), limits=limits)
    lease = pick(remaining, replace(ASK, excluded=frozenset({"b"})))
    remaining.learn(lease, Hint(requests=WindowHint(3000, 100)), now=0.0)
    later = [serve(remaining, now=REWEIGH_S) for _ in range(50)]
    assert Counter(later)["b"] > 30


def test_weights_by_price_prefer_the_cheaper_in_proportion() -> None:
    cheap, dear = (
        endpoint("cheap", input_price=1.0, output_price=1.0),
        endpoint("dear", input_price=3.0, output_price=3.0),
    )
    balancer = pool(cheap, dear, options=StrategyOptions(weight_by="price"))
    assert Counter(serve(balancer) for _ in range(133))["cheap"] == pytest.approx(100, abs=1)


# --- lowest latency, lowest cost, adaptive ---------------------------------------------------------------------------


def answer(balancer: Balancer, seconds: dict[str, float], now: float, ask: Ask = ASK) -> str:
    lease = pick(balancer, ask, now)
    took = seconds[lease.endpoint.id]
    balancer.observe(lease, Outcome(OutcomeKind.OK, 200, first_byte_s=took, total_s=took), now=now)
    return lease.endpoint.id


def test_lowest_latency_tries_each_once_then_stays_with_the_fastest() -> None:
    balancer = pool(endpoint("slow"), endpoint("fast"), endpoint("mid"), strategy="lowest_latency")
    seconds = {"slow": 2.0, "fast": 0.1, "mid": 0.5}
    served = [answer(balancer, seconds, float(n)) for n in range(20)]
    assert set(served[:3]) == {"slow", "fast", "mid"}
    assert set(served[3:]) == {"fast"}


def test_lowest_latency_leaves_a_key_that_turned_slow() -> None:
    balancer = pool(endpoint("a"), endpoint("b"), strategy="lowest_latency")
    seconds = {"a": 0.1, "b": 0.3}
    for n in range(10):
        answer(balancer, seconds, float(n))
    seconds["a"] = 5.0
    assert [answer(balancer, seconds, 10.0 + n) for n in range(5)] == ["a", "b", "b", "b", "b"]


def test_lowest_cost_weighs_the_prices_by_the_expected_tokens() -> None:
    reader = endpoint("reader", input_price=1.0, output_price=20.0)
    writer = endpoint("writer", input_price=5.0, output_price=10.0)
    balancer = pool(reader, writer, endpoint("unpriced"), strategy="lowest_cost")
    assert serve(balancer, replace(ASK, est_input_tokens=10_000, est_output_tokens=100)) == "reader"
    assert serve(balancer, replace(ASK, est_input_tokens=100, est_output_tokens=10_000)) == "writer"
    assert serve(balancer, replace(ASK, excluded=frozenset({"reader", "writer"}))) == "unpriced"


def test_lowest_cost_spreads_over_keys_of_one_price() -> None:
    keys = [endpoint(f"k{n}", input_price=1.0, output_price=1.0) for n in range(4)]
    balancer = pool(*keys, endpoint("dear", input_price=2.0, output_price=2.0), strategy="lowest_cost")
    assert {pick(balancer).endpoint.id for _ in range(4)} == {"k0", "k1", "k2", "k3"}


def test_adaptive_prefers_fast_roomy_sound_and_cheap_keys() -> None:
    limits = {"q-tight": Limits(rpm=20), "q-wide": Limits(rpm=2000)}
    roomy = pool(endpoint("tight"), endpoint("wide"), strategy="adaptive", limits=limits)
    shares = Counter(answer(roomy, {"tight": 0.2, "wide": 0.2}, n * 0.1) for n in range(100))
    assert shares["wide"] > 2 * shares["tight"]
    fast = pool(endpoint("fast"), endpoint("slow"), strategy="adaptive")
    assert Counter(answer(fast, {"fast": 0.1, "slow": 1.0}, float(n)) for n in range(50))["fast"] > 45
    cheap = pool(
        endpoint("cheap", input_price=1.0, output_price=1.0),
        endpoint("dear", input_price=9.0, output_price=9.0),
        strategy="adaptive",
    )
    assert Counter(answer(cheap, {"cheap": 0.2, "dear": 0.2}, float(n)) for n in range(50))["cheap"] > 45


# --- geographic -------------------------------------------------------------------------------------------------------

WORLD = (endpoint("us", region="us-east-1"), endpoint("eu", region="westeurope"), endpoint("jp", region="japaneast"))


@pytest.mark.parametrize(
    ("caller", "nearest"),
    [("eu-central-1", "eu"), ("us-west-2", "us"), ("asia-northeast3", "jp"), ("uksouth", "eu"), ("sa-east-1", "us")],
)
def test_geographic_serves_from_the_nearest_by_the_table(caller: str, nearest: str) -> None:
    balancer = pool(*WORLD, strategy="geographic", options=StrategyOptions(home_region="eastus"))
    assert {serve(balancer, replace(ASK, region=caller)) for _ in range(5)} == {nearest}


def test_geographic_spills_to_the_next_region_and_residency_forbids_it() -> None:
    limits = {"q-eu": Limits(rpm=2)}
    balancer = pool(*WORLD, strategy="geographic", limits=limits)
    ask = replace(ASK, region="eu")
    assert [serve(balancer, ask) for _ in range(4)] == ["eu", "eu", "us", "us"]
    decision = balancer.acquire(replace(ask, residency=frozenset({"westeurope"})), now=0.0)
    assert isinstance(decision, Wait)


def test_geographic_believes_what_it_measured_from_here() -> None:
    balancer = pool(*WORLD, strategy="geographic", options=StrategyOptions(home_region="eu-west-1"))
    seconds = {"eu": 3.0, "us": 0.3, "jp": 0.4}
    served = [answer(balancer, seconds, float(n)) for n in range(30)]
    assert served[0] == "eu"
    assert Counter(served)["us"] > 20


# --- cache affinity ---------------------------------------------------------------------------------------------------


def talk(number: int) -> Ask:
    return replace(ASK, affinity=f"conversation {number}")


@pytest.mark.parametrize("size", [4, 200])
def test_a_conversation_stays_and_conversations_spread(size: int) -> None:
    balancer = pool(*(endpoint(f"k{n}") for n in range(size)), strategy=AFFINE)
    homes = {number: serve(balancer, talk(number)) for number in range(400)}
    assert all(serve(balancer, talk(number)) == home for number, home in homes.items())
    spread = Counter(homes.values())
    assert len(spread) > size * 0.7
    assert max(spread.values()) < 5 * 400 / size + 10


def test_only_the_conversations_of_a_lost_quota_move_and_they_come_back() -> None:
    endpoints = [endpoint(f"k{n}") for n in range(5)]
    balancer = pool(*endpoints, strategy=AFFINE)
    before = {number: serve(balancer, talk(number)) for number in range(100)}
    balancer.reconfigure(endpoints[:4], [], balancer.strategy)
    moved = {number for number, home in before.items() if serve(balancer, talk(number)) != home}
    assert moved == {number for number, home in before.items() if home == "k4"}
    balancer.reconfigure(endpoints, [], balancer.strategy)
    assert all(serve(balancer, talk(number)) == home for number, home in before.items())


def test_a_hot_prefix_does_not_drown_its_quota() -> None:
    balancer = pool(*(endpoint(f"k{n}") for n in range(4)), strategy=AFFINE)
    held = Counter(pick(balancer, talk(1)).endpoint.id for _ in range(80))
    assert max(held.values()) <= 1.25 * 80 / 4 + 3
    assert len(held) == 4


# --- tiers ------------------------------------------------------------------------------------------------------------

TIERED = (endpoint("premium", tier=0), endpoint("basic", tier=2), endpoint("middle", tier=1))


def test_critical_requests_start_at_the_top_and_others_at_the_bottom() -> None:
    balancer = pool(*TIERED)
    assert serve(balancer, replace(ASK, priority=0)) == "premium"
    assert serve(balancer, replace(ASK, priority=2)) == "basic"
    assert serve(balancer, replace(ASK, priority=0, excluded=frozenset({"premium"}))) == "middle"


@pytest.mark.parametrize(("reserve", "left"), [(0.1, 1), (0.0, 0), (0.5, 5)])
def test_a_share_of_premium_headroom_is_kept_for_the_critical(reserve: float, left: int) -> None:
    quotas = [Quota(f"q-{name}", Limits(rpm=10), "simulated") for name in ("premium", "basic", "middle")]
    balancer = pool(*TIERED)
    balancer.reconfigure(TIERED, quotas, balancer.strategy, premium_reserve=reserve)
    served = 0
    while isinstance(decision := balancer.acquire(replace(ASK, priority=2), now=0.0), Picked):
        end(balancer, decision.lease)
        served += 1
    assert served == 30 - left
    assert isinstance(decision, Wait)
    for _ in range(left):
        assert serve(balancer, replace(ASK, priority=0)) == "premium"
    assert isinstance(balancer.acquire(replace(ASK, priority=0), now=0.0), Wait)


# --- all of them ----------------------------------------------------------------------------------------------------


@EVERY
def test_equal_keys_are_served_without_bias(strategy: str) -> None:
    seen = Counter()  # type: Counter[str]
    for seed in range(300):
        seen[serve(pool(endpoint("a"), endpoint("b"), endpoint("c"), strategy=strategy, seed=seed))] += 1
    assert min(seen.values()) > 60


@EVERY
@pytest.mark.parametrize("size", [1, 3, 40])
def test_nobody_starves(strategy: str, size: int) -> None:
    balancer = pool(*(endpoint(f"k{n}") for n in range(size)), strategy=strategy)
    leases, seen = [], set()
    for _ in range(size * 30):
        leases.append(pick(balancer))
        seen.add(leases[-1].endpoint.id)
        if len(leases) > size:
            end(balancer, leases.pop(0))
    assert len(seen) == size


@EVERY
def test_the_one_ready_key_of_many_is_found(strategy: str) -> None:
    balancer = pool(*(endpoint(f"k{n}", 1 + n % 7) for n in range(300)), strategy=strategy)
    ask = replace(ASK, excluded=frozenset(f"k{n}" for n in range(300) if n != 217))
    assert {serve(balancer, ask) for _ in range(5)} == {"k217"}


@EVERY
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_only_eligible_keys_and_never_above_a_limit(strategy: str, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12))
    endpoints = [
        endpoint(
            f"k{n}",
            data.draw(st.integers(0, 5)),
            models=data.draw(st.sampled_from([(), ("gpt-4o",), ("gpt-*",), ("claude-*",)])),
            region=data.draw(st.sampled_from(["eu", "us", None])),
            max_in_flight=data.draw(st.sampled_from([None, 1, 3])),
            quota_id=f"q{n % 4}",
        )
        for n in range(size)
    ]
    limits = {f"q{n}": Limits(rpm=data.draw(st.integers(1, 6)), concurrency=5) for n in range(4)}
    balancer = pool(*endpoints, strategy=strategy, limits=limits, provider="unheard-of")
    residency = data.draw(st.sampled_from([frozenset[str](), frozenset({"eu"})]))
    excluded = data.draw(st.frozensets(st.sampled_from([each.id for each in endpoints]), max_size=3))
    ask = replace(ASK, residency=residency, excluded=excluded)
    open_leases, sent = [], Counter()  # type: ignore[var-annotated]
    for _ in range(40):
        decision = balancer.acquire(ask, now=1.0)
        if isinstance(decision, Picked):
            chosen = decision.lease.endpoint
            assert chosen.serves(ask.model, ask.dialect)
            assert not residency or chosen.region in residency
            assert chosen.id not in excluded
            sent[chosen.quota_id] += 1
            open_leases.append(decision.lease)
            in_flight = Counter(lease.endpoint.id for lease in open_leases)
            assert chosen.max_in_flight is None or in_flight[chosen.id] <= chosen.max_in_flight
            assert sum(lease.endpoint.quota_id == chosen.quota_id for lease in open_leases) <= 5
        elif open_leases:
            end(balancer, open_leases.pop(0), now=1.0)
    for quota_id, count in sent.items():
        assert count <= (limits[quota_id].rpm or 0)


@EVERY
def test_a_failing_key_is_left_alone_by_all(strategy: str) -> None:
    balancer = pool(endpoint("dead"), endpoint("b"), endpoint("c"), strategy=strategy)
    for _ in range(40):
        lease = pick(balancer)
        end(balancer, lease, OutcomeKind.CONNECT_FAILED if lease.endpoint.id == "dead" else OutcomeKind.OK)
    assert "dead" not in {serve(balancer) for _ in range(30)}
