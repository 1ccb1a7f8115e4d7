"""Days that end at midnight in California, in the balancer's accounts as at the provider."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.balancing.charging import Dimension
from gateway.balancing.ledger import Ledger
from gateway.balancing.limiter import LocalDay
from gateway.balancing.pacific import next_midnight
from gateway.balancing.quota import Limits
from gateway.balancing.semantics import semantics_of

LOS_ANGELES = ZoneInfo("America/Los_Angeles")


@given(st.datetimes(datetime(2008, 1, 1), datetime(2037, 12, 30)))
def test_midnight_is_what_the_zone_database_says(moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC)
    day = moment.astimezone(LOS_ANGELES).date() + timedelta(days=1)
    expected = datetime(day.year, day.month, day.day, tzinfo=LOS_ANGELES).timestamp()
    assert next_midnight(moment.timestamp()) == expected


@pytest.mark.parametrize(
    ("day", "hours"), [((2026, 3, 8), 23), ((2026, 7, 1), 24), ((2026, 11, 1), 25), ((2026, 12, 1), 24)]
)
def test_a_daily_limit_is_whole_again_at_the_local_midnight(day: tuple[int, int, int], hours: int) -> None:
    began = datetime(*day, tzinfo=LOS_ANGELES).timestamp()
    # The balancer's clock began at some other moment.
    offset_s = began - 5_000.0
    account = Ledger(Limits(rpd=2), semantics_of("gemini"), 5_000.0, unix_offset_s=offset_s)
    assert isinstance(account.meter(Dimension.RPD), LocalDay)
    for _ in range(2):
        account.reserve(1, 1, 5_001.0)
    ends = 5_000.0 + hours * 3600.0
    assert account.ready_at(1, 1, 5_002.0) == pytest.approx(ends)
    assert account.ready_at(1, 1, ends - 1.0) > ends - 1.0
    assert account.ready_at(1, 1, ends) <= ends
    account.reserve(1, 1, ends)
    meter = account.meter(Dimension.RPD)
    assert meter is not None
    assert meter.available(ends + 1.0) == 1.0


@given(st.lists(st.floats(0.0, 40_000.0), max_size=60))
def test_never_above_the_limit_within_a_local_day(gaps: list[float]) -> None:
    now = datetime(2026, 10, 30, 7, tzinfo=UTC).timestamp()
    meter = LocalDay(5.0, now, next_midnight)
    taken: dict[float, int] = {}
    for gap in gaps:
        now += gap
        if meter.available(now) >= 1.0:
            meter.take(1.0, now)
            taken[next_midnight(now)] = taken.get(next_midnight(now), 0) + 1
        else:
            assert meter.earliest(1.0, now) == next_midnight(now)
    assert all(count <= 5 for count in taken.values())
