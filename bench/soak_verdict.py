"""Is a series flat? A line through its second half, and the plot of it all. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.simulation.plots import lines

Series = Sequence[tuple[float, float]]
"""(seconds since the start, value)"""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What may still be called flat: a rise over the second half of less than `absolute` or `share` of its mean."""

    absolute: float
    share: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """`rise` is what the fitted line gains over the second half, `error` one standard error of that."""

    mean: float
    rise: float
    error: float
    allowed: float

    @property
    def is_flat(self) -> bool:
        """Tell whether it rises no more than allowed; a rise within two standard errors of it is noise."""
        return self.rise - 2 * self.error <= self.allowed


def judge(series: Series, allowance: Allowance) -> Verdict:
    """Fit a least-squares line to the second half of `series`; ValueError with fewer than four points there.

    The first half is left out: caches fill, the allocator takes its arenas, connections are opened.
    """
    end = series[-1][0] if series else 0.0
    half = [(at, value) for at, value in series if at >= end / 2]
    count = len(half)
    if count < 4:
        raise ValueError("too few samples for a verdict")
    mean_at = sum(at for at, _ in half) / count
    mean = sum(value for _, value in half) / count
    spread = sum((at - mean_at) ** 2 for at, _ in half)
    slope = sum((at - mean_at) * (value - mean) for at, value in half) / spread
    residual = sum((value - mean - slope * (at - mean_at)) ** 2 for at, value in half)
    span = half[-1][0] - half[0][0]
    error = math.sqrt(residual / (count - 2) / spread)
    return Verdict(mean, slope * span, error * span, max(allowance.absolute, allowance.share * abs(mean)))


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
