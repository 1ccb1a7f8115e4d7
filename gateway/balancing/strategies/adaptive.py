"""Power of two choices over everything that is known: latency, load, headroom, failures and price.

score = first_byte_s * (in flight + 1) / capacity * (1 + 4 * failure_share) * price / headroom, smaller is better.

Each factor is a price of sending one more request there: a queue behind it (Little's law: latency times requests
ahead), the chance to do it twice, money, and the scarcity of what is left under the limit. Two random candidates are
compared, not all: with several replicas deciding on the same news, "the best" would be flooded by all of them
(Mitzenmacher 2001). An idle key that was never measured wins: one request finds out.
"""

from __future__ import annotations

from math import inf
from random import Random

from gateway.balancing.ready import Candidate, Ready
from gateway.balancing.strategies.lowest_cost import expected_cost
from gateway.balancing.strategies.lowest_latency import UNKNOWN_S
from gateway.balancing.strategy import least

FAILURE_WEIGHT = 4.0
HEADROOM_FLOOR = 0.02
PRICE_EXPONENT = 0.5
"""Price counts by its root: a key four times as dear must be twice as slow before it loses."""


class Adaptive:
    """The default for mixed pools: no tuning, no weights needed."""

    name = "adaptive"

    def choose(self, ready: Ready, rng: Random) -> Candidate | None:
        return least([(self.score(each, ready), each) for each in ready.sample(2, rng, full_scan=2)], rng)

    def score(self, candidate: Candidate, ready: Ready, /) -> float:
        state = candidate.state
        latency = state.latency.read(ready.now)
        if latency is None and state.in_flight == 0:
            return 0.0
        score = (UNKNOWN_S if latency is None else max(latency, 1e-3)) * candidate.load
        score *= 1.0 + FAILURE_WEIGHT * state.breaker.failure_share
        cost = expected_cost(candidate.endpoint, ready.ask)
        if 0.0 < cost < inf:
            score *= cost**PRICE_EXPONENT
        return score / max(candidate.ledger.headroom(ready.now), HEADROOM_FLOOR)
