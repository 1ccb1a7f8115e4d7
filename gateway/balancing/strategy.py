"""What a strategy is: a preference among keys that all passed the same filters."""

from __future__ import annotations

from collections.abc import Hashable
from random import Random
from typing import Protocol

from gateway.balancing.ready import Candidate, Ready

MAX_REMEMBERED_LEVELS = 1024


class Strategy(Protocol):
    """Chooses among the ready; holds only its own memory (cursors), never the keys' state.

    Invariant: what it returns was allowed by `ready.allows` during the call; None only when nothing is ready.
    """

    @property
    def name(self) -> str:
        """The name in `STRATEGY_NAMES`."""

    def choose(self, ready: Ready, rng: Random) -> Candidate | None:
        """Give the candidate to use."""

    def score(self, candidate: Candidate, ready: Ready, /) -> float | None:
        """Give the figure it compares by (smaller is better), for explanations; None: it does not compare."""


class Cursors:
    """Positions by level, bounded; they outlive a reconfiguration, so that a reload does not restart every turn."""

    __slots__ = ("_positions",)

    def __init__(self) -> None:
        self._positions: dict[Hashable, int] = {}

    def get(self, key: Hashable, size: int, rng: Random) -> int:
        """Give the position for `key` below `size`; a new key starts at a random one, so that none is favoured."""
        position = self._positions.get(key)
        if position is None:
            if len(self._positions) >= MAX_REMEMBERED_LEVELS:
                del self._positions[next(iter(self._positions))]
            position = int(rng.random() * size)
            self._positions[key] = position
        return position if position < size else position % size

    def set(self, key: Hashable, position: int) -> None:
        """Remember the position."""
        self._positions[key] = position


def least(scored: list[tuple[float, Candidate]], rng: Random) -> Candidate | None:
    """Give a candidate of the smallest score; ties are drawn, so that order in the pool means nothing."""
    best: list[Candidate] = []
    best_score = float("inf")
    for score, candidate in scored:
        if score < best_score:
            best_score = score
            best = [candidate]
        elif score == best_score:
            best.append(candidate)
    if not best:
        return None
    return best[0] if len(best) == 1 else best[int(rng.random() * len(best))]
