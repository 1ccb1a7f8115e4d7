"""Schedules: cron in time zones, blackouts, jitter, catching up, backing off."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants.cron import CronError, parse_cron
from tenants.schedule import Schedule, ScheduleIn, next_due, outside_blackouts, parse_schedule, retry_at


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def schedule(**members: Any) -> Schedule:
    parsed = parse_schedule(msgspec.convert(members, ScheduleIn))
    assert isinstance(parsed, Schedule), parsed
    return parsed


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        ("0 3 * * *", "UTC", "2026-01-01T03:00:00", "2026-01-02T03:00:00"),
        ("*/15 * * * *", "UTC", "2026-01-01T03:14:59", "2026-01-01T03:15:00"),
        ("30 9-17/4 * * mon-fri", "UTC", "2026-01-02T18:00:00", "2026-01-05T09:30:00"),
        ("0 0 1,15 * *", "UTC", "2026-01-02T00:00:00", "2026-01-15T00:00:00"),
        ("0 0 13 * fri", "UTC", "2026-02-01T00:00:00", "2026-02-06T00:00:00"),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00:00", "2028-02-29T00:00:00"),
        ("0 0 * * 7", "UTC", "2026-01-01T00:00:00", "2026-01-04T00:00:00"),
        ("0 3 * jan sun", "UTC", "2026-01-01T00:00:00", "2026-01-04T03:00:00"),
        ("0 3 * * *", "Asia/Tokyo", "2026-01-01T00:00:00", "2026-01-01T18:00:00"),
        # 2026-03-29 02:30 does not exist in Zurich: the change at 01:00 UTC takes its place.
        ("30 2 * * *", "Europe/Zurich", "2026-03-28T12:00:00", "2026-03-29T01:00:00"),
        # 2026-10-25 02:30 occurs twice in Zurich: the first one counts, and only it.
        ("30 2 * * *", "Europe/Zurich", "2026-10-24T12:00:00", "2026-10-25T00:30:00"),
        ("30 2 * * *", "Europe/Zurich", "2026-10-25T00:30:00", "2026-10-26T01:30:00"),
    ],
)
def test_cron(expression: str, zone: str, after: str, expected: str) -> None:
    assert parse_cron(expression).next_after(at(after), ZoneInfo(zone)) == at(expected)


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("0 3 * *", "has 4 fields"),
        ("60 3 * * *", "minute: '60' is not 0 to 59"),
        ("0 3 * * 5-2", "runs backwards"),
        ("0 3 * foo *", "month: 'foo' is not 1 to 12 or jan"),
        ("*/0 * * * *", "minute: '0' is not 1 to 59"),
        ("-5 * * * *", "minute"),
        ("@daily", "has 1 fields"),
    ],
)
def test_cron_refused(expression: str, says: str) -> None:
    with pytest.raises(CronError, match=says):
        parse_cron(expression)


field = st.one_of(st.just("*"), st.integers(1, 11).map(str), st.integers(1, 7).map(lambda n: f"*/{n}"))
moments = st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC))


@given(st.tuples(field, field, field, field, st.sampled_from(["*", "1-5", "0", "6"])), moments)
def test_the_next_moment_is_later_matches_and_repeats(fields: tuple[str, ...], after: datetime) -> None:
    cron = parse_cron(" ".join(fields))
    found = cron.next_after(after, UTC)
    assert found > after
    assert cron.matches_date(found)
    assert (found.hour in cron.hours, found.minute in cron.minutes, found.second) == (True, True, 0)
    assert cron.next_after(found - timedelta(seconds=1), UTC) == found


def test_missed_runs_are_caught_up_by_one() -> None:
    daily = schedule(cron="0 3 * * *")
    due_at, now = at("2026-01-01T03:00:00"), at("2026-01-09T12:00:00")
    assert due_at <= now
    assert next_due(daily, after=now, rng=random.Random(0)) == at("2026-01-10T03:00:00")


def test_an_interval_runs_from_the_last_run() -> None:
    weekly = schedule(interval_s=7 * 86400)
    assert next_due(weekly, after=at("2026-01-01T03:00:00"), rng=random.Random(0)) == at("2026-01-08T03:00:00")


NIGHT = {"days": ["mon", "tue", "wed", "thu", "fri"], "start": "22:00", "end": "06:00"}


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-01-05T21:59:00", "2026-01-05T21:59:00"),
        ("2026-01-05T22:00:00", "2026-01-06T06:00:00"),
        ("2026-01-06T05:59:59", "2026-01-06T06:00:00"),
        ("2026-01-10T03:00:00", "2026-01-10T06:00:00"),
        ("2026-01-10T22:30:00", "2026-01-10T22:30:00"),
    ],
)
def test_blackouts_cross_midnight(moment: str, expected: str) -> None:
    assert outside_blackouts(schedule(interval_s=86400, blackouts=[NIGHT]), at(moment)) == at(expected)


def test_touching_blackouts_are_left_together() -> None:
    morning = {"days": ["tue"], "start": "06:00", "end": "09:00"}
    both = schedule(interval_s=86400, blackouts=[NIGHT, morning])
    assert outside_blackouts(both, at("2026-01-05T23:00:00")) == at("2026-01-06T09:00:00")


def test_more_windows_than_can_be_looked_at_quickly_are_refused() -> None:
    """A thousand that touch each other took seconds of the whole process, for each key of a pool."""
    windows = [
        {"days": ["mon"], "start": f"{n // 60:02}:{n % 60:02}", "end": f"{n // 60:02}:{n % 60 + 1:02}"}
        for n in range(33)
    ]
    assert schedule(interval_s=86400, blackouts=windows[:32])
    refused = parse_schedule(msgspec.convert({"interval_s": 86400, "blackouts": windows}, ScheduleIn))
    assert isinstance(refused, list)
    assert refused == [("/blackouts", "has more than 32 windows; name several days in one")]


@given(moments, st.integers(0, 86400), st.integers(0, 2**32))
def test_due_moments_are_later_and_never_in_a_blackout(after: datetime, jitter: int, seed: int) -> None:
    plan = schedule(cron="0 */2 * * *", time_zone="Europe/Zurich", jitter_s=jitter, blackouts=[NIGHT])
    due = next_due(plan, after=after, rng=random.Random(seed))
    assert due > after
    assert all(window.end_if_inside(due, plan.zone) is None for window in plan.blackouts)


def test_failures_back_off_to_six_hours() -> None:
    now = at("2026-01-05T12:00:00")
    delays = [(retry_at(None, failures=n, now=now, rng=random.Random(1)) - now).total_seconds() for n in (1, 2, 3, 50)]
    assert 48 <= delays[0] <= 72
    assert delays == sorted(delays)
    assert 0.8 * 21600 <= delays[3] <= 1.2 * 21600


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({}, ""),
        ({"interval_s": 86400, "cron": "0 3 * * *"}, ""),
        ({"interval_s": 60}, "/interval_s"),
        ({"cron": "0 0 31 2 *"}, "/cron"),
        ({"cron": "0 3 * * *", "time_zone": "Mars/Olympus"}, "/time_zone"),
        ({"cron": "0 3 * * *", "time_zone": "../etc/passwd"}, "/time_zone"),
        ({"cron": "0 3 * * *", "jitter_s": -1}, "/jitter_s"),
        (
            {"cron": "0 3 * * *", "blackouts": [{"days": ["monday"], "start": "22:00", "end": "06:00"}]},
            "/blackouts/0/days",
        ),
        (
            {"cron": "0 3 * * *", "blackouts": [{"days": ["mon"], "start": "10pm", "end": "06:00"}]},
            "/blackouts/0/start",
        ),
        (
            {
                "cron": "0 3 * * *",
                "blackouts": [
                    {"days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"], "start": "00:00", "end": "00:00"}
                ],
            },
            "/blackouts",
        ),
    ],
)
def test_what_a_schedule_must_be(members: dict[str, Any], pointer: str) -> None:
    problems = parse_schedule(msgspec.convert(members, ScheduleIn))
    assert isinstance(problems, list)
    assert pointer in dict(problems)
