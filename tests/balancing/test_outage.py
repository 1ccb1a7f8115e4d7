"""Correlated failures: what opens an address, what does not, and that a pool is never shut."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from gateway.balancing.balancer import Balancer
from gateway.balancing.decision import Picked, Refusal, Refused
from gateway.balancing.outage import QUOTA, CommonBreaker, address_of
from gateway.balancing.outcome import OutcomeKind
from gateway.balancing.quota import Limits
from tests.balancing.pools import ASK, end, endpoint, pick, pool, serve

RNG = Random(1)
DOWN = OutcomeKind.CONNECT_FAILED
OK = OutcomeKind.OK


def fed(*rows: tuple[str, OutcomeKind], keys: int = 6) -> CommonBreaker:
    common = CommonBreaker()
    common.keys = keys
    for name, kind in rows:
        common.ended(name, kind, 0.0, 0.0, trial=False, rng=RNG)
    return common


CASES: list[tuple[str, list[tuple[str, OutcomeKind]], bool]] = [
    ("one key alone", [("a", DOWN)] * 50, False),
    ("two keys of six", [("a", DOWN), ("b", DOWN)] * 30, False),
    ("three keys", [("a", DOWN), ("b", DOWN), ("c", DOWN)] * 3, True),
    ("many keys once each", [(name, OutcomeKind.SERVER_ERROR) for name in "abcdef"], True),
    ("a success in between", [("a", DOWN), ("b", DOWN), ("c", OK), ("d", DOWN), ("e", DOWN)], False),
    ("a 429 is an answer too", [("a", DOWN), ("b", DOWN), ("c", OutcomeKind.RATE_LIMITED), ("d", DOWN)], False),
    ("rejected keys", [(name, OutcomeKind.AUTH_REJECTED) for name in "abcdef"], False),
    ("callers who left", [(name, OutcomeKind.ABANDONED) for name in "abcdef"], False),
]


@pytest.mark.parametrize(("rows", "tripped"), [row[1:] for row in CASES], ids=[row[0] for row in CASES])
def test_what_opens_it(rows: list[tuple[str, OutcomeKind]], tripped: bool) -> None:
    assert fed(*rows).tripped is tripped


def test_a_trial_that_learns_nothing_makes_room_for_the_next() -> None:
    common = fed(*[("a", DOWN), ("b", DOWN)] * 3, keys=2)
    assert common.started("a", 10.0)
    assert common.ready_at(10.0) > 10.0
    common.ended("a", OutcomeKind.AUTH_REJECTED, 10.0, 10.1, trial=True, rng=RNG)
    assert common.ready_at(10.1) <= 10.1
    assert common.started("b", 10.2)
    common.ended("b", OK, 10.2, 10.3, trial=True, rng=RNG)
    assert not common.tripped


def two_providers() -> Balancer:
    down = [endpoint(f"down-{n}", address="https://down.test") for n in range(50)]
    return pool(*down, endpoint("up", address="https://up.test"), strategy="round_robin")


def test_a_provider_that_is_down_costs_a_few_requests_not_a_few_a_key() -> None:
    balancer = two_providers()
    failed = 0
    for step in range(300):
        lease = pick(balancer, now=step * 1e-3)
        down = lease.endpoint.id != "up"
        failed += down
        end(balancer, lease, DOWN if down else OK, step * 1e-3)
    assert failed <= 6
    assert balancer.view(0.3).outages == {"https://down.test": "open"}


def test_it_comes_back_by_one_trial() -> None:
    balancer = two_providers()
    while not balancer.view(0.0).outages:
        lease = pick(balancer)
        end(balancer, lease, OK if lease.endpoint.id == "up" else DOWN)
    later = 100.0
    picked = [pick(balancer, now=later) for _ in range(20)]
    trials = [lease for lease in picked if lease.endpoint.id != "up"]
    assert len(trials) == 1
    end(balancer, trials[0], OK, later + 0.1)
    assert not balancer.view(later + 0.1).outages
    assert len({serve(balancer, now=later + 0.2) for _ in range(30)}) > 20


def test_a_pool_on_one_address_is_never_shut() -> None:
    balancer = pool(*(endpoint(f"k{n}") for n in range(5)), strategy="round_robin")
    for _ in range(100):
        decision = balancer.acquire(ASK, now=0.0)
        assert isinstance(decision, Picked)
        end(balancer, decision.lease, DOWN)


def test_a_pool_on_one_address_is_whole_again_with_the_first_answer() -> None:
    limits = {f"q-k{n}": Limits(rpm=60) for n in range(5)}
    balancer = pool(*(endpoint(f"k{n}") for n in range(5)), strategy="round_robin", limits=limits)
    now = 0.0
    while now < 600.0:
        end(balancer, pick(balancer, now=now), DOWN, now)
        now += 0.5
    assert set(balancer.view(now).outages.values()) == {"open"}
    end(balancer, pick(balancer, now=now), OK, now + 0.1)
    assert not balancer.view(now + 0.1).outages
    trials = [pick(balancer, now=now + 0.2) for _ in range(20)]
    assert len({lease.endpoint.id for lease in trials}) == 5, "each key that had failed is tried at once, one at a time"
    for lease in trials:
        end(balancer, lease, OK, now + 0.3)
    asked = Counter(serve(balancer, now=now + 0.4) for _ in range(200))
    assert set(asked.values()) == {40}


def test_an_answer_to_what_was_sent_before_it_opened_does_not_close_it() -> None:
    balancer = pool(*(endpoint(f"k{n}") for n in range(5)), strategy="round_robin")
    early = pick(balancer)
    for _ in range(20):
        end(balancer, pick(balancer, now=1.0), DOWN, 1.0)
    end(balancer, early, OK, 2.0)
    assert balancer.view(2.0).outages


def test_a_probe_that_succeeds_reopens_the_address() -> None:
    balancer = pool(*(endpoint(f"k{n}") for n in range(5)), strategy="round_robin")
    for _ in range(20):
        serve(balancer, kind=DOWN)
    assert balancer.view(0.0).outages
    balancer.revive("k0")
    assert not balancer.view(0.0).outages


def test_addresses() -> None:
    assert address_of(endpoint("a", address="https://x")) == "https://x"
    assert address_of(endpoint("a", region="eu")) == "simulated eu"
    assert address_of(endpoint("a")) == "simulated"


def test_a_key_with_answers_under_way_is_left_in() -> None:
    balancer = pool(*(endpoint(f"k{n}") for n in range(6)), strategy="least_connections")
    busy = pick(balancer)
    for _ in range(40):
        lease = pick(balancer)
        end(balancer, lease, OutcomeKind.ABANDONED if lease.endpoint == busy.endpoint else DOWN)
    assert balancer.view(0.0).outages
    assert pick(balancer).endpoint == busy.endpoint


def of_quota(*outcomes: tuple[str, OutcomeKind], keys: int = 4) -> CommonBreaker:
    common = CommonBreaker(QUOTA)
    common.keys = keys
    for name, kind in outcomes:
        common.ended(name, kind, 0.0, 0.0, trial=False, rng=RNG)
    return common


REJECTED = OutcomeKind.AUTH_REJECTED
QUOTA_CASES: list[tuple[str, list[tuple[str, OutcomeKind]], bool]] = [
    ("an organisation whose keys are all rejected", [("a", REJECTED), ("b", REJECTED), ("c", REJECTED)], True),
    ("two of four", [("a", REJECTED), ("b", REJECTED)], False),
    ("one of them works", [("a", REJECTED), ("b", REJECTED), ("c", OK), ("d", REJECTED)], False),
    ("unreachable says nothing of a quota", [(name, OutcomeKind.CONNECT_FAILED) for name in "abcd" * 3], False),
    ("errors of several keys", [(name, OutcomeKind.SERVER_ERROR) for name in "abcabc"], True),
]


@pytest.mark.parametrize(("outcomes", "open_"), [row[1:] for row in QUOTA_CASES], ids=[row[0] for row in QUOTA_CASES])
def test_quotas(outcomes: list[tuple[str, OutcomeKind]], open_: bool) -> None:
    assert of_quota(*outcomes).tripped is open_


def test_a_blocked_organisation_spares_its_other_keys_and_leaves_the_address_alone() -> None:
    blocked = [endpoint(f"k{n}", quota_id="org", address="https://x") for n in range(6)]
    balancer = pool(*blocked, endpoint("other", quota_id="own", address="https://x", weight=1), strategy="round_robin")
    rejected = 0
    for now in range(40):
        lease = pick(balancer, now=now * 0.01)
        kind = REJECTED if lease.endpoint.quota_id == "org" else OK
        rejected += kind is REJECTED
        end(balancer, lease, kind, now * 0.01)
    assert rejected == 3, "the other three are not asked one by one"
    assert balancer.view(0.5).outages == {"quota org": "ejected"}
    balancer.revive("k5")
    assert balancer.view(0.5).outages == {}
    assert len({serve(balancer, now=0.6 + n / 100) for n in range(12)}) == 4, (
        "the three that were spared, and the other"
    )


def test_keys_with_quotas_of_their_own_share_no_breaker_of_one() -> None:
    balancer = pool(endpoint("a"), endpoint("b"), strategy="round_robin")
    for now in range(4):
        lease = pick(balancer, now=float(now))
        end(balancer, lease, REJECTED if lease.endpoint.id == "a" else OK, float(now))
    assert balancer.view(5.0).outages == {}


def test_where_another_pool_stands_by_only_trials_ask_what_is_broken() -> None:
    balancer = pool(endpoint("a"), endpoint("b"), strategy="round_robin")
    for _ in range(6):
        end(balancer, pick(balancer), DOWN)
    standing_by = replace(ASK, falls_back=True)
    assert balancer.acquire(standing_by, now=0.1) == Refused(Refusal.EXHAUSTED)
    lease = pick(balancer, ASK, 0.1)
    end(balancer, lease, DOWN, 0.1)
    trial = balancer.acquire(standing_by, now=60.0)
    assert isinstance(trial, Picked), "it comes back by itself"
    end(balancer, trial.lease, OK, 60.1)
    assert isinstance(balancer.acquire(standing_by, now=60.2), Picked)
