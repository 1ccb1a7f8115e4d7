"""The meters of one ledger, and what a request that does not fit them lacks."""

from __future__ import annotations

from gateway.balancing.charging import Dimension, Sizes, unit_of
from gateway.balancing.limiter import FixedWindow, Meter
from gateway.balancing.windows import MINUTE_S


class Meters:
    """`rows` are (dimension, which of the `Sizes` it counts, meter) of what is limited; `by_dimension` has all."""

    __slots__ = ("by_dimension", "expiring", "rows")

    def __init__(self) -> None:
        self.rows: list[tuple[Dimension, int, Meter]] = []
        self.by_dimension: list[Meter | None] = [None] * len(Dimension)
        self.expiring: list[FixedWindow] = []
        """Those in whose windows, of a minute or less, what is left untouched is lost."""

    def put(self, dimension: Dimension, meter: Meter | None) -> None:
        """Have `meter` count a dimension from now on; None: it is not limited."""
        self.by_dimension[dimension] = meter
        self.rows = [row for row in self.rows if row[0] is not dimension]
        if meter is not None:
            self.rows.append((dimension, unit_of(dimension), meter))
        meters = [row[2] for row in self.rows]
        self.expiring = [each for each in meters if isinstance(each, FixedWindow) and each.window_s <= MINUTE_S]

    def short_of(self, sizes: Sizes, now: float) -> list[tuple[Dimension, float]]:
        """Give where a request no larger than the limit does not fit, with what would be in use if it went."""
        return [
            (dimension, meter.limit - available + sizes[unit])
            for dimension, unit, meter in self.rows
            if (available := meter.available(now)) < sizes[unit] <= meter.limit
        ]

    def holds_back(self, sizes: Sizes, margin: float, now: float) -> bool:
        """Tell whether a request would have to wait if a margin were to be left free."""
        return any(
            meter.available(now) < min(sizes[unit] * (1.0 + margin * meter.spare), meter.limit)
            for _, unit, meter in self.rows
            if sizes[unit] <= meter.limit
        )
