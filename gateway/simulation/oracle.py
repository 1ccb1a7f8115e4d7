"""The yardstick: it sees the providers' true state, never meets a 429 and leaves no key idle that could serve.

It is greedy and knows nothing of what comes: a bound for whoever decides request by request, in the same queue and with
the same patience, not the best plan for a whole trace.
"""

from __future__ import annotations

import math

from gateway.balancing.decision import Ask, Decision, Lease, Picked, Refusal, Refused, Wait
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.hints import Hint
from gateway.balancing.outcome import Outcome
from gateway.simulation.demand import Demand
from gateway.simulation.world import World

_EPSILON_S = 1e-6
_RECHECK_S = 1.0


class Oracle:
    """Stands in for the balancer: takes the key with the most true room, or waits exactly until one has some.

    The replay names the request in `demand` before it asks.
    """

    def __init__(self, world: World, endpoints: list[Endpoint]) -> None:
        self.demand: Demand | None = None
        self._world = world
        self._endpoints = endpoints
        self._leases = 0

    def acquire(self, ask: Ask, *, now: float) -> Decision:
        """Choose by the truth."""
        demand, world = self.demand, self._world
        if demand is None:
            raise RuntimeError("the replay asks before it names the request")
        best: Endpoint | None = None
        most, soonest = -math.inf, math.inf
        for endpoint in self._endpoints:
            wait_s = world.fits_in(endpoint.id, demand, now)
            if wait_s > 0:
                soonest = min(soonest, wait_s)
                continue
            room = world.room(endpoint.id, demand, now)
            if room > most:
                best, most = endpoint, room
        if best is not None:
            self._leases += 1
            return Picked(Lease(self._leases, best, ask.est_input_tokens, ask.est_output_tokens, now))
        if math.isinf(soonest):
            return Refused(Refusal.TOO_LARGE)
        # Others use the quotas too: looking again within a second keeps the bound honest under outside load.
        return Wait(now + min(soonest + _EPSILON_S, _RECHECK_S))

    def spare(self, ask: Ask, *, now: float, headroom: float) -> Lease | None:  # noqa: ARG002 - the protocol's
        """Never hedge: its keys are never late."""
        return None

    def observe(self, lease: Lease, outcome: Outcome, *, now: float) -> None:
        """Learn nothing: it knows."""

    def learn(self, lease: Lease, hint: Hint, *, now: float) -> None:
        """Learn nothing: it knows."""
