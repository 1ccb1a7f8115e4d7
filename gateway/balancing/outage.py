"""When many keys fail for one reason: breakers for what they have in common, the provider's address and the quota.

Keys of one provider fail together when the provider, or the way to it, is down. Each key's own breaker would learn that
at the cost of some requests per key; here the failures of different keys add up, as long as none of them succeeds:

- failures of one or two keys are their own affair: nothing is counted until `SEVERAL` have failed, or all there are;
- any success clears the count: the address works;
- open, it excludes all its keys, so that others in the pool are asked; one trial at a time finds out when it is back.
  Keys with answers under way and no failure are left in: a long answer is no success yet, but no failure either;
- when every key of a pool is excluded, the balancer asks the least bad one: a pool is never shut;
- what was sent since it opened, and succeeds, closes it, trial or not: else a pool whose keys are all excluded would
  have to live on a few of them until the next trial;
- when it closes each of its keys whose own breaker is open gets a trial at once: what they failed of is over.

Of an address rejected keys say nothing, of a quota unreachable addresses: an organisation that has not paid, or is
blocked, has all its keys rejected while the address serves others. Quotas of a single key need no breaker but its own.
"""

from __future__ import annotations

from random import Random

from gateway.balancing.breaker import Breaker, BreakerState
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.outcome import OutcomeKind

SEVERAL = 3
Kinds = frozenset[OutcomeKind]
_BROKEN: Kinds = frozenset({OutcomeKind.SERVER_ERROR, OutcomeKind.TIMEOUT})
ADDRESS: tuple[Kinds, Kinds] = (_BROKEN | {OutcomeKind.CONNECT_FAILED}, frozenset({OutcomeKind.AUTH_REJECTED}))
QUOTA: tuple[Kinds, Kinds] = (_BROKEN | {OutcomeKind.AUTH_REJECTED}, frozenset({OutcomeKind.CONNECT_FAILED}))
"""What counts as a failure of it, and what says nothing about it."""


def address_of(endpoint: Endpoint) -> str:
    """Give the name of what keys share: their address, else the provider and region."""
    return endpoint.address or f"{endpoint.provider} {endpoint.region or ''}".rstrip()


class CommonBreaker:
    """The breaker of one address or quota; see the module. `tried`: the last trial's id.

    `keys`: how many share it, `own` are the breakers that each of them has of its own.
    """

    __slots__ = ("_breaker", "_failing", "_failures", "_silent", "keys", "own", "tried")

    def __init__(self, kinds: tuple[Kinds, Kinds] = ADDRESS) -> None:
        self._failures, silent = kinds
        self._silent = silent | {OutcomeKind.ABANDONED}
        self._breaker = Breaker()
        self._failing: set[str] = set()
        self.keys = 0
        self.own: list[Breaker] = []
        self.tried: str | None = None

    @property
    def tripped(self) -> bool:
        """Tell whether it is not closed."""
        return self._breaker.tripped

    @property
    def breaker(self) -> Breaker:
        """What is told to other processes, and heard from them."""
        return self._breaker

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

    def worked(self, sent_at: float, now: float) -> None:
        """Take in the success of an attempt that was no trial: `ended`, in short."""
        if self._failing:
            self._failing.clear()
        self._breaker.worked(now)
        if self._was_sent_since(sent_at):
            self.revive()

    def _was_sent_since(self, sent_at: float) -> bool:
        return self._breaker.tripped and sent_at > self._breaker.opened_at

    def ended(
        self, endpoint_id: str, kind: OutcomeKind, sent_at: float, now: float, *, trial: bool, rng: Random
    ) -> None:
        """Take in the outcome of an attempt with one of the keys."""
        if kind in self._silent:
            if trial:
                self._breaker.ended(OutcomeKind.ABANDONED, now, trial=True, rng=rng)
            return
        if kind in self._failures:
            self._failing.add(endpoint_id)
            if trial or len(self._failing) >= max(2, min(SEVERAL, self.keys)):
                self._breaker.ended(kind, now, trial=trial, rng=rng)
            return
        if self._failing:
            self._failing.clear()
        was_open = self._breaker.tripped
        self._breaker.ended(kind, now, trial=trial or self._was_sent_since(sent_at), rng=rng)
        if was_open and not self._breaker.tripped:
            self.revive()

    def revive(self) -> None:
        """Close it: one of the keys was seen to work."""
        self._failing.clear()
        if self._breaker.tripped:
            self._breaker.revive()
        for breaker in self.own:
            breaker.half_open()


class Fate:
    """What one key shares with others: its address, and its quota where more than one key draws on it."""

    __slots__ = ("_address", "_address_breaker", "_quota")

    def __init__(self, address: CommonBreaker, quota: CommonBreaker | None) -> None:
        self._address = address
        self._address_breaker = address.breaker
        self._quota = quota

    @property
    def tripped(self) -> bool:
        """Tell whether one of them is not closed."""
        return self._address_breaker.tripped or (self._quota is not None and self._quota.tripped)

    def ready_at(self, now: float) -> float:
        """Give the moment from which an attempt is allowed by both."""
        at = self._address.ready_at(now)
        return at if self._quota is None else max(at, self._quota.ready_at(now))

    def is_tried_by(self, endpoint_id: str) -> bool:
        """Tell whether this key made the last trial of one of them."""
        return self._address.tried == endpoint_id or (self._quota is not None and self._quota.tried == endpoint_id)

    def started(self, endpoint_id: str, now: float) -> tuple[bool, bool]:
        """Note an attempt; tells of which of them it is the trial, for `ended`."""
        quota = self._quota
        return self._address.started(endpoint_id, now), quota is not None and quota.started(endpoint_id, now)

    def worked(self, sent_at: float, now: float) -> None:
        """Take in the success of an attempt that was no trial."""
        self._address.worked(sent_at, now)
        if self._quota is not None:
            self._quota.worked(sent_at, now)

    def ended(
        self, endpoint_id: str, kind: OutcomeKind, sent_at: float, now: float, *, trials: tuple[bool, bool], rng: Random
    ) -> None:
        """Take in the outcome of an attempt."""
        self._address.ended(endpoint_id, kind, sent_at, now, trial=trials[0], rng=rng)
        if self._quota is not None:
            self._quota.ended(endpoint_id, kind, sent_at, now, trial=trials[1], rng=rng)

    def revive(self) -> None:
        """Close both: the key was seen to work."""
        self._address.revive()
        if self._quota is not None:
            self._quota.revive()
