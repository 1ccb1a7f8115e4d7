"""Cron expressions of five fields, in a time zone. Pure.

    minute (0-59)  hour (0-23)  day of month (1-31)  month (1-12, jan-dec)  day of week (0-7, sun-sat; 0 and 7 = Sunday)

Each field is `*` or a list of numbers, names and ranges, with steps (`*/15`, `9-17/2`). When both days are restricted a
date matches if either does, as in Vixie cron. A local time that a clock change skips is run at the change; one that
occurs twice is run the first time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import count
from typing import Final

_MONTH_NAMES: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAY_NAMES: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: Final[tuple[tuple[str, int, int, dict[str, int]], ...]] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTH_NAMES, start=1)}),
    ("day of week", 0, 7, {name: number for number, name in enumerate(_DAY_NAMES)}),
)
_HORIZON_DAYS: Final = 366 * 8 + 1
"""29 February is at most eight years away (around a year like 2100)."""


class CronError(ValueError):
    """The expression cannot be read; the text says which field and why."""


@dataclass(frozen=True, slots=True)
class Cron:
    """A parsed expression; days of the week are 0 (Sunday) to 6."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool

    def matches_date(self, local: datetime) -> bool:
        """Tell whether the date part of a local time matches."""
        if local.month not in self.months:
            return False
        day, weekday = local.day in self.days, local.isoweekday() % 7 in self.weekdays
        return (day or weekday) if self.either_day else (day and weekday)

    def next_after(self, after: datetime, zone: tzinfo) -> datetime:
        """Return the first matching moment later than `after` (aware), in UTC; `CronError` if no date ever matches."""
        start = after.astimezone(zone).replace(tzinfo=None, second=0, microsecond=0)
        midnight = start.replace(hour=0, minute=0)
        for offset in count():
            if offset > _HORIZON_DAYS:
                raise CronError("no date ever matches: check the day of month against the month")
            date = midnight + timedelta(days=offset)
            if not self.matches_date(date):
                continue
            for hour in self.hours:
                for minute in self.minutes:
                    moment = _moment(date.replace(hour=hour, minute=minute), zone)
                    if moment > after:
                        return moment
        raise AssertionError("count() does not end")


def _moment(local: datetime, zone: tzinfo) -> datetime:
    """Give a wall-clock time its moment: the first of two, or the moment of the change for one that does not exist."""
    first = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if first.astimezone(zone).replace(tzinfo=None) == local:
        return first
    # In a gap fold=0 reads the time with the offset before the change, fold=1 with the one after it: the change lies
    # between the two, at the first moment whose local time is past `local`.
    low = local.replace(tzinfo=zone, fold=1).astimezone(UTC)
    high = first
    while high - low > timedelta(minutes=1):
        middle = low + (high - low) / 2
        middle = middle.replace(second=0, microsecond=0)
        if middle <= low:
            break
        if middle.astimezone(zone).replace(tzinfo=None) < local:
            low = middle
        else:
            high = middle
    return high


def parse_cron(text: str) -> Cron:
    """Read an expression; `CronError` names the field that is wrong."""
    words = text.lower().split()
    if len(words) != len(_FIELDS):
        raise CronError(f"has {len(words)} fields; it needs 5: minute hour day-of-month month day-of-week")
    minutes, hours, days, months, weekdays = (_field(word, *field) for word, field in zip(words, _FIELDS, strict=True))
    weekdays = frozenset(day % 7 for day in weekdays)
    either = not words[2].startswith("*") and not words[4].startswith("*")
    return Cron(tuple(sorted(minutes)), tuple(sorted(hours)), days, months, weekdays, either)


def _field(word: str, name: str, low: int, high: int, names: dict[str, int]) -> frozenset[int]:
    chosen: set[int] = set()
    for part in word.split(","):
        span, slash, step_text = part.partition("/")
        step = _number(step_text, name, 1, high, {}) if slash else 1
        if span == "*":
            first, last = low, high
        else:
            left, dash, right = span.partition("-")
            first = _number(left, name, low, high, names)
            last = _number(right, name, low, high, names) if dash else (high if slash else first)
        if first > last:
            raise CronError(f"{name}: the range {span} runs backwards; write it as two, separated by a comma")
        chosen.update(range(first, last + 1, step))
    return frozenset(chosen)


def _number(text: str, name: str, low: int, high: int, names: dict[str, int]) -> int:
    value = names.get(text)
    if value is None and text.isascii() and text.isdigit():
        value = int(text)
    if value is None or not low <= value <= high:
        allowed = f"{low} to {high}" + (f" or {', '.join(names)}" if names else "")
        raise CronError(f"{name}: {text[:20]!r} is not {allowed}")
    return value
