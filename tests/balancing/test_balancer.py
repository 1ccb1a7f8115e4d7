"""The balancer: its filters and refusals in order, what survives a reload, and that every lease comes home."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.balancing.balancer import MAX_SLATES, RECHECK_S, Balancer
from gateway.balancing.decision import Ask, Lease, Picked, Refusal, Refused, Wait
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.families import MAX_FAMILIES
from gateway.balancing.hints import Hint, WindowHint
from gateway.balancing.illegal import UnknownLease
from gateway.balancing.outcome import Outcome, OutcomeKind, TokenUsage
from gateway.balancing.quota import Limits, Quota
from gateway.balancing.strategies.registry import STRATEGY_NAMES, make_strategy
from tests.balancing.pools import ASK, end, endpoint, pick, picked, pool, serve

GPT = ("gpt-4o",)
REFUSED: list[tuple[str, list[Endpoint], Ask, Refusal]] = [
    ("no keys", [], ASK, Refusal.NO_ENDPOINTS),
    ("no key for the model", [endpoint("a", models=("claude-*",))], ASK, Refusal.NO_MODEL),
    ("no key in the dialect", [endpoint("a")], replace(ASK, dialect="anthropic"), Refusal.NO_MODEL),
    (
        "no key in the region",
        [endpoint("a", region="us")],
        replace(ASK, residency=frozenset({"eu"})),
        Refusal.RESIDENCY,
    ),
    ("a key without region is in none", [endpoint("a")], replace(ASK, residency=frozenset({"eu"})), Refusal.RESIDENCY),
    ("all tried", [endpoint("a")], replace(ASK, excluded=frozenset({"a"})), Refusal.EXHAUSTED),
]


@pytest.mark.parametrize(("endpoints", "ask", "refusal"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(endpoints: list[Endpoint], ask: Ask, refusal: Refusal) -> None:
    assert pool(*endpoints).acquire(ask, now=0.0) == Refused(refusal)


def test_too_large_for_every_quota_is_refused_and_for_one_goes_to_the_other() -> None:
    limits = {"q-a": Limits(tpm=90), "q-b": Limits(tpm=99)}
    small = pool(endpoint("a"), endpoint("b"), limits=limits, provider="openai")
    assert small.acquire(ASK, now=0.0) == Refused(Refusal.TOO_LARGE)
    mixed = pool(endpoint("a"), endpoint("b"), limits=limits | {"q-b": Limits(tpm=1000)}, provider="openai")
    assert {serve(mixed) for _ in range(5)} == {"b"}


def test_rejected_keys_alone_are_exhausted_and_come_back() -> None:
    balancer = pool(endpoint("a"))
    serve(balancer, kind=OutcomeKind.AUTH_REJECTED)
    assert balancer.acquire(ASK, now=1.0) == Refused(Refusal.EXHAUSTED)
    assert balancer.out_of_service() == ["a"]
    balancer.revive("a")
    balancer.revive("unknown")
    assert balancer.out_of_service() == []
    assert serve(balancer, now=1.0) == "a"
    serve(balancer, now=2.0, kind=OutcomeKind.AUTH_REJECTED)
    assert serve(balancer, now=2000.0) == "a"


def test_full_waits_until_the_earliest_refill() -> None:
    limits = {"q-a": Limits(rpm=60), "q-b": Limits(rpm=600)}
    balancer = pool(endpoint("a"), endpoint("b"), limits=limits)
    for _ in range(660):
        serve(balancer)
    decision = balancer.acquire(ASK, now=0.0)
    assert isinstance(decision, Wait)
    assert decision.until == pytest.approx(0.1, abs=1e-3)
    assert balancer.acquire(ASK, now=0.0) is decision
    assert serve(balancer, now=decision.until) == "b"


def test_a_smaller_request_is_not_held_by_a_larger_ones_wait() -> None:
    balancer = pool(endpoint("a"), limits={"q-a": Limits(tpm=1000)})
    pick(balancer, replace(ASK, est_input_tokens=900, est_output_tokens=0))
    assert isinstance(balancer.acquire(replace(ASK, est_input_tokens=101), now=0.0), Wait)
    assert isinstance(balancer.acquire(replace(ASK, est_output_tokens=900), now=0.0), Wait)
    assert isinstance(balancer.acquire(replace(ASK, est_output_tokens=900, output_unset=True), now=0.0), Picked)


def test_a_429_waits_for_its_retry_after_and_spares_the_keys_of_the_same_quota() -> None:
    balancer = pool(endpoint("a", quota_id="q"), endpoint("b", quota_id="q"))
    end(balancer, pick(balancer), OutcomeKind.RATE_LIMITED, hint=Hint(retry_after_s=3.0))
    assert balancer.acquire(ASK, now=0.0) == Wait(3.0, "cooling")


def test_busy_keys_wait_for_a_release_and_the_release_is_announced() -> None:
    freed: list[int] = []
    balancer = Balancer(
        [endpoint("a", max_in_flight=1)],
        [],
        make_strategy("weighted"),
        rng=Random(1),
        on_freed=lambda: freed.append(1),
    )
    lease = pick(balancer)
    assert balancer.acquire(ASK, now=5.0) == Wait(5.0 + RECHECK_S, "busy")
    freed.clear()
    end(balancer, lease, now=5.0)
    assert freed
    assert serve(balancer, now=5.0) == "a"


def test_the_whole_pool_is_never_ejected_by_one_outage() -> None:
    balancer = pool(endpoint("a"), endpoint("b"), endpoint("c"))
    for _ in range(100):
        serve(balancer, kind=OutcomeKind.CONNECT_FAILED)
    assert len(balancer.out_of_service()) == 3
    decision = balancer.acquire(ASK, now=0.0)
    assert isinstance(decision, Picked)
    assert decision.reason == "all_breakers_open"
    end(balancer, decision.lease)
    assert serve(balancer) == decision.lease.endpoint.id


@pytest.mark.parametrize("caps", [{"max_in_flight": 2}, {"quota": Limits(concurrency=2)}])
def test_caps_on_requests_in_flight_hold_when_every_key_is_broken(caps: dict[str, Any]) -> None:
    quota = caps.pop("quota", Limits())
    balancer = pool(endpoint("a", **caps), limits={"q-a": quota})
    for _ in range(3):
        serve(balancer, kind=OutcomeKind.SERVER_ERROR)
    asked = [balancer.acquire(ASK, now=0.1) for _ in range(5)]
    assert [type(each) for each in asked] == [Picked, Picked, Wait, Wait, Wait]
    end(balancer, picked(asked[0]), OutcomeKind.SERVER_ERROR, now=0.2)
    assert isinstance(balancer.acquire(ASK, now=0.2), Picked)


def test_when_every_key_is_broken_one_that_has_room_is_asked() -> None:
    balancer = pool(endpoint("a"), endpoint("b"), limits={"q-a": Limits(rpm=3), "q-b": Limits(rpm=30)})
    asked = [serve(balancer, kind=OutcomeKind.SERVER_ERROR) for _ in range(33)]
    assert (asked.count("a"), asked.count("b")) == (3, 30)
    assert isinstance(balancer.acquire(ASK, now=0.0), Wait)


def test_a_half_open_key_gets_one_trial_while_others_serve() -> None:
    balancer = pool(endpoint("a"), endpoint("b"), strategy="round_robin")
    for _ in range(12):
        lease = pick(balancer)
        end(balancer, lease, OutcomeKind.TIMEOUT if lease.endpoint.id == "a" else OutcomeKind.OK)
    later = [pick(balancer, now=60.0).endpoint.id for _ in range(10)]
    assert later.count("a") == 1


def test_two_models_of_a_per_model_provider_do_not_share_a_limit() -> None:
    for provider, expected in (("openai", Picked), ("unheard-of", Wait)):
        balancer = pool(endpoint("a"), limits={"q-a": Limits(rpm=1)}, provider=provider)
        serve(balancer)
        assert isinstance(balancer.acquire(replace(ASK, model="gpt-4o-mini"), now=0.0), expected)


def test_what_callers_name_is_bounded() -> None:
    balancer = pool(endpoint("a"), limits={"q-a": Limits(rpm=10**6)}, provider="openai")
    for number in range(2 * MAX_SLATES):
        serve(balancer, replace(ASK, model=f"made-up-{number}x"), now=float(number))
    (quota,) = balancer.view(0.0).quotas
    assert len(quota.ledgers) <= MAX_FAMILIES
    assert len(balancer._slates) <= MAX_SLATES


def test_a_lease_is_observed_once_and_learned_from_while_open() -> None:
    balancer = pool(endpoint("a"), provider="openai")
    lease = pick(balancer)
    balancer.learn(lease, Hint(requests=WindowHint(10, 4), quota_name="org/proj"), now=0.0)
    end(balancer, lease)
    with pytest.raises(UnknownLease):
        end(balancer, lease)
    with pytest.raises(UnknownLease):
        balancer.learn(lease, Hint(), now=0.0)
    (quota,) = balancer.view(0.0).quotas
    assert quota.known_as == ("org/proj",)
    assert quota.ledgers[0].limits["rpm"] == (10.0, 4.0)


def test_a_reload_keeps_what_is_known_by_id() -> None:
    limits = Limits(rpm=60)
    balancer = pool(endpoint("a"), endpoint("b"), limits={"q-a": limits, "q-b": limits})
    for _ in range(20):
        serve(balancer)
    lease = pick(balancer, replace(ASK, excluded=frozenset({"b"})))
    assert lease.endpoint.id == "a"
    balancer.reconfigure(
        [endpoint("a", 7), endpoint("c")], [Quota("q-a", Limits(rpm=30), "simulated")], make_strategy("round_robin")
    )
    view = balancer.view(0.0)
    assert view.strategy == "round_robin"
    assert [(each.id, each.in_flight, each.picks > 0) for each in view.endpoints] == [("a", 1, True), ("c", 0, False)]
    limit, available = view.quotas[0].ledgers[0].limits["rpm"]
    assert limit == 30.0
    assert available == pytest.approx(30 - 11, abs=1)
    end(balancer, lease)
    assert balancer.view(0.0).endpoints[0].in_flight == 0


def test_a_removed_keys_lease_and_a_moved_keys_quota_balance_out() -> None:
    balancer = pool(endpoint("a"), endpoint("b"))
    leases = [pick(balancer) for _ in range(4)]
    balancer.reconfigure([endpoint("a", quota_id="other")], [], make_strategy("weighted"))
    for lease in leases:
        end(balancer, lease)
    view = balancer.view(0.0)
    assert view.in_flight == 0
    assert [each.in_flight for each in view.endpoints] == [0]
    assert [each.in_flight for each in view.quotas] == [0]


class Lifecycle(RuleBasedStateMachine):
    """Any order of acquiring, observing, learning, failing and reloading keeps the books right."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.rng = Random(7)
        self.leases: list[Lease] = []
        self.balancer = pool(*self.keys(3), limits={"q0": Limits(rpm=20, tpm=20_000)})

    @staticmethod
    def keys(count: int) -> list[Endpoint]:
        return [endpoint(f"k{n}", n, quota_id=f"q{n // 2}", max_in_flight=4) for n in range(count)]

    @rule(dt=st.floats(0.0, 30.0))
    def wait(self, dt: float) -> None:
        self.now += dt

    @rule(size=st.integers(0, 5000), excluded=st.frozensets(st.sampled_from(["k0", "k1", "k2"])))
    def acquire(self, size: int, excluded: frozenset[str]) -> None:
        decision = self.balancer.acquire(replace(ASK, est_input_tokens=size, excluded=excluded), now=self.now)
        if isinstance(decision, Picked):
            assert decision.lease.endpoint.id not in excluded
            self.leases.append(decision.lease)
        elif isinstance(decision, Wait):
            assert decision.until > self.now

    @precondition(lambda self: self.leases)
    @rule(kind=st.sampled_from(list(OutcomeKind)), output=st.integers(0, 9000), at=st.integers(0, 10**6))
    def observe(self, kind: OutcomeKind, output: int, at: int) -> None:
        lease = self.leases.pop(at % len(self.leases))
        self.balancer.observe(lease, Outcome(kind, usage=TokenUsage(100, output), first_byte_s=0.1), now=self.now)

    @precondition(lambda self: self.leases)
    @rule(limit=st.integers(1, 10**6), remaining=st.integers(0, 10**6), at=st.integers(0, 10**6))
    def learn(self, limit: int, remaining: int, at: int) -> None:
        hint = Hint(requests=WindowHint(limit, min(limit, remaining), 1.0))
        self.balancer.learn(self.leases[at % len(self.leases)], hint, now=self.now)

    @rule(count=st.integers(1, 5), strategy=st.sampled_from(STRATEGY_NAMES))
    def reload(self, count: int, strategy: str) -> None:
        self.balancer.reconfigure(self.keys(count), [Quota("q0", Limits(rpm=30), "simulated")], make_strategy(strategy))

    @invariant()
    def books_balance(self) -> None:
        assert self.balancer.in_flight == len(self.leases)
        for each in self.balancer.view(self.now).endpoints:
            assert 0 <= each.in_flight <= 4

    @invariant()
    def open_breakers_are_known(self) -> None:
        tripped = [each.endpoint.id for each in self.balancer.endpoint_states() if each.breaker.tripped]
        assert self.balancer.out_of_service() == tripped

    def teardown(self) -> None:
        for lease in self.leases:
            end(self.balancer, lease, now=self.now)
        view = self.balancer.view(self.now)
        assert view.in_flight == 0
        assert all(each.in_flight == 0 for each in view.endpoints)
        assert all(each.in_flight == 0 for each in view.quotas)
        # Whatever happened, the pool serves again by itself.
        picked(self.balancer.acquire(replace(ASK, est_input_tokens=0, est_output_tokens=0), now=self.now + 2 * 86400.0))


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
