"""Replays in virtual time: conservation, limits, bounds, determinism, and what a report shows."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from random import Random
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.balancing.hints import WindowHint
from gateway.balancing.quota import Limits
from gateway.balancing.strategies.registry import STRATEGY_NAMES, make_strategy
from gateway.simulation import plots, report, study
from gateway.simulation.contenders import BLIND, ORACLE, PLAIN, Contender
from gateway.simulation.demand import Demand, make_demands
from gateway.simulation.replay import replay
from gateway.simulation.scenario import (
    POOL_KINDS,
    PoolKind,
    Scenario,
    SimulatedKey,
    capacity_rps,
    evaluation_pool,
    load_scenario,
    scale_to_load,
)
from gateway.simulation.synthetic import synthesize
from gateway.simulation.world import Refused, Taken, World


def demand(at: float, *, tokens: int = 100, priority: int = 1, patience_s: float = 60.0, tenant: str = "t") -> Demand:
    return Demand(at, tenant, "m", tokens, 10, 0, tokens, 10, priority, at + 5, at + patience_s)


def one_key(style: str = "openai", **limits: int) -> Scenario:
    return Scenario(keys=(SimulatedKey(name="k", style=style, limits=Limits(**limits)),))


@pytest.mark.parametrize("strategy", [ORACLE, BLIND, *STRATEGY_NAMES])
@pytest.mark.parametrize("kind", POOL_KINDS)
def test_every_request_ends_once(strategy: str, kind: PoolKind) -> None:
    demands = make_demands(synthesize(requests=60, duration_s=60), Random(1))
    scenario = scale_to_load(evaluation_pool(kind, Random(2), messy=True, duration_s=120), demands, 1.3)
    result = replay(demands, scenario, strategy, seed=3)
    assert result.served + result.lost == result.requests == len(demands)
    assert result.served == sum(served for served, _ in result.by_key.values())
    assert result.rejected == sum(rejected for _, rejected in result.by_key.values())
    assert sum(each.requests for each in result.classes.values()) == len(demands)


def test_the_oracle_never_meets_a_429() -> None:
    demands = make_demands(synthesize(requests=200, duration_s=150), Random(1))
    for kind in POOL_KINDS:
        scenario = scale_to_load(evaluation_pool(kind, Random(2), messy=True, duration_s=150), demands, 1.0)
        assert replay(demands, scenario, ORACLE).rejected == 0


def test_the_same_seed_gives_the_same_result() -> None:
    demands = make_demands(synthesize(requests=200, duration_s=120), Random(1))
    scenario = scale_to_load(evaluation_pool("mixed", Random(2), messy=True), demands, 1.0)
    assert replay(demands, scenario, "weighted", seed=5) == replay(demands, scenario, "weighted", seed=5)


def test_right_limits_that_the_provider_tells_mean_no_429() -> None:
    demands = [demand(index / 20) for index in range(1_200)]
    result = replay(demands, one_key(rpm=900), "rate_limit_aware")
    assert result.rejected == 0
    assert result.lost == 0


def test_waiting_is_as_long_as_the_refill_takes() -> None:
    demands = [demand(0.0) for _ in range(61)]
    result = replay(demands, one_key(rpm=60), "round_robin")
    assert result.served == 61
    assert result.waits.p50 == 0
    assert replay(demands, one_key(rpm=60), ORACLE).waits.mean == pytest.approx(1 / 61, rel=0.01)


def test_higher_priority_goes_first_and_equals_in_order() -> None:
    demands = [demand(0.0) for _ in range(60)]
    demands += [demand(0.1 + index / 1_000, priority=index % 2, patience_s=20) for index in range(30)]
    result = replay(demands, one_key(rpm=60), "round_robin")
    # The refill of 20 seconds serves all 15 of priority 0, and no more than 5 of priority 1.
    assert result.classes[0].served == 15
    assert result.classes[1].served == 60 + 5
    assert result.failures == {"deadline": 10} or sum(result.failures.values()) == 10


def test_one_tenants_flood_does_not_keep_another_waiting() -> None:
    """The queue is the gateway's: inside a level the tenant that was served least goes first."""
    flood = [demand(0.0, tenant="loud", patience_s=600.0) for _ in range(120)]
    result = replay([*flood, demand(1.0, tenant="quiet", patience_s=20.0)], one_key(rpm=60), "round_robin")
    assert result.lost == 0


