"""The breaker as playbooks: what opens it, what closes it, and that it always comes back."""

from __future__ import annotations

from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.balancing.breaker import (
    EJECTED_BASE_S,
    EJECTED_CAP_S,
    OPEN_BASE_S,
    OPEN_CAP_S,
    THRESHOLD,
    TRIAL_TIMEOUT_S,
    Breaker,
    BreakerState,
)
from gateway.balancing.outcome import OutcomeKind

RNG = Random(1)
FAILURES = [OutcomeKind.SERVER_ERROR, OutcomeKind.TIMEOUT, OutcomeKind.CONNECT_FAILED]


def run(breaker: Breaker, kind: OutcomeKind, now: float) -> None:
    breaker.ended(kind, now, trial=breaker.started(now), rng=RNG)


def opened(kind: OutcomeKind = OutcomeKind.CONNECT_FAILED, now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(THRESHOLD):
        run(breaker, kind, now)
    return breaker


@pytest.mark.parametrize("kind", FAILURES)
def test_failures_in_a_row_open_it(kind: OutcomeKind) -> None:
    breaker = opened(kind)
    assert breaker.state(0.0) is BreakerState.OPEN
    assert 0.75 * OPEN_BASE_S <= breaker.ready_at(0.0) <= OPEN_BASE_S


@pytest.mark.parametrize("kind", [OutcomeKind.OK, OutcomeKind.CLIENT_ERROR, OutcomeKind.RATE_LIMITED])
def test_any_answer_breaks_the_row(kind: OutcomeKind) -> None:
    breaker = Breaker()
    for _ in range(THRESHOLD - 1):
        run(breaker, OutcomeKind.TIMEOUT, 0.0)
    run(breaker, kind, 0.0)
    run(breaker, OutcomeKind.TIMEOUT, 0.0)
    assert breaker.state(0.0) is BreakerState.CLOSED


def test_half_of_many_attempts_failing_opens_it_too() -> None:
    breaker = Breaker()
    for attempt in range(11):
        run(breaker, OutcomeKind.OK if attempt % 2 else OutcomeKind.SERVER_ERROR, 0.0)
    assert breaker.state(0.0) is BreakerState.OPEN
    breaker.ended(OutcomeKind.OK, 0.0, trial=False, rng=RNG)
    assert breaker.state(0.0) is BreakerState.OPEN


def test_abandoned_attempts_teach_nothing() -> None:
    breaker = Breaker()
    for _ in range(50):
        run(breaker, OutcomeKind.ABANDONED, 0.0)
    assert breaker.state(0.0) is BreakerState.CLOSED


def test_half_open_allows_one_trial_and_success_closes() -> None:
    breaker = opened()
    now = breaker.until
    assert breaker.state(now) is BreakerState.HALF_OPEN
    assert breaker.ready_at(now) <= now
    assert breaker.started(now)
    assert breaker.ready_at(now) == inf
    breaker.ended(OutcomeKind.OK, now, trial=True, rng=RNG)
    assert breaker.state(now) is BreakerState.CLOSED


def test_a_failed_trial_opens_it_for_longer_up_to_the_cap() -> None:
    breaker, waits = opened(), []
    for _ in range(12):
        now = breaker.until
        run(breaker, OutcomeKind.CONNECT_FAILED, now)
        waits.append(breaker.until - now)
    assert waits[0] > OPEN_BASE_S
    assert max(waits) <= OPEN_CAP_S
    assert waits[-1] >= 0.75 * OPEN_CAP_S


def test_an_abandoned_trial_makes_room_for_the_next() -> None:
    breaker = opened()
    now = breaker.until
    run(breaker, OutcomeKind.ABANDONED, now)
    assert breaker.ready_at(now) <= now


def test_a_trial_that_never_came_back_does_not_block_for_ever() -> None:
    breaker = opened()
    now = breaker.until
    breaker.started(now)
    assert breaker.ready_at(now + TRIAL_TIMEOUT_S + 1) < now + TRIAL_TIMEOUT_S


def test_stragglers_do_not_prolong_an_open_breaker() -> None:
    breaker = opened()
    until = breaker.until
    breaker.ended(OutcomeKind.TIMEOUT, 0.1, trial=False, rng=RNG)
    assert breaker.until == until


def test_a_rejected_key_is_out_for_long_and_comes_back_by_trial() -> None:
    breaker = Breaker()
    run(breaker, OutcomeKind.AUTH_REJECTED, 0.0)
    assert breaker.state(1.0) is BreakerState.EJECTED
    assert breaker.until >= 0.75 * EJECTED_BASE_S
    breaker.ended(OutcomeKind.OK, 1.0, trial=False, rng=RNG)  # a straggler with the old verdict
    assert breaker.state(1.0) is BreakerState.EJECTED
    for _ in range(20):
        now = breaker.until
        run(breaker, OutcomeKind.AUTH_REJECTED, now)
        assert breaker.until - now <= EJECTED_CAP_S
    run(breaker, OutcomeKind.OK, breaker.until)
    assert breaker.state(breaker.until) is BreakerState.CLOSED


def test_a_probe_revives_at_once() -> None:
    breaker = Breaker()
    run(breaker, OutcomeKind.AUTH_REJECTED, 0.0)
    breaker.revive()
    assert breaker.state(0.0) is BreakerState.CLOSED
    assert breaker.ready_at(0.0) <= 0.0


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(list(OutcomeKind)), st.floats(0.0, 100.0)), max_size=60))
def test_every_history_comes_back_by_itself(steps: list[tuple[OutcomeKind, float]]) -> None:
    breaker, now, rng = Breaker(), 0.0, Random(3)
    for kind, dt in steps:
        now += dt
        if breaker.ready_at(now) <= now:
            breaker.ended(kind, now, trial=breaker.started(now), rng=rng)
    later = now + EJECTED_CAP_S + TRIAL_TIMEOUT_S
    assert breaker.ready_at(later) <= later
    run(breaker, OutcomeKind.OK, later)
    assert breaker.state(later) is BreakerState.CLOSED
