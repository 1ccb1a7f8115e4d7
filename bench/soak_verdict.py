"""Is a series flat? Sen's slope over whole teeth of the garbage collector's saw, and the plot of it all. Pure.

What the collector of cycles has not taken yet grows from one collection to the next and falls back: a saw, not a leak.
A leak lifts the whole saw. So only values at the same place in a tooth are compared with each other: the seasonal
Kendall slope, with its confidence interval (Hirsch, Slack and Smith 1982; Sen 1968; Gilbert 1987, chapter 17).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import median

from gateway.simulation.plots import lines

Series = Sequence[tuple[float, float]]
"""(seconds since the start, value)"""
Points = list[tuple[float, float]]

WARM_UP = 1 / 3
"""Share of the run that is not judged: caches fill, the allocator takes its arenas, connections are opened."""
BLOCK_S = 60.0
"""Samples are judged by the medians of such blocks: what lies closer together is not independent."""
FEWEST = 8
_HOUR_S = 3600.0
_Z = 1.96
"""Quantile of the normal distribution for a two-sided interval of 95 %."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """The leak that must not be there, in units an hour (the larger of `absolute` and `share` of the median), and by
    how many times that all that was seen may differ.
    """

    absolute: float
    share: float
    span: float = 10.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """`slope` is the trend in units an hour, `low` and `high` the ends of its 95 % interval, `span` the largest block
    less the smallest.
    """

    level: float
    slope: float
    low: float
    high: float
    span: float
    allowed: float
    allowed_span: float

    @property
    def word(self) -> str:
        """Say `flat` only when a leak of the size that is not allowed is out of the question."""
        if self.high > self.allowed and self.low > 0:
            return "RISES"
        if self.span > self.allowed_span:
            return "LEAPS"
        return "flat" if self.high <= self.allowed else "UNSURE"

    @property
    def is_flat(self) -> bool:
        """Tell whether neither a leak nor a leap is there."""
        return self.word == "flat"


def judge(series: Series, allowance: Allowance, collections: Sequence[float] = ()) -> Verdict:
    """Judge `series` with what it did in its first third left out.

    `collections`: when, in seconds since the start, the collector has looked at all objects, in order. ValueError when
    too little is left for a verdict.
    """
    end = series[-1][0] if series else 0.0
    judged = [point for point in series if point[0] >= end * WARM_UP]
    block_s = min(BLOCK_S, end * (1 - WARM_UP) / FEWEST / 2)
    seasons = list(_seasons(judged, [at for at in collections if at <= end], block_s))
    points = [point for season in seasons for point in season]
    slopes = sorted(
        (later - value) / (after - at) for season in seasons for (at, value), (after, later) in combinations(season, 2)
    )
    if len(points) < FEWEST or len(slopes) < FEWEST:
        raise ValueError("too few samples for a verdict")
    level = median(value for _, value in judged)
    low, high = _interval(slopes, [len(season) for season in seasons])
    values = [value for _, value in points]
    allowed = max(allowance.absolute, allowance.share * abs(level))
    return Verdict(
        level=level,
        slope=median(slopes) * _HOUR_S,
        low=low * _HOUR_S,
        high=high * _HOUR_S,
        span=max(values) - min(values),
        allowed=allowed,
        allowed_span=allowed * allowance.span,
    )


def _seasons(judged: Series, collections: Sequence[float], block_s: float) -> Iterable[Points]:
    """Give the groups whose points may be compared with one another.

    With many teeth a point is one or more whole ones. With few it is a block of a tooth, and the season is its place
    in the tooth; what lies before the first collection has no known place.
    """
    if not collections:
        yield _medians(judged, lambda at: at // block_s)
        return
    inside = [at for at in collections if judged and at >= judged[0][0]]
    if len(inside) > FEWEST:
        together = max(1, math.ceil(block_s / ((inside[-1] - inside[0]) / (len(inside) - 1))))
        ends = inside[::together]
        whole = [point for point in judged if ends[0] <= point[0] < ends[-1]]
        yield _medians(whole, lambda at: bisect_right(ends, at))
        return
    places: dict[float, dict[int, Points]] = defaultdict(lambda: defaultdict(list))
    for at, value in judged:
        tooth = bisect_right(collections, at)
        if tooth:
            places[(at - collections[tooth - 1]) // block_s][tooth].append((at, value))
    for teeth in places.values():
        yield [_middle(points) for points in teeth.values()]


def _medians(points: Series, block: Callable[[float], float]) -> Points:
    blocks: dict[float, Points] = defaultdict(list)
    for at, value in points:
        blocks[block(at)].append((at, value))
    return [_middle(each) for each in blocks.values()]


def _middle(points: Points) -> tuple[float, float]:
    return sum(at for at, _ in points) / len(points), median(value for _, value in points)


def _interval(slopes: Sequence[float], sizes: Iterable[int]) -> tuple[float, float]:
    """Give the slopes between which the true one lies, by the variance of Kendall's S over all seasons."""
    spread = _Z * math.sqrt(sum(size * (size - 1) * (2 * size + 5) / 18 for size in sizes))
    count = len(slopes)
    low = math.floor((count - spread) / 2)
    high = math.ceil((count + spread) / 2)
    return slopes[max(0, low)], slopes[min(count - 1, high)]


def increases(counted: Series) -> list[float]:
    """Give when a counter was first seen higher than before."""
    return [after for (_, before), (after, value) in pairwise(counted) if value > before]


def plot(charts: Mapping[str, tuple[str, Mapping[str, Series]]]) -> str:
    """Draw one chart under the other as one SVG; a chart's name leads to its unit and series."""
    drawn, y = [], 0
    for title, (unit, series) in charts.items():
        chart = lines(title, unit, series)
        height = int(chart.split('viewBox="0 0 720 ')[1].split('"')[0])
        drawn.append(chart.replace("<svg ", f'<svg y="{y}" ', 1))
        y += height + 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {y}" width="720" height="{y}">'
        f'<rect width="720" height="{y}" fill="#fff"/>{"".join(drawn)}</svg>\n'
    )
