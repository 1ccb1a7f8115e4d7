"""Smooth weighted round robin: exact shares, never bunched.

Nginx's algorithm (ngx_http_upstream_get_peer): add each weight to its key's counter, take the largest, subtract the
total from it. From zero it repeats after W = sum of weights / their gcd picks, and each repetition has each key exactly
weight times; so any W consecutive picks do, wherever they begin. The sequence is therefore computed once and walked:
a pick costs the same for three keys and a thousand. A key that is not ready is stepped over; its turns go to those that
follow, in their own proportions, and no debt builds up that would come back as a burst.

Where weights are many and have no common divisor the sequence would be long; then weights are scaled to at most
`MAX_CYCLE` turns and each key's turns are spread evenly at (k + 1/2) / weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import gcd
from random import Random

from gateway.balancing.ready import Candidate, Ready
from gateway.balancing.strategy import Cursors

MAX_CYCLE = 8192
MAX_EXACT_COST = 200_000
"""Bound on turns * keys of an exact sequence: a few dozen milliseconds, once per configuration."""
_MAX_STEPS = 128


def smooth_cycle(weights: Sequence[int]) -> list[int]:
    """Give the positions in order of their turns, one whole cycle; each weight >= 1."""
    divisor = reduce(gcd, weights)
    turns = [weight // divisor for weight in weights]
    total = sum(turns)
    if total <= MAX_CYCLE and total * len(turns) <= MAX_EXACT_COST:
        return _nginx(turns, total)
    if total > MAX_CYCLE:
        turns = [max(1, round(turn * MAX_CYCLE / total)) for turn in turns]
    spread = [((k + 0.5) / turn, index) for index, turn in enumerate(turns) for k in range(turn)]
    spread.sort()
    return [index for _, index in spread]


def _nginx(turns: Sequence[int], total: int) -> list[int]:
    current = [0] * len(turns)
    cycle: list[int] = []
    for _ in range(total):
        best = 0
        for index, turn in enumerate(turns):
            current[index] += turn
            if current[index] > current[best]:
                best = index
        current[best] -= total
        cycle.append(best)
    return cycle


class Weighted:
    """Walks the smooth cycle of the level's weights."""

    name = "weighted"

    def __init__(self) -> None:
        self._cursors = Cursors()

    def choose(self, ready: Ready, rng: Random) -> Candidate | None:
        level = ready.level
        if level.cache is None:
            level.cache = smooth_cycle([candidate.weight for candidate in level.candidates])
        cycle: list[int] = level.cache
        size = len(cycle)
        position = self._cursors.get(level.key, size, rng)
        for _ in range(min(size, _MAX_STEPS)):
            index = cycle[position]
            position = position + 1 if position + 1 < size else 0
            if ready.allows(index):
                self._cursors.set(level.key, position)
                return ready.candidates[index]
        # Nearly everything is out: the few that are left share by weighted draw instead of a long walk.
        left = ready.sample(len(ready.candidates), rng) if size > _MAX_STEPS else []
        if not left:
            return None
        return rng.choices(left, [candidate.weight for candidate in left])[0]

    def score(self, candidate: Candidate, _ready: Ready, /) -> float | None:
        return 1.0 / candidate.weight
