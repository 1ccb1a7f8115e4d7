"""Smooth weighted round robin: exact shares, never bunched.

Nginx's algorithm (ngx_http_upstream_get_peer): add each weight to its key's counter, take the largest, subtract the
total from it. From zero it repeats after W = sum of weights / their gcd picks, and each repetition has each key exactly
weight times; so any W consecutive picks do, wherever they begin. The sequence is therefore computed once and walked:
a pick costs the same for three keys and a thousand. A key that is not ready is stepped over; its turns go to those that
follow, in their own proportions, and no debt builds up that would come back as a burst.

Where weights are many and have no common divisor the sequence would be long; then weights are scaled to at most
`MAX_CYCLE` turns and each key's turns are spread evenly at (k + 1/2) / weight.

Weights are the configured ones, or follow what is known of the keys: their limit, what remains of it, or the price
(cheaper is heavier). Those are looked at again every `REWEIGH_S`, so they move with the headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd, inf
from random import Random
from typing import Literal

from gateway.balancing.ready import Candidate, Ready
from gateway.balancing.strategy import Cursors

WeightBy = Literal["fixed", "limit", "remaining", "price"]
WEIGHT_BY: tuple[WeightBy, ...] = ("fixed", "limit", "remaining", "price")
MAX_CYCLE = 8192
MAX_EXACT_COST = 200_000
"""Bound on turns * keys of an exact sequence: a few dozen milliseconds, once per configuration."""
REWEIGH_S = 5.0
_DERIVED_SCALE = 100
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


def derived_weights(candidates: Sequence[Candidate], by: WeightBy, now: float) -> list[int]:
    """Give each candidate's weight; where the figure is not known, the mean of those that are stands in."""
    if by == "fixed":
        return [candidate.weight for candidate in candidates]
    figures = [_figure(candidate, by, now) for candidate in candidates]
    known = [figure for figure in figures if figure is not None]
    if not known or max(known) <= 0.0:
        return [1] * len(candidates)
    mean, largest = sum(known) / len(known), max(known)
    return [max(1, round(_DERIVED_SCALE * (mean if figure is None else figure) / largest)) for figure in figures]


def _figure(candidate: Candidate, by: WeightBy, now: float) -> float | None:
    if by == "price":
        prices = [
            each for each in (candidate.endpoint.input_price, candidate.endpoint.output_price) if each is not None
        ]
        return None if not prices else 1.0 / max(sum(prices), 1e-9)
    capacity = candidate.ledger.requests_per_minute()
    if capacity is None or by == "limit":
        return capacity
    return capacity * candidate.ledger.headroom(now)


@dataclass(slots=True)
class _Cycle:
    weights: list[int]
    order: list[int]
    until: float


class Weighted:
    """Walks the smooth cycle of the level's weights."""

    name = "weighted"

    def __init__(self, by: WeightBy = "fixed") -> None:
        self._by = by
        self._cursors = Cursors()

    def _cycle(self, ready: Ready) -> list[int]:
        cache = ready.level.cache
        known: _Cycle | None = cache.get(self.name)
        weights = derived_weights(ready.candidates, self._by, ready.now)
        until = inf if self._by == "fixed" else ready.now + REWEIGH_S
        if known is not None and known.weights == weights:
            known.until = until
            return known.order
        made = cache[self.name] = _Cycle(weights, smooth_cycle(weights), until)
        return made.order

    def choose(self, ready: Ready, rng: Random) -> Candidate | None:
        known: _Cycle | None = ready.level.cache.get(self.name)
        cycle = known.order if known is not None and ready.now < known.until else self._cycle(ready)
        size = len(cycle)
        key = ready.level.key
        position = self._cursors.get(key, size, rng)
        for _ in range(size if size < _MAX_STEPS else _MAX_STEPS):
            index = cycle[position]
            position = position + 1 if position + 1 < size else 0
            if ready.allows(index):
                self._cursors.set(key, position)
                return ready.candidates[index]
        # Nearly everything is out: the few that are left share by weighted draw instead of a long walk.
        left = ready.sample(len(ready.candidates), rng) if size > _MAX_STEPS else []
        if not left:
            return None
        return rng.choices(left, [candidate.weight for candidate in left])[0]

    def score(self, candidate: Candidate, _ready: Ready, /) -> float | None:
        return 1.0 / candidate.weight
