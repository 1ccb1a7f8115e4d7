"""Limits of tokens: windows and periods by example, then any history against what the limit promises."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.details import Detail, Limit
from gateway.policy.allowance import InMemoryAllowances, Taken
from gateway.policy.budgets import period_ends_in, period_of
from gateway.policy.limits import NANOS, Exceeded, Need, limits_of

NOON = datetime(2025, 1, 31, 12, 0, tzinfo=UTC).timestamp()
CENT = NANOS // 100


def limit(bucket: str = "jti:0", **more: Any) -> Limit:
    return Limit(bucket, **more)


def taken(found: Taken | Exceeded) -> Taken:
    assert isinstance(found, Taken), found
    return found


def refused(found: Taken | Exceeded) -> Exceeded:
    assert isinstance(found, Exceeded), found
    return found


def test_requests_of_a_minute() -> None:
    keeper, three = InMemoryAllowances(), [limit(rpm=3)]
    for second in (0.0, 10.0, 20.0):
        taken(keeper.take(three, Need(), now=NOON + second))
    answer = refused(keeper.take(three, Need(), now=NOON + 30))
    assert (answer.member, answer.retry_after_s, answer.reason) == ("rpm", 31.0, "spent")
    taken(keeper.take(three, Need(), now=NOON + 61))
    refused(keeper.take(three, Need(), now=NOON + 61))


def test_tokens_are_reserved_and_settled() -> None:
    keeper, thousand = InMemoryAllowances(), [limit(tpm=1000)]
    first = taken(keeper.take(thousand, Need(300, 500), now=NOON))
    assert refused(keeper.take(thousand, Need(300, 0), now=NOON)).member == "tpm"
    keeper.settle(first, tokens=310, nanos=None, sent=True, now=NOON + 1)
    second = taken(keeper.take(thousand, Need(300, 0), now=NOON + 1))
    keeper.settle(second, tokens=700, nanos=None, sent=True, now=NOON + 2)
    assert refused(keeper.take(thousand, Need(1, 0), now=NOON + 2)).retry_after_s == 59.0


def test_a_guess_above_the_whole_limit_asks_for_all_of_it() -> None:
    keeper, small = InMemoryAllowances(), [limit(tpm=100)]
    too_large = refused(keeper.take(small, Need(101, 0), now=NOON))
    assert (too_large.reason, too_large.retry_after_s) == ("too_large", None)
    taken(keeper.take(small, Need(50, 512), now=NOON))
    refused(keeper.take(small, Need(1, 0), now=NOON))


def test_what_was_not_sent_does_not_count() -> None:
    keeper, one = InMemoryAllowances(), [limit(rpm=1, tpm=10, budget_usd=0.01, budget_period="day")]
    for _ in range(3):
        first = taken(keeper.take(one, Need(5, 5, CENT), now=NOON))
        keeper.settle(first, tokens=0, nanos=0, sent=False, now=NOON)


@pytest.mark.parametrize(
    ("period", "ends_in"),
    [("hour", 3600.0), ("day", 43200.0), ("month", 43200.0), ("total", None)],
)
def test_a_budget_lasts_its_period(period: Any, ends_in: float | None) -> None:
    keeper, cents = InMemoryAllowances(), [limit(budget_usd=0.05, budget_period=period)]
    for _ in range(2):
        spent = taken(keeper.take(cents, Need(cost_nanos=CENT), now=NOON))
        keeper.settle(spent, tokens=0, nanos=2 * CENT, sent=True, now=NOON)
    answer = refused(keeper.take(cents, Need(cost_nanos=2 * CENT), now=NOON))
    assert (answer.member, answer.retry_after_s) == ("budget_usd", ends_in)
    taken(keeper.take(cents, Need(cost_nanos=CENT), now=NOON))
    if ends_in is not None:
        taken(keeper.take(cents, Need(cost_nanos=5 * CENT), now=NOON + ends_in))


def test_what_ends_in_the_next_period_is_not_charged_to_it() -> None:
    keeper, cents = InMemoryAllowances(), [limit(budget_usd=0.05, budget_period="hour")]
    late = taken(keeper.take(cents, Need(cost_nanos=CENT), now=NOON + 3599))
    taken(keeper.take(cents, Need(cost_nanos=CENT), now=NOON + 3600))
    keeper.settle(late, tokens=0, nanos=5 * CENT, sent=True, now=NOON + 3601)
    taken(keeper.take(cents, Need(cost_nanos=4 * CENT), now=NOON + 3602))


def test_an_unknown_cost_leaves_the_reservation_and_is_not_admitted() -> None:
    keeper, cents = InMemoryAllowances(), [limit(budget_usd=0.05, budget_period="total")]
    assert refused(keeper.take(cents, Need(cost_nanos=None), now=NOON)).reason == "no_price"
    spent = taken(keeper.take(cents, Need(cost_nanos=5 * CENT), now=NOON))
    keeper.settle(spent, tokens=9, nanos=None, sent=True, now=NOON)
    refused(keeper.take(cents, Need(cost_nanos=CENT), now=NOON))


def test_a_child_draws_on_its_parent_and_takes_nothing_when_refused() -> None:
    keeper = InMemoryAllowances()
    parent = limit("parent:0", rpm=2)
    first, second = [parent, limit("one:0", rpm=5)], [parent, limit("two:0", rpm=1)]
    taken(keeper.take(first, Need(), now=NOON))
    taken(keeper.take(second, Need(), now=NOON))
    assert refused(keeper.take(first, Need(), now=NOON)).limit is parent
    taken(keeper.take([limit("one:0", rpm=2)], Need(), now=NOON))


def test_accounts_are_bounded() -> None:
    keeper = InMemoryAllowances(max_accounts=10)
    for number in range(50):
        found = taken(keeper.take([limit(f"{number}", rpm=1)], Need(), now=NOON))
        keeper.settle(found, tokens=0, nanos=0, sent=True, now=NOON)
    assert len(keeper) == 10
    refused(keeper.take([limit("49", rpm=1)], Need(), now=NOON))


def test_limits_without_a_bucket_are_the_token_s_own() -> None:
    assert limits_of(None, "jti") == ()
    assert limits_of(Detail(type="llm_proxy", pools=("p",)), "jti") == ()
    assert limits_of(Detail(type="llm_proxy", rpm=3), "jti") == (Limit("jti:-", rpm=3),)
    inherited = (Limit("parent:0", rpm=9),)
    assert limits_of(Detail(type="llm_proxy", rpm=3, limits=inherited), "jti") == inherited


@given(
    rpm=st.integers(1, 20),
    tpm=st.integers(10, 500),
    steps=st.lists(st.tuples(st.floats(0, 40), st.integers(0, 60), st.integers(0, 60)), max_size=60),
)
def test_no_minute_ever_holds_more_than_the_limit(rpm: int, tpm: int, steps: list[tuple[float, int, int]]) -> None:
    keeper, both = InMemoryAllowances(), [limit(rpm=rpm, tpm=tpm)]
    now, served = NOON, list[tuple[float, int]]()
    for wait_s, tokens, guess in steps:
        now += wait_s
        found = keeper.take(both, Need(min(tokens, tpm), guess), now=now)
        if isinstance(found, Exceeded):
            assert found.retry_after_s is not None
            assert 0 < found.retry_after_s <= 61
            continue
        used = min(tokens, tpm)
        keeper.settle(found, tokens=used, nanos=0, sent=True, now=now)
        served.append((now, used))
    for at, _ in served:
        minute = [used for when, used in served if at <= when <= at + 60]
        assert len(minute) <= rpm
        assert sum(minute) <= tpm


@given(st.floats(0, 2**33), st.sampled_from(["hour", "day", "month"]))
def test_periods_follow_each_other(now: float, period: Any) -> None:
    ends_in = period_ends_in(period, now)
    assert ends_in is not None
    assert ends_in > 0
    assert period_of(period, now + ends_in + 0.01) == period_of(period, now) + 1
