"""Max-min fairness: who wants little gets all of it, the others share the rest equally. Pure.

An allocation is max-min fair when nobody's part can grow without shrinking the part of somebody who has as little or
less (Bertsekas and Gallager, "Data Networks", section 6.5.2). For one resource it is found by filling: serve wants from
the smallest up, each with at most an equal part of what is left.
"""

from __future__ import annotations

from collections.abc import Sequence


def max_min(wants: Sequence[float], capacity: float) -> list[float]:
    """Divide `capacity` among `wants`: none gets more than it wants, and together at most `capacity`."""
    parts = [0.0] * len(wants)
    left, waiting = max(0.0, capacity), len(wants)
    for index in sorted(range(len(wants)), key=wants.__getitem__):
        part = min(max(0.0, wants[index]), left / waiting)
        parts[index] = part
        left -= part
        waiting -= 1
    return parts


def part_of_first(want: float, others: Sequence[float], capacity: float) -> float:
    """Give what `max_min([want, *others], capacity)` gives to the first, without dividing up the rest."""
    left, waiting = max(0.0, capacity), len(others) + 1
    if want <= 0.0:
        return 0.0
    if want * waiting <= left:
        return want
    for other in sorted(others):
        if other >= want or other * waiting >= left:
            break
        left -= max(0.0, other)
        waiting -= 1
    return min(want, left / waiting)
