"""When many keys fail for one reason: a breaker for what they have in common, the provider's address.

Keys of one provider fail together when the provider, or the way to it, is down. Each key's own breaker would learn that
at the cost of some requests per key; here the failures of different keys add up, as long as none of them succeeds:

- failures of one or two keys are their own affair: nothing is counted until `SEVERAL` have failed, or all there are;
- any success clears the count: the address works;
- open, it excludes all its keys, so that others in the pool are asked; one trial at a time finds out when it is back.
  Keys with answers under way and no failure are left in: a long answer is no success yet, but no failure either;
- when every key of a pool is excluded, the balancer asks the least bad one: a pool is never shut.
"""

from __future__ import annotations

from random import Random

from gateway.balancing.breaker import Breaker, BreakerState
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.outcome import OutcomeKind

_FAILURES = frozenset({OutcomeKind.SERVER_ERROR, OutcomeKind.TIMEOUT, OutcomeKind.CONNECT_FAILED})
SEVERAL = 3
_SAYS_NOTHING = frozenset({OutcomeKind.ABANDONED, OutcomeKind.AUTH_REJECTED})
"""A rejected key is that key's own affair, and answers nothing about the others."""


def address_of(endpoint: Endpoint) -> str:
    """Give the name of what keys share: their address, else the provider and region."""
    return endpoint.address or f"{endpoint.provider} {endpoint.region or ''}".rstrip()


class CommonBreaker:
    """The breaker of one address; see the module. `keys`: how many share it; `tried`: the id of the last trial's."""

    __slots__ = ("_breaker", "_failing", "keys", "tried")

    def __init__(self) -> None:
        self._breaker = Breaker()
        self._failing: set[str] = set()
        self.keys = 0
        self.tried: str | None = None

    @property
    def tripped(self) -> bool:
        """Tell whether it is not closed."""
        return self._breaker.tripped

    def ready_at(self, now: float) -> float:
        """Give the moment from which an attempt is allowed, as `Breaker.ready_at`."""
        return self._breaker.ready_at(now)

    def state(self, now: float) -> BreakerState:
        """Tell where it stands."""
        return self._breaker.state(now)

    def started(self, endpoint_id: str, now: float) -> bool:
        """Note an attempt; True when it is the trial that `ended` is to be told of."""
        if not self._breaker.tripped or self._breaker.ready_at(now) > now:
            return False
        self.tried = endpoint_id
        return self._breaker.started(now)

    def ended(self, endpoint_id: str, kind: OutcomeKind, now: float, *, trial: bool, rng: Random) -> None:
        """Take in the outcome of an attempt with one of the keys."""
        if kind in _SAYS_NOTHING:
            if trial:
                self._breaker.ended(OutcomeKind.ABANDONED, now, trial=True, rng=rng)
            return
        if kind in _FAILURES:
            self._failing.add(endpoint_id)
            if trial or len(self._failing) >= max(2, min(SEVERAL, self.keys)):
                self._breaker.ended(kind, now, trial=trial, rng=rng)
            return
        if self._failing:
            self._failing.clear()
        self._breaker.ended(kind, now, trial=trial, rng=rng)

    def revive(self) -> None:
        """Close it: one of the keys was seen to work."""
        self._failing.clear()
        self._breaker.revive()
