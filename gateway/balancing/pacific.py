"""Midnight in California, where a provider's day ends (Gemini): daylight saving included, no zone database needed.

The rule in force since 2007 (Energy Policy Act of 2005): daylight time from 2:00 on the second Sunday of March to 2:00
on the first Sunday of November. Written out because a system without a zone database must count alike.
"""

from __future__ import annotations

from math import floor

_DAY_S = 86_400.0
_STANDARD_S = -8 * 3600.0
_DAYLIGHT_S = -7 * 3600.0


def pacific_offset_s(moment: float) -> float:
    """Return Los Angeles' offset from UTC, in seconds, at a Unix time."""
    year = _year_of(moment)
    starts = _sunday(year, 3, 2) * _DAY_S + 2 * 3600 - _STANDARD_S
    ends = _sunday(year, 11, 1) * _DAY_S + 2 * 3600 - _DAYLIGHT_S
    return _DAYLIGHT_S if starts <= moment < ends else _STANDARD_S


def pacific_day(moment: float) -> int:
    """Return the number of the local day at a Unix time."""
    return floor((moment + pacific_offset_s(moment)) / _DAY_S)


def next_midnight(moment: float) -> float:
    """Return the Unix time of the next local midnight, 23 to 25 hours after the last one."""
    midnight = (pacific_day(moment) + 1) * _DAY_S
    # The offset in force at the coming midnight decides, not today's: the clock may change in between.
    return midnight - pacific_offset_s(midnight - pacific_offset_s(moment))


def _days(year: int, month: int, day: int) -> int:
    """Return days from 1970-01-01 (Howard Hinnant's days_from_civil)."""
    year -= month <= 2
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def _year_of(moment: float) -> int:
    day = floor(moment / _DAY_S)
    year = 1970 + day * 400 // 146_097
    return year if _days(year, 1, 1) <= day < _days(year + 1, 1, 1) else year + (day >= _days(year + 1, 1, 1)) * 2 - 1


def _sunday(year: int, month: int, ordinal: int) -> int:
    first = _days(year, month, 1)
    # 1970-01-01 was a Thursday: day 3 was a Sunday.
    return first + (3 - first) % 7 + 7 * (ordinal - 1)
