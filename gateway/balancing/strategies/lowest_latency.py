"""The key that answers first: smallest peak-EWMA of the time to first byte."""

from __future__ import annotations

from random import Random

from gateway.balancing.ready import Candidate, Ready
from gateway.balancing.strategy import least

SAMPLE = 4
UNKNOWN_S = 1.0
"""What is assumed of a key that is being tried for the first time."""


class LowestLatency:
    """Compares time to first byte, a little heavier with each request in flight, so that ties and bursts spread.

    A key that was never measured and is idle goes first: one request finds out. The peak-EWMA forgets with time, so a
    key that was slow is tried again.
    """

    name = "lowest_latency"

    def choose(self, ready: Ready, rng: Random) -> Candidate | None:
        return least([(self.score(each, ready), each) for each in ready.sample(SAMPLE, rng)], rng)

    def score(self, candidate: Candidate, ready: Ready, /) -> float:
        latency = candidate.state.latency.read(ready.now)
        if latency is None:
            if candidate.state.in_flight == 0:
                return 0.0
            latency = UNKNOWN_S
        return latency * (1.0 + 0.05 * candidate.load)
