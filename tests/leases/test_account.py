"""Accounts: what each kind gives back, and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.balancing.limiter import Bucket, FixedWindow
from gateway.leases.account import Account, Kind

STEPS = st.lists(st.tuples(st.floats(0, 40), st.integers(0, 30)), max_size=30)


@given(steps=STEPS)
def test_a_bucket_is_the_limiters_bucket(steps: list[tuple[float, int]]) -> None:
    now = 1000.0
    account, meter = Account.open("bucket", 60.0, 60.0, 0.0, now), Bucket(60.0, 60.0, now)
    for wait_s, amount in steps:
        now += wait_s
        assert account.available(now) == pytest.approx(meter.available(now))
        account.charge(amount, now)
        meter.take(amount, now)


@given(steps=STEPS)
def test_a_fixed_window_is_the_limiters_window(steps: list[tuple[float, int]]) -> None:
    now = 1000.0
    account, meter = Account.open("fixed", 60.0, 60.0, 7.0, now), FixedWindow(60.0, 60.0, now, phase=7.0)
    for wait_s, amount in steps:
        now += wait_s
        assert account.available(now) == pytest.approx(meter.available(now))
        account.charge(amount, now)
        meter.take(amount, now)


@given(steps=STEPS)
def test_a_sliding_window_holds_every_amount_for_a_window_and_at_most_a_slot_longer(
    steps: list[tuple[float, int]],
) -> None:
    now = 1000.0
    account = Account.open("sliding", 60.0, 60.0, 0.0, now)
    log: list[tuple[float, int]] = []
    for wait_s, amount in steps:
        now += wait_s
        used = 60.0 - account.available(now)
        assert used >= sum(taken for at, taken in log if at > now - 60.0)
        assert used <= sum(taken for at, taken in log if at > now - 63.1)
        account.charge(amount, now)
        log.append((now, amount))


def test_requests_in_flight_are_held_never_charged() -> None:
    account = Account.open("slots", 8.0, 0.0, 0.0, 0.0)
    account.charge(5.0, 1.0)
    assert account.available(1.0) == 8.0


def test_what_was_given_back_is_there_again_but_never_more_than_the_limit() -> None:
    account = Account.open("bucket", 60.0, 60.0, 0.0, 0.0)
    account.charge(10.0, 0.0)
    account.charge(-30.0, 0.0)
    assert account.available(0.0) == 60.0


@pytest.mark.parametrize("kind", ["bucket", "fixed", "sliding"])
def test_a_changed_limit_leaves_in_use_what_is_in_use(kind: Kind) -> None:
    account = Account.open(kind, 60.0, 60.0, 0.0, 30.0)
    account.charge(20.0, 30.0)
    account.fit(kind, 100.0, 60.0, 0.0, 30.0)
    assert account.available(30.0) == 80.0


def test_a_window_of_another_kind_goes_on_with_what_is_in_use() -> None:
    account = Account.open("sliding", 60.0, 60.0, 0.0, 30.0)
    account.charge(20.0, 30.0)
    account.fit("fixed", 60.0, 60.0, 5.0, 30.0)
    assert account.available(30.0) == 40.0
    assert account.available(65.0) == 60.0


@pytest.mark.parametrize(
    ("remaining", "unreported", "since", "becomes"),
    [
        (40.0, 10.0, 0.0, 50.0),  # just what is under way explains
        (30.0, 10.0, 0.0, 40.0),  # somebody else has taken 10
        (58.0, 0.0, 3.0, 55.0),  # we charged too much; three were sent after the provider spoke
        (51.0, 0.0, 0.0, 50.0),  # too little to tell
        (90.0, 0.0, 0.0, 60.0),  # never above the limit
    ],
)
def test_the_providers_word_corrects_only_what_we_cannot_explain(
    remaining: float, unreported: float, since: float, becomes: float
) -> None:
    account = Account.open("bucket", 60.0, 60.0, 0.0, 0.0)
    account.charge(10.0, 0.0)
    account.told(remaining, unreported, since, 0.0)
    assert account.available(0.0) == pytest.approx(becomes)


@pytest.mark.parametrize(
    ("recent", "free_now", "free_in_s"),
    [
        ([(0.0, 10.0)], 0.0, 1.05),
        ([(0.9, 10.0)], 0.0, 0.15),
        ([(0.9, 4.0), (0.2, 6.0)], 0.0, 0.15),
        ([(0.2, 6.0)], 4.0, 0.0),
        ([], 10.0, 0.0),
    ],
    ids=["just now", "long ago", "in two parts", "part is back", "all is back"],
)
def test_what_is_told_with_its_time_is_free_when_its_window_is_over(
    recent: list[tuple[float, float]], free_now: float, free_in_s: float
) -> None:
    account = Account.open("sliding", 10.0, 1.0, 0.0, 100.0)
    account.charge_dated(10.0, recent, 100.0)
    assert account.total == 10.0
    assert account.available(100.0) == free_now
    assert account.free_in(1.0, 0.0, 100.0) == pytest.approx(free_in_s, abs=0.051)
    assert account.available(101.06) == 10.0


@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.1, 5.0)), max_size=12))
def test_dated_charges_count_no_less_than_what_lies_in_the_window(spent: list[tuple[float, float]]) -> None:
    account, now = Account.open("sliding", 1000.0, 1.0, 0.0, 0.0), 10.0
    for at, (age_s, amount) in enumerate(spent):
        account.charge_dated(amount, [(age_s, amount)], now + 0.01 * at)
    ends = now + 0.01 * len(spent)
    held = sum(amount for at, (age_s, amount) in enumerate(spent) if now + 0.01 * at - age_s > ends - 1.0)
    assert 1000.0 - account.available(ends) >= held - 1e-6
    assert account.slots == sorted(account.slots)
