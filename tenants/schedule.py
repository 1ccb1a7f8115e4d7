"""When a key is rotated: by interval or cron, with jitter and blackout windows. Pure.

A schedule's state is one stored moment, `due_at`. Whoever finds it passed runs once and stores the next one, reckoned
from now: any number of missed runs is caught up by a single one. Jitter is drawn when the moment is stored, so that
every process sees the same one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from tenants.cron import Cron, CronError, parse_cron

MIN_INTERVAL_S: Final = 3600
MAX_INTERVAL_S: Final = 366 * 86400
MAX_JITTER_S: Final = 86400
BACKOFF_FIRST_S: Final = 60.0
BACKOFF_MOST_S: Final = 6 * 3600.0

MAX_BLACKOUTS: Final = 32
"""Windows may begin where others end: finding a moment outside all of them takes the square of their number."""

DAY_NAMES: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class BlackoutIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A weekly window in local time without rotations, `HH:MM`; an end before the start is on the next day."""

    days: list[str]
    start: str
    end: str


class ScheduleIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A schedule as the API takes and stores it: exactly one of `interval_s` and `cron`."""

    interval_s: int | None = None
    cron: str | None = None
    time_zone: str = "UTC"
    jitter_s: int = 0
    blackouts: list[BlackoutIn] = []


@dataclass(frozen=True, slots=True)
class Blackout:
    """A weekly window; `days` are 0 (Monday) to 6, the days on which it begins."""

    days: frozenset[int]
    start: time
    end: time

    def end_if_inside(self, moment: datetime, zone: ZoneInfo) -> datetime | None:
        """Return when the window around `moment` ends, in UTC, or None when `moment` is outside."""
        local = moment.astimezone(zone)
        for back in (0, 1):
            day = (local - timedelta(days=back)).date()
            if day.weekday() not in self.days:
                continue
            begins = datetime.combine(day, self.start, zone)
            ends_on = day if self.end > self.start else day + timedelta(days=1)
            ends = datetime.combine(ends_on, self.end, zone)
            if begins.astimezone(UTC) <= moment < ends.astimezone(UTC):
                return ends.astimezone(UTC)
        return None


@dataclass(frozen=True, slots=True)
class Schedule:
    """A checked schedule."""

    interval: timedelta | None
    cron: Cron | None
    zone: ZoneInfo
    jitter_s: int
    blackouts: tuple[Blackout, ...]


def parse_schedule(data: ScheduleIn) -> Schedule | list[tuple[str, str]]:
    """Return the schedule, or every problem with it as (JSON pointer, sentence)."""
    problems: list[tuple[str, str]] = []
    cron = None
    if (data.interval_s is None) == (data.cron is None):
        problems.append(("", "needs exactly one of interval_s and cron"))
    if data.interval_s is not None and not MIN_INTERVAL_S <= data.interval_s <= MAX_INTERVAL_S:
        problems.append(("/interval_s", f"must be {MIN_INTERVAL_S} (an hour) to {MAX_INTERVAL_S} seconds (a year)"))
    if data.cron is not None:
        try:
            cron = parse_cron(data.cron)
            cron.next_after(datetime(2026, 1, 1, tzinfo=UTC), UTC)
        except CronError as error:
            problems.append(("/cron", str(error)))
    if not 0 <= data.jitter_s <= MAX_JITTER_S:
        problems.append(("/jitter_s", f"must be 0 to {MAX_JITTER_S} seconds (a day)"))
    zone = _zone(data.time_zone)
    if zone is None:
        problems.append(("/time_zone", "is not a time zone; use an IANA name such as Europe/Zurich"))
    if len(data.blackouts) > MAX_BLACKOUTS:
        return [*problems, ("/blackouts", f"has more than {MAX_BLACKOUTS} windows; name several days in one")]
    blackouts = []
    for index, window in enumerate(data.blackouts):
        parsed = _blackout(window)
        if isinstance(parsed, Blackout):
            blackouts.append(parsed)
        else:
            problems.append((f"/blackouts/{index}{parsed[0]}", parsed[1]))
    if sum(_minutes(window) * len(window.days) for window in blackouts) >= 7 * 24 * 60:
        problems.append(("/blackouts", "leave no time in a week; shorten a window"))
    if problems or zone is None:
        return problems
    interval = None if data.interval_s is None else timedelta(seconds=data.interval_s)
    return Schedule(interval, cron, zone, data.jitter_s, tuple(blackouts))


def next_due(schedule: Schedule, *, after: datetime, rng: random.Random) -> datetime:
    """Return the next moment to rotate, later than `after` (aware), in UTC, with jitter and outside of blackouts."""
    if schedule.interval is not None:
        moment = after.astimezone(UTC) + schedule.interval
    elif schedule.cron is not None:
        moment = schedule.cron.next_after(after, schedule.zone)
    else:
        raise ValueError("a schedule has an interval or a cron expression")
    if schedule.jitter_s:
        moment += timedelta(seconds=rng.randrange(schedule.jitter_s + 1))
    return outside_blackouts(schedule, moment)


def outside_blackouts(schedule: Schedule, moment: datetime) -> datetime:
    """Return `moment`, or the end of the blackout windows that it is in."""
    for _ in range(7 * len(schedule.blackouts) + 1):
        ends = [end for window in schedule.blackouts if (end := window.end_if_inside(moment, schedule.zone))]
        if not ends:
            return moment
        moment = max(ends)
    return moment


def retry_at(schedule: Schedule | None, *, failures: int, now: datetime, rng: random.Random) -> datetime:
    """Return when a failed rotation is tried again: 1 min, doubled up to 6 h, ±20 %, outside of blackouts."""
    delay_s = min(BACKOFF_FIRST_S * 2.0 ** min(max(failures - 1, 0), 16), BACKOFF_MOST_S)
    moment = now.astimezone(UTC) + timedelta(seconds=delay_s * rng.uniform(0.8, 1.2))
    return moment if schedule is None else outside_blackouts(schedule, moment)


def load_schedule(stored: dict[str, Any]) -> Schedule:
    """Read a stored schedule; `ValueError` if it was not checked before it was stored."""
    parsed = parse_schedule(msgspec.convert(stored, ScheduleIn))
    if not isinstance(parsed, Schedule):
        raise ValueError(f"stored schedule: {parsed}")
    return parsed


def _zone(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _blackout(data: BlackoutIn) -> Blackout | tuple[str, str]:
    days = frozenset(DAY_NAMES.index(day.lower()) for day in data.days if day.lower() in DAY_NAMES)
    if not data.days or len(days) != len(data.days):
        return "/days", f"must be different days out of {', '.join(DAY_NAMES)}"
    edges = []
    for name, text in (("/start", data.start), ("/end", data.end)):
        try:
            edge = time.fromisoformat(text)
        except ValueError:
            return name, "must be a local time such as 22:30"
        if edge.tzinfo is not None or len(text) != len("22:30"):
            return name, "must be a local time such as 22:30"
        edges.append(edge)
    return Blackout(days, edges[0], edges[1])


def _minutes(window: Blackout) -> int:
    start, end = (edge.hour * 60 + edge.minute for edge in (window.start, window.end))
    return (end - start) % (24 * 60) or 24 * 60
