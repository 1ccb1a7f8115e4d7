"""The window semantics: what each admits at most, when it is free again, and how a provider's word corrects it."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.balancing.limiter import Bucket, FixedWindow, Meter, SlidingWindow

Make = Callable[[float, float], Meter]


def bucket(limit: float, window_s: float) -> Meter:
    return Bucket(limit, window_s, 0.0)


def fixed(limit: float, window_s: float) -> Meter:
    return FixedWindow(limit, window_s, 0.0)


def sliding(limit: float, window_s: float) -> Meter:
    return SlidingWindow(limit, window_s, 0.0)


EVERY = pytest.mark.parametrize("make", [bucket, fixed, sliding])


@EVERY
def test_a_fresh_meter_is_full_and_an_impossible_amount_never_free(make: Make) -> None:
    meter = make(10, 60)
    assert meter.available(0.0) == 10
    assert meter.earliest(10, 0.0) == 0.0
    assert meter.earliest(11, 0.0) == inf


@EVERY
def test_reading_changes_nothing(make: Make) -> None:
    meter, twin = make(10, 60), make(10, 60)
    meter.take(7, 1.0)
    twin.take(7, 1.0)
    for now in (1.0, 5.0, 30.0, 59.0, 61.0):
        meter.available(now)
        meter.earliest(5, now)
    assert meter.available(62.0) == twin.available(62.0)


@EVERY
@settings(max_examples=60, deadline=None)
@given(
    moves=st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(1, 10)), max_size=40),
    amount=st.integers(1, 10),
)
def test_earliest_is_true_and_not_before_time(make: Make, moves: list[tuple[float, int]], amount: int) -> None:
    meter, now = make(10, 60), 0.0
    for dt, size in moves:
        now += dt
        if meter.available(now) >= size:
            meter.take(size, now)
    at = meter.earliest(amount, now)
    assert now <= at < inf
    assert (at <= now) == (meter.available(now) >= amount)
    assert meter.available(at) >= amount - 1e-6


@EVERY
@settings(max_examples=60, deadline=None)
@given(moves=st.lists(st.tuples(st.floats(0.0, 15.0), st.integers(1, 4)), max_size=80))
def test_never_above_limit_plus_stated_burst(make: Make, moves: list[tuple[float, int]]) -> None:
    limit, window_s = 10.0, 60.0
    meter, now = make(limit, window_s), 0.0
    admitted: list[tuple[float, int]] = []
    for dt, size in moves:
        now += dt
        if meter.earliest(size, now) <= now:
            meter.take(size, now)
            admitted.append((now, size))
    bound = limit if make is sliding else 2 * limit
    for end, _ in admitted:
        assert sum(size for at, size in admitted if end - window_s < at <= end) <= bound + 1e-6
    if make is fixed:
        for window in {int(at // window_s) for at, _ in admitted}:
            assert sum(size for at, size in admitted if int(at // window_s) == window) <= limit


def test_the_bucket_refills_continuously() -> None:
    meter = Bucket(60, 60, 0.0)
    meter.take(60, 0.0)
    assert meter.available(0.5) == pytest.approx(0.5)
    assert meter.earliest(3, 0.0) == pytest.approx(3.0, abs=1e-3)


def test_the_fixed_window_ends_at_its_phase() -> None:
    meter = FixedWindow(5, 86400.0, 1000.0, phase=-3600.0)
    meter.take(5, 1000.0)
    assert meter.earliest(1, 1000.0) == 86400.0 - 3600.0


def test_the_sliding_window_holds_an_amount_one_slot_longer_at_most() -> None:
    meter = SlidingWindow(5, 60.0, 0.0)
    meter.take(5, 1.0)
    assert meter.available(60.9) == 0
    assert 61.0 <= meter.earliest(1, 1.0) <= 64.0


def test_a_refund_gives_back_and_an_overrun_is_owed() -> None:
    for make in (bucket, fixed, sliding):
        meter = make(100, 60)
        meter.take(80, 0.0)
        meter.adjust(-50, 0.0, 0.0)
        assert meter.available(0.0) == pytest.approx(70)
        meter.adjust(90, 0.0, 0.0)
        assert meter.available(0.0) == pytest.approx(-20)


def test_a_late_refund_does_not_give_twice() -> None:
    for make in (bucket, fixed, sliding):
        meter = make(100, 60)
        meter.take(100, 0.0)
        meter.adjust(-100, 0.0, 200.0)
        meter.take(100, 200.0)
        assert meter.available(200.0) <= 1e-6


@EVERY
def test_the_provider_is_believed_and_what_is_in_flight_comes_off(make: Make) -> None:
    meter = make(1000, 60)
    meter.take(10, 10.0)
    mark = meter.taken
    meter.take(30, 10.0)  # sent after the request that the answer is about
    meter.resync(500, as_of=10.0, mark=mark, reset_s=None, now=10.0)
    assert meter.available(10.0) == pytest.approx(470)


@EVERY
def test_the_provider_may_say_that_more_is_free_than_was_thought(make: Make) -> None:
    meter = make(1000, 60)
    meter.take(900, 10.0)
    meter.resync(950, as_of=10.0, mark=meter.taken, reset_s=None, now=10.0)
    assert meter.available(10.0) == pytest.approx(950)


def test_the_bucket_adds_what_has_refilled_since_the_provider_looked() -> None:
    meter = Bucket(600, 60, 0.0)
    meter.take(1, 0.0)
    meter.resync(100, as_of=0.0, mark=meter.taken, reset_s=None, now=2.0)
    assert meter.available(2.0) == pytest.approx(120)


def test_the_fixed_window_learns_its_phase_from_the_reset() -> None:
    meter = FixedWindow(10, 60.0, 0.0)
    meter.take(10, 5.0)
    meter.resync(0, as_of=5.0, mark=meter.taken, reset_s=7.0, now=5.0)
    assert meter.earliest(1, 5.0) == pytest.approx(12.0)


def test_the_sliding_window_frees_others_use_at_the_told_reset() -> None:
    meter = SlidingWindow(10, 60.0, 100.0)
    meter.take(1, 100.0)
    meter.resync(0, as_of=100.0, mark=meter.taken, reset_s=12.0, now=100.0)
    assert meter.available(100.0) == 0
    assert 112.0 <= meter.earliest(5, 100.0) <= 118.0


def test_the_sliding_window_holds_an_amount_hardly_longer_than_the_window() -> None:
    meter = SlidingWindow(10, 60.0, 0.0)
    for second in range(10):
        meter.take(1, second + 0.3)
    assert meter.earliest(1, 10.0) <= 60.3 + 60.0 / SlidingWindow.SLOTS + 0.01
    # A full window's worth goes through in every window, but for the part of a slot.
    sent, now = 10, 10.0
    while (now := meter.earliest(1, now)) < 660.0:
        meter.take(1, now)
        sent += 1
    assert sent >= 109


@EVERY
def test_a_smaller_limit_keeps_what_is_in_use(make: Make) -> None:
    meter = make(100, 60)
    meter.take(40, 0.0)
    meter.resize(50, 0.0)
    assert meter.available(0.0) == pytest.approx(10)
    assert meter.limit == 50


@EVERY
@pytest.mark.parametrize("overdrawn", [0, 500])
def test_a_far_smaller_limit_makes_no_debt_of_what_the_larger_one_allowed(make: Make, overdrawn: int) -> None:
    meter = make(86_400, 60)
    meter.take(86_400 + overdrawn, 0.0)
    meter.resize(30, 0.0)
    assert meter.available(130.0) >= 30, "two windows later everything is free again, not in a day"


@EVERY
def test_time_standing_still_or_jumping_back_is_harmless(make: Make) -> None:
    meter = make(10, 60)
    meter.take(10, 100.0)
    assert meter.available(50.0) <= 0.0 or make is fixed
    meter.take(1, 50.0)
    assert meter.available(100.0) <= 0.0


@given(
    phase=st.floats(-1e6, 2e9, allow_nan=False),
    window_s=st.sampled_from((10.0, 60.0, 86_400.0)),
    starts=st.integers(1, 50),
)
def test_a_fixed_window_that_opens_exactly_now_counts_what_is_taken(phase: float, window_s: float, starts: int) -> None:
    """A waiter wakes at the very boundary: a quotient that rounds down there must not leave the last window open."""
    meter = FixedWindow(2.0, window_s, phase + 0.25 * window_s, phase=phase)
    meter.take(2.0, phase + 0.5 * window_s)
    for _ in range(starts):
        now = meter.earliest(2.0, phase + 0.5 * window_s)
        assert meter.available(now) == 2.0
        meter.take(2.0, now)
        assert meter.available(now) == 0.0


def test_others_slow_the_refill_until_the_next_word() -> None:
    bucket = Bucket(60.0, 60.0, 0.0)
    bucket.take(60.0, 0.0)
    bucket.lean(0.5, 0.0)
    assert bucket.available(10.0) == pytest.approx(5.0)
    assert bucket.earliest(6.0, 10.0) == pytest.approx(12.0, abs=1e-3)
    bucket.lean(100.0, 10.0)
    assert bucket.available(20.0) > 5.0
    window = FixedWindow(60.0, 60.0, 0.0)
    window.lean(0.5, 0.0)
    assert window.available(10.0) == pytest.approx(55.0)
    assert window.available(60.0) == pytest.approx(60.0)


def test_a_rephased_window_keeps_its_use_until_the_next_begins() -> None:
    window = FixedWindow(10.0, 60.0, 0.0)
    window.take(7.0, 30.0)
    window.rephase(45.0, 31.0)
    assert window.available(44.0) == 3.0
    assert window.available(45.0) == 10.0
