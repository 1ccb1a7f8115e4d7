"""Each ready key in turn, whatever its weight."""

from __future__ import annotations

from random import Random

from gateway.balancing.ready import Candidate, Ready
from gateway.balancing.strategy import Cursors


class RoundRobin:
    """Takes the next ready key after the last one taken; constant cost while most keys are ready."""

    name = "round_robin"

    def __init__(self) -> None:
        self._cursors = Cursors()

    def choose(self, ready: Ready, rng: Random) -> Candidate | None:
        size = len(ready.candidates)
        key = ready.level.key
        start = self._cursors.get(key, size, rng)
        for step in range(size):
            index = (start + step) % size
            if ready.allows(index):
                self._cursors.set(key, index + 1)
                return ready.candidates[index]
        return None

    def score(self, _candidate: Candidate, _ready: Ready, /) -> float | None:
        return None
