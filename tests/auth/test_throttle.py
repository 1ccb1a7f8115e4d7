"""The limits on token requests: bursts, refills, and a bounded memory that only forgives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from auth.throttle import Rate, Throttle

RATE = Rate(per_s=2.0, burst=3)
KEY = ("failed", "192.0.2.1")


def test_a_burst_then_one_each_refill() -> None:
    throttle = Throttle()
    for _ in range(3):
        assert throttle.wait_s(KEY, RATE, now=10.0) == 0.0
        throttle.count(KEY, RATE, now=10.0)
    assert throttle.wait_s(KEY, RATE, now=10.0) == 0.5
    assert throttle.wait_s(("failed", "192.0.2.2"), RATE, now=10.0) == 0.0
    assert throttle.wait_s(KEY, RATE, now=10.5) == 0.0
    throttle.count(KEY, RATE, now=10.5)
    assert throttle.wait_s(KEY, RATE, now=10.5) == 0.5


@given(st.lists(st.floats(0, 2), max_size=60))
def test_never_more_than_the_burst_and_the_refill(waits: list[float]) -> None:
    throttle, now, passed = Throttle(), 0.0, 0
    for wait in waits:
        now += wait
        if throttle.wait_s(KEY, RATE, now=now) == 0.0:
            throttle.count(KEY, RATE, now=now)
            passed += 1
    assert passed <= RATE.burst + RATE.per_s * now + 1e-6


def test_the_memory_is_bounded_and_forgives_the_oldest() -> None:
    throttle = Throttle(capacity=2)
    for address in ("a", "b", "c"):
        for _ in range(3):
            throttle.count((address,), RATE, now=0.0)
    assert throttle.wait_s(("a",), RATE, now=0.0) == 0.0
    assert throttle.wait_s(("c",), RATE, now=0.0) > 0.0


def test_a_clock_that_is_set_back_locks_nobody_out() -> None:
    throttle = Throttle()
    for _ in range(RATE.burst * 3):
        throttle.count(KEY, RATE, now=7200.0)
    assert throttle.wait_s(KEY, RATE, now=7200.0) > 0.0, "beyond the limit, and no way around it by going on"
    assert throttle.wait_s(KEY, RATE, now=0.0) == 0.0
    throttle.count(KEY, RATE, now=0.0)
    assert throttle.wait_s(KEY, RATE, now=7200.0) == 0.0
