"""The key with the fewest requests in flight for its capacity."""

from __future__ import annotations

from random import Random

from gateway.balancing.ready import Candidate, Ready
from gateway.balancing.strategy import least

SAMPLE = 3
"""Of a large pool so many are compared: two already bound the worst load to log log n (Mitzenmacher 2001)."""


class LeastConnections:
    """Compares (in flight + 1) / capacity; capacity is the key's concurrency cap, else its weight."""

    name = "least_connections"

    def choose(self, ready: Ready, rng: Random) -> Candidate | None:
        return least([(candidate.load, candidate) for candidate in ready.sample(SAMPLE, rng)], rng)

    def score(self, candidate: Candidate, _ready: Ready, /) -> float | None:
        return candidate.load
