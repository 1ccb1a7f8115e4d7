"""Hedging: late by measure, bounded by budget, settled whatever happens; playbooks of the race."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.balancing.hedging import LEAST_SAMPLES, Hedge, HedgePolicy, Hedging, Quantile
from gateway.balancing.hints import Hint
from gateway.balancing.outcome import Outcome, OutcomeKind, TokenUsage
from gateway.balancing.quota import Limits
from gateway.balancing.retry import RetryBudget, RetryPolicy
from gateway.balancing.steps import (
    Answered,
    Attempt,
    Await,
    Broke,
    CallerGone,
    Committed,
    Event,
    Fail,
    Finished,
    Overdue,
    Relay,
    Send,
)
from tests.balancing.pools import ASK, endpoint
from tests.balancing.test_exchange import Play

K = OutcomeKind
END = Finished(Outcome(K.OK, usage=TokenUsage(100, 20)))
THREE = (endpoint("a"), endpoint("b"), endpoint("c"))
Told = Callable[[Play], Event]


def hedge(share: float = 1.0) -> Hedge:
    return Hedge(0.5, 0.2, RetryBudget(share, floor_per_s=0.0, burst=1.0))


def first(event: Answered | Broke) -> Told:
    return lambda play: replace(event, lease=play.leases[0])


def second(event: Answered | Broke) -> Told:
    return lambda play: replace(event, lease=play.leases[1])


def plain(event: Event) -> Told:
    return lambda play: event


OK, LIMITED, WRONG = (
    Answered(200, K.OK),
    Answered(429, K.RATE_LIMITED, Hint(retry_after_s=5.0)),
    Answered(400, K.CLIENT_ERROR),
)
REJECTED, CUT = Answered(401, K.AUTH_REJECTED), Broke(K.SERVER_ERROR)

# name, events, the steps that follow (start included), outcomes observed in order
RACES: list[tuple[str, list[Told], list[str], list[OutcomeKind]]] = [
    ("the second wins", [second(OK), plain(END)], ["Send", "Send", "Relay", "Done"], [K.ABANDONED, K.OK]),
    ("the first wins after all", [first(OK), plain(END)], ["Send", "Send", "Relay", "Done"], [K.ABANDONED, K.OK]),
    (
        "a stream",
        [second(OK), plain(Committed()), plain(END)],
        ["Send", "Send", "Relay", "Relay", "Done"],
        [K.ABANDONED, K.OK],
    ),
    (
        "a client error is an answer",
        [second(WRONG), plain(END)],
        ["Send", "Send", "Relay", "Done"],
        [K.ABANDONED, K.CLIENT_ERROR],
    ),
    (
        "the second fails, the first answers",
        [second(LIMITED), plain(OK), plain(END)],
        ["Send", "Send", "Await", "Relay", "Done"],
        [K.RATE_LIMITED, K.OK],
    ),
    (
        "the first fails, the second answers",
        [first(CUT), plain(OK), plain(END)],
        ["Send", "Send", "Await", "Relay", "Done"],
        [K.SERVER_ERROR, K.OK],
    ),
    (
        "both fail and a third key serves",
        [first(CUT), plain(LIMITED), plain(OK), plain(END)],
        ["Send", "Send", "Await", "Send", "Relay", "Done"],
        [K.SERVER_ERROR, K.RATE_LIMITED, K.OK],
    ),
    (
        "a rejected key is not asked again",
        [second(REJECTED), plain(CUT), plain(OK), plain(END)],
        ["Send", "Send", "Await", "Send", "Relay", "Done"],
        [K.AUTH_REJECTED, K.SERVER_ERROR, K.OK],
    ),
    ("the caller leaves both", [plain(CallerGone())], ["Send", "Send", "Done"], [K.ABANDONED, K.ABANDONED]),
    (
        "the caller leaves the one that is left",
        [first(CUT), plain(CallerGone())],
        ["Send", "Send", "Await", "Done"],
        [K.SERVER_ERROR, K.ABANDONED],
    ),
]


@pytest.mark.parametrize(("events", "steps", "outcomes"), [row[1:] for row in RACES], ids=[row[0] for row in RACES])
def test_races(events: list[Told], steps: list[str], outcomes: list[OutcomeKind]) -> None:
    play = Play(*THREE, hedge=hedge())
    play.run(now=0.0)
    assert play.exchange.overdue_at == 0.5
    play.run(Overdue(), now=0.5)
    for told in events:
        play.run(told(play), now=1.0)
    assert play.kinds == steps
    assert [outcome.kind for outcome in play.books.outcomes] == outcomes
    play.assert_settled()
    assert len(set(play.served)) == len(play.served), "never the same key twice"


def test_who_won_is_who_is_relayed_and_the_loser_is_marked() -> None:
    play = Play(*THREE, hedge=hedge())
    play.run()
    play.run(Overdue(), now=0.5)
    step = play.run(first(OK)(play), now=0.7)
    assert isinstance(step, Relay)
    assert step.lease is play.leases[0] is play.exchange.current
    one, two = play.exchange.attempts
    assert (one.hedge, one.lost, two.hedge, two.lost) == (False, False, True, True)
    assert two.total_s == pytest.approx(0.2)
    assert play.exchange.overdue_at is None


def test_what_the_loser_had_reserved_stays_charged_and_nothing_is_in_flight() -> None:
    limits = {f"q-{name}": Limits(rpm=10) for name in "abc"}
    play = Play(*THREE, hedge=hedge(), limits=limits)
    play.run()
    play.run(Overdue(), now=0.5)
    play.run(second(OK)(play), END, now=1.0)
    view = {quota.id: quota for quota in play.books.inner.view(1.0).quotas}
    spent = sorted(round(view[f"q-{each}"].ledgers[0].limits["rpm"][1]) for each in "abc")
    assert spent == [9, 9, 10]
    assert all(quota.in_flight == 0 for quota in view.values())


NOT: list[tuple[str, dict[str, object]]] = [
    ("a body that cannot be sent twice", {"replayable": False}),
    ("one attempt only", {"policy": RetryPolicy(failover=False)}),
    ("no budget", {"hedge": hedge(0.0)}),
    ("the deadline is over", {"ask": replace(ASK, deadline=0.5)}),
    ("only one region may serve", {"ask": replace(ASK, residency=frozenset({"eu"}))}),
]


@pytest.mark.parametrize("more", [row[1] for row in NOT], ids=[row[0] for row in NOT])
def test_no_second_attempt(more: dict[str, object]) -> None:
    given = {"hedge": hedge(), **more}
    budget = given["hedge"]
    assert isinstance(budget, Hedge)
    if more.get("hedge"):
        budget.budget.withdraw(0.0)
    keys = (endpoint("a", region="eu"), endpoint("b", region="us"), endpoint("c", region="us"))
    play = Play(*keys, **given)  # type: ignore[arg-type]
    play.run()
    if more.get("replayable") is False:
        assert play.exchange.overdue_at is None
        return
    assert play.run(Overdue(), now=0.5) == Await()
    assert play.exchange.overdue_at is None, "it is asked once"
    assert isinstance(play.run(OK, now=0.6), Relay)


def test_a_key_without_room_is_not_asked() -> None:
    play = Play(endpoint("a"), endpoint("b"), hedge=hedge(), limits={"q-a": Limits(rpm=20), "q-b": Limits(rpm=20)})
    busy = "b" if play.run() and play.served == ["a"] else "a"
    for _ in range(17):
        lease = play.books.inner.spare(replace(ASK, excluded=frozenset({"a", "b"} - {busy})), now=0.0, headroom=0.0)
        assert lease is not None
        play.books.inner.observe(lease, Outcome(K.OK), now=0.0)
    assert play.run(Overdue(), now=0.5) == Await()


def test_a_broken_key_is_not_asked() -> None:
    play = Play(endpoint("a"), endpoint("b"), hedge=hedge())
    play.run()
    other = "b" if play.served == ["a"] else "a"
    for _ in range(3):
        lease = play.books.inner.spare(replace(ASK, excluded=frozenset({play.served[0]})), now=0.0, headroom=0.0)
        assert lease is not None
        assert lease.endpoint.id == other
        play.books.inner.observe(lease, Outcome(K.SERVER_ERROR), now=0.0)
    assert play.run(Overdue(), now=5.0) == Await()


EVENTS = st.sampled_from([OK, LIMITED, WRONG, REJECTED, CUT, Broke(K.TIMEOUT), Broke(K.CONNECT_FAILED)])


@settings(max_examples=80, deadline=None)
@given(
    regions=st.lists(st.sampled_from(["eu", "us"]), min_size=1, max_size=5),
    residency=st.sampled_from([frozenset[str](), frozenset({"eu"})]),
    events=st.lists(st.tuples(EVENTS, st.booleans()), max_size=8),
    seed=st.integers(0, 3),
)
def test_every_race_is_settled_and_residency_holds(
    regions: list[str], residency: frozenset[str], events: list[tuple[Answered | Broke, bool]], seed: int
) -> None:
    keys = [endpoint(f"k{n}", region=region) for n, region in enumerate(regions)]
    play = Play(*keys, ask=replace(ASK, residency=residency), hedge=hedge(), policy=RetryPolicy(max_attempts=5))
    del seed
    step = play.run()
    now = 0.0
    for event, is_first in events:
        if play.exchange.is_over or isinstance(step, Fail | Relay):
            break
        now += 0.6
        if play.exchange.overdue_at is not None:
            step = play.run(Overdue(), now=now)
        if not isinstance(step, Send | Await):
            break
        pending = [lease for lease in play.leases if play.books.returned[lease.id] == 0]
        step = play.run(replace(event, lease=pending[0 if is_first else -1]), now=now)
        assert sum(play.books.returned[lease.id] == 0 for lease in play.leases) <= 2
    play.run(CallerGone(), now=now + 1.0)
    play.assert_settled()
    allowed = {key.id for key in keys if not residency or key.region in residency}
    assert set(play.served) <= allowed


@given(st.lists(st.floats(0.001, 300.0), min_size=1, max_size=400))
def test_a_quantile_is_within_a_bucket_of_the_true_one(samples: list[float]) -> None:
    found = Quantile()
    for sample in samples:
        found.add(sample)
    ordered = sorted(samples)
    # The weights differ by a factor of up to 1.32 over 400 samples, hence the slack of ranks.
    low, high = ordered[int(len(ordered) * 0.92)], ordered[min(len(ordered) - 1, int(len(ordered) * 0.97) + 1)]
    assert low / 1.16 <= found.read() <= high * 1.16


def test_what_is_late_follows_the_answers() -> None:
    rng, found = Random(1), Quantile()
    for _ in range(5_000):
        found.add(rng.uniform(0.1, 0.2))
    assert 0.18 <= found.read() <= 0.23
    for _ in range(5_000):
        found.add(rng.uniform(1.0, 2.0))
    assert 1.8 <= found.read() <= 2.3


def attempts(seconds: float) -> list[Attempt]:
    return [Attempt("a", 0.0, K.OK, 200, seconds, seconds)]


def test_nothing_is_late_before_enough_is_known_and_models_are_apart() -> None:
    hedging = Hedging(HedgePolicy(least_s=0.05))
    for number in range(LEAST_SAMPLES):
        assert hedging.begin("slow", float(number)) is None
        hedging.ended("slow", attempts(2.0), "a")
        hedging.ended("fast", attempts(0.001), "a")
    found = hedging.begin("slow", 99.0)
    assert found is not None
    assert found.delay_s == pytest.approx(2.0, rel=0.16)
    assert hedging.late_s("fast") == 0.05, "never sooner than least_s"
    assert hedging.late_s("other") is None


def test_second_attempts_are_a_share_of_the_requests() -> None:
    hedging = Hedging(HedgePolicy(share=0.05))
    for _ in range(LEAST_SAMPLES):
        hedging.ended("m", attempts(1.0), "a")
    sent = 0
    for number in range(1_000):
        found = hedging.begin("m", number * 0.01)
        assert found is not None
        sent += found.budget.withdraw(number * 0.01)
    assert 45 <= sent <= 60


def test_tallies_and_models_are_kept_in_bounds() -> None:
    hedging = Hedging(HedgePolicy())
    two = [Attempt("a", 0.0, K.ABANDONED, total_s=1.0, lost=True), Attempt("b", 0.5, K.OK, 200, 0.2, hedge=True)]
    hedging.ended("m", two, "b")
    two = [Attempt("a", 0.0, K.OK, 200, 1.0), Attempt("b", 0.5, K.ABANDONED, total_s=0.5, hedge=True, lost=True)]
    hedging.ended("m", two, "a")
    two = [Attempt("a", 0.0, K.OK, 200, 1.0), Attempt("b", 0.5, K.RATE_LIMITED, 429, 0.1, hedge=True)]
    hedging.ended("m", two, "a")
    assert (hedging.sent, hedging.won, hedging.lost, hedging.failed) == (3, 1, 1, 1)
    for number in range(1_000):
        hedging.ended(f"m{number}", attempts(1.0), "a")
    assert hedging.late_s("m") is None