def test_who_is_late_steps_aside_where_that_is_wanted() -> None:
    """At 120 % a first-come queue makes everybody late; one missed deadline is not to become many."""
    demands = [demand(index / 1.2, patience_s=600.0) for index in range(600)]
    plain, lane = (
        replay(demands, one_key(rpm=60), Contender("x", lambda: make_strategy("rate_limit_aware"), late_lane=late))
        for late in (False, True)
    )
    assert plain.lost == lane.lost == 0
    assert lane.on_time > 1.3 * plain.on_time


def test_right_sized_requests_wait_less_and_cut_answers_are_counted() -> None:
    wide = [replace(demand(index / 2, patience_s=60.0), max_tokens=4_096, output_tokens=50) for index in range(600)]
    long = [replace(each, output_tokens=700) if index == 400 else each for index, each in enumerate(wide)]
    plain, sized = (
        replay(long, one_key(tpm=60_000), Contender("x", lambda: make_strategy("rate_limit_aware"), sizes=sizes))
        for sizes in (False, True)
    )
    assert sized.waits.mean < 0.7 * plain.waits.mean
    assert sized.lost < 0.5 * plain.lost
    assert (plain.truncated, sized.truncated) == (0, 1)


def test_callers_lose_patience() -> None:
    result = replay([demand(0.0, patience_s=3) for _ in range(100)], one_key(rpm=60), "round_robin")
    assert result.lost == 100 - 60 - 2


def test_too_large_for_every_key_fails_at_once() -> None:
    result = replay([demand(0.0, tokens=5_000)], one_key(tpm=1_000), "round_robin")
    assert result.failures == {"too_large": 1}
    assert replay([demand(0.0, tokens=5_000)], one_key(tpm=1_000), ORACLE).lost == 1


def test_the_queue_is_bounded() -> None:
    demands = [demand(0.0) for _ in range(200)]
    result = replay(demands, one_key(rpm=60), "round_robin", max_waiting=10)
    assert result.longest_queue == 10
    assert result.failures["queue_full"] == 200 - 60 - 10


def test_a_wrong_configuration_is_found_out_from_headers() -> None:
    keys = tuple(
        SimulatedKey(name=f"k{index}", limits=Limits(rpm=60), configured=Limits(rpm=6_000)) for index in range(2)
    )
    demands = [demand(index * 0.4) for index in range(1_000)]
    told = replay(demands, Scenario(keys=keys), "rate_limit_aware")
    blind = replay(demands, Scenario(keys=keys), BLIND)
    assert told.rejected * 5 < blind.rejected
    assert told.lost == 0


@pytest.mark.parametrize(
    ("style", "requests", "tokens", "delay_s"),
    [
        ("gemini", WindowHint(2, 0), None, 60.0),
        ("openai", WindowHint(2, 0, 60.0), None, 30.0),
        ("opaque", None, None, None),
        ("bedrock", None, None, None),
    ],
)
def test_the_balancer_is_told_what_a_refusal_says_in_head_and_body(
    style: str, requests: WindowHint | None, tokens: WindowHint | None, delay_s: float | None
) -> None:
    for tells in (True, False):
        world = World(one_key(style, rpm=2), Random(1), tells=tells)
        for _ in range(2):
            assert isinstance(world.send("k", demand(0.0), 0.0), Taken)
        refused = world.send("k", demand(0.0), 0.0)
        assert isinstance(refused, Refused)
        if not tells or requests is None:
            assert refused.hint is None
            continue
        assert refused.hint is not None
        assert (refused.hint.requests, refused.hint.tokens) == (requests, tokens)
        assert refused.hint.retry_after_s == delay_s


def test_a_wrong_limit_is_found_out_from_a_refusals_body() -> None:
    """Gemini has no headers: its first 429 names the limit."""
    key = SimulatedKey(name="k", style="gemini", limits=Limits(rpm=60), configured=Limits(rpm=600))
    demands = [demand(index * 0.5, patience_s=300.0) for index in range(600)]
    assert replay(demands, Scenario(keys=(key,)), "rate_limit_aware").rejected <= 60


