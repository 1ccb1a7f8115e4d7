"""Retry policy and budget: bounds and accounting."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.balancing.retry import RetryBudget, RetryPolicy


@pytest.mark.parametrize(
    ("policy", "allowed"),
    [
        (RetryPolicy(max_attempts=3), 3),
        (RetryPolicy(max_attempts=0), 1),
        (RetryPolicy(max_attempts=5, failover=False), 1),
    ],
)
def test_attempts_allowed(policy: RetryPolicy, allowed: int) -> None:
    assert policy.attempts_allowed == allowed


@settings(max_examples=60, deadline=None)
@given(failures=st.integers(0, 10_000), seed=st.integers())
def test_backoff_is_full_jitter_under_its_ceiling(failures: int, seed: int) -> None:
    policy = RetryPolicy(backoff_base_s=0.1, backoff_cap_s=2.0)
    ceiling = min(2.0, 0.1 * 2.0 ** min(max(failures, 1) - 1, 30))
    assert 0.0 <= policy.backoff_s(failures, Random(seed)) <= ceiling


def test_the_budget_is_a_share_of_traffic() -> None:
    budget = RetryBudget(0.2, floor_per_s=0.0, burst=10.0)
    while budget.withdraw(0.0):
        pass
    granted = 0
    for _ in range(100):
        budget.deposit(0.0)
        granted += budget.withdraw(0.0)
    assert granted == pytest.approx(20, abs=1)


def test_a_quiet_pool_may_retry_again_after_a_while() -> None:
    budget = RetryBudget(0.0, floor_per_s=0.5, burst=1.0)
    assert budget.withdraw(0.0)
    assert not budget.withdraw(1.0)
    assert budget.withdraw(2.0)


@settings(max_examples=60, deadline=None)
@given(moves=st.lists(st.tuples(st.booleans(), st.floats(0.0, 5.0)), max_size=60))
def test_the_balance_stays_within_its_bounds(moves: list[tuple[bool, float]]) -> None:
    budget, now = RetryBudget(0.3, burst=5.0), 0.0
    for deposit, dt in moves:
        now += dt
        if deposit:
            budget.deposit(now)
        else:
            budget.withdraw(now)
        assert 0.0 <= budget.balance <= 5.0