def test_keys_of_one_quota_share_its_limits() -> None:
    keys = tuple(SimulatedKey(name=f"k{index}", quota="q", limits=Limits(rpm=60)) for index in range(3))
    result = replay([demand(0.0, patience_s=0.5) for _ in range(180)], Scenario(keys=keys), "round_robin")
    assert result.served == 60
    assert result.rejected == 0


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(1, 400), st.integers(0, 2)), min_size=1, max_size=120),
    st.sampled_from([ORACLE, BLIND, *STRATEGY_NAMES]),
)
def test_a_fixed_minute_never_serves_more_than_its_limit(wishes: list[tuple[float, int, int]], strategy: str) -> None:
    at = 0.0
    demands = []
    for gap, tokens, priority in wishes:
        at += gap / 4
        demands.append(demand(at, tokens=tokens, priority=priority, patience_s=100))
    result = replay(demands, one_key("gemini", rpm=20, itpm=2_000), strategy)
    assert result.served + result.lost == len(demands)
    assert result.served <= 20 * (result.duration_s // 60 + 1)


@pytest.mark.parametrize(
    ("style", "limits"),
    [
        ("openai", {"rpm": 120, "tpm": 20_000}),
        ("azure", {"rpm": 120, "tpm": 20_000}),
        ("anthropic", {"rpm": 120, "itpm": 20_000, "otpm": 9_000}),
        ("gemini", {"rpm": 120, "itpm": 20_000, "rpd": 200}),
        ("groq", {"rpd": 5_000, "tpm": 20_000}),
        ("mistral", {"rpm": 120, "tpm": 20_000}),
        ("bedrock", {"rpm": 120, "tpm": 20_000_000}),
    ],
)
def test_an_account_in_the_providers_windows_is_not_caught_out(style: str, limits: dict[str, int]) -> None:
    """Bursts at one and a half times what the provider takes: what fits goes out, the rest waits here."""
    demands = [demand(0.01 * (number % 30) + 10.0 * (number // 30), patience_s=400) for number in range(360)]
    result = replay(demands, one_key(style, **limits), "rate_limit_aware")
    assert result.rejected <= 3
    assert result.served >= (200 if "rpd" in limits and style == "gemini" else 355)


def test_scaling_meets_the_load() -> None:
    demands = make_demands(synthesize(requests=500), Random(1))
    offered = len(demands) / (demands[-1].at - demands[0].at)
    for kind in POOL_KINDS:
        scaled = scale_to_load(evaluation_pool(kind, Random(4)), demands, 0.8)
        assert offered / capacity_rps(scaled, demands) == pytest.approx(0.8, rel=0.05)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{}", "keys"),
        (b'{"keys":[]}', "at least one key"),
        (b'{"keys":[{"name":"a","style":"x"}]}', "unknown `style`"),
        (b'{"keys":[{"name":"a"},{"name":"a"}]}', "same `name`"),
        (b'{"keys":[{"name":"a","quota":"q"},{"name":"b","quota":"q","style":"groq"}]}', "different styles"),
        (b'{"keys":[{"name":"a","rpm":3}]}', "rpm"),
    ],
)
def test_pool_files_are_refused_with_the_place(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match="the pool file is not usable") as caught:
        load_scenario(data)
    assert said in str(caught.value)


def test_pool_files_round_trip() -> None:
    scenario = evaluation_pool("mixed", Random(1), messy=True)
    assert load_scenario(msgspec.json.encode(scenario)) == scenario


class TestStudy:
    def test_names(self) -> None:
        assert study.strategies_named("all") == (BLIND, PLAIN, *STRATEGY_NAMES, "adaptive+cache_affinity")
        assert study.strategies_named("weighted_round_robin, weighted,oracle,blind") == ("weighted", BLIND)
        for text in ("", ",", "oracle"):
            with pytest.raises(ValueError, match="at least one"):
                study.strategies_named(text)
        with pytest.raises(ValueError, match="unknown strategy"):
            study.strategies_named("nonsense")

    def test_runs_seeds_and_reports(self) -> None:
        seen: Counter[str] = Counter()
        arrivals = synthesize(requests=120, duration_s=120)
        plan = study.Plan(arrivals, ("weighted", BLIND), messy=True, load=1.0, seeds=(0, 1))
        results = study.run(plan, lambda name, count: seen.update({name: count}))
        assert [each.strategy for each in results] == [ORACLE, "weighted", BLIND]
        assert set(seen.values()) == {2 * len(arrivals)}
        assert all(each.requests == 2 * len(arrivals) for each in results)
        assert results[0].goodput == 1.0
        assert results == study.run(plan)
        markdown = report.to_markdown(results)
        assert len(markdown.splitlines()) == 2 + len(results)
        assert json.dumps(report.to_json(results))
        page = report.to_html(results, title="A <b> & c", notes=("x < y",))
        assert "A &lt;b&gt; &amp; c" in page
        assert page.count("<svg") == 5


@pytest.mark.parametrize(
    "svg",
    [
        plots.lines("a & b", "<unit>", {"x<y": [(0, 1), (60, 2_000_000)], "z": []}),
        plots.lines("empty", "", {}),
        plots.bars("bars", "n", {"a": 0.0, "b": 12_345.0}),
        plots.bars("none", "n", {}),
    ],
)
def test_plots_are_well_formed(svg: str) -> None:
    assert ElementTree.fromstring(svg).tag.endswith("svg")
