"""The filters that stand before every strategy, evaluated only as far as a strategy looks.

Order of the filters: already tried (excluded), breaker, requests in flight, limits. Model, dialect and residency were
filtered when the slate was built. A strategy asks `ready.allows(candidate)` of those it would like, so that choosing
from a thousand keys does not check a thousand keys.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from enum import StrEnum
from math import gcd, inf
from random import Random
from typing import Any

from gateway.balancing.breaker import Breaker, OpenBreakers
from gateway.balancing.decision import Ask
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.ewma import PeakEwma
from gateway.balancing.ledger import Ledger
from gateway.balancing.outage import Fate
from gateway.balancing.outcome import OutcomeKind
from gateway.balancing.quota import Quota

FULL_SCAN = 8
"""Up to so many candidates a strategy looks at all of them; above, at a random few."""


Trials = tuple[bool, bool, bool] | None
"""Whether an attempt tries the breaker of its key, of its address, of its quota; None: none of them, as most do."""


class QuotaState:
    """What several keys share: requests in flight and one ledger per model family."""

    __slots__ = ("in_flight", "ledgers", "quota", "slots")

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.in_flight = 0
        self.ledgers: dict[str, Ledger] = {}
        self.slots = quota.limits.concurrency
        """How many may be in flight here, of all families together: the limit, or what this process holds of it."""


class EndpointState:
    """What the balancer knows about one key, for all models."""

    __slots__ = (
        "breaker", "common", "elsewhere", "endpoint", "in_flight", "latency", "outcomes", "picks", "quota", "slots",
    )  # fmt: skip

    def __init__(
        self, endpoint: Endpoint, quota: QuotaState, common: Fate, open_ones: OpenBreakers | None = None
    ) -> None:
        self.endpoint = endpoint
        self.quota = quota
        self.common = common
        self.breaker = Breaker(open_ones)
        self.latency = PeakEwma()
        self.in_flight = 0
        self.elsewhere = 0
        """Requests in flight in other processes, as last heard."""
        self.slots = endpoint.max_in_flight
        """How many may be in flight here: the cap, or what this process holds of it."""
        self.picks = 0
        self.outcomes: dict[OutcomeKind, int] = {}

    def begin_trials(self, now: float) -> Trials:
        """Note an attempt; give which of its breakers it tries, for `end_trials`; None: none."""
        trials = self.breaker.started(now), *self.common.started(self.endpoint.id, now)
        return trials if any(trials) else None

    def end_trials(self, kind: OutcomeKind, trials: Trials, sent_at: float, now: float, rng: Random) -> None:
        """Take in the outcome of an attempt."""
        own, address, quota = trials or (False, False, False)
        self.breaker.ended(kind, now, trial=own, rng=rng)
        self.common.ended(self.endpoint.id, kind, sent_at, now, trials=(address, quota), rng=rng)


class Candidate:
    """One key together with the ledger it would draw on for the asked model."""

    __slots__ = ("endpoint", "ledger", "state", "weight")

    def __init__(self, state: EndpointState, ledger: Ledger) -> None:
        self.state = state
        self.endpoint = state.endpoint
        self.ledger = ledger
        self.weight = max(1, state.endpoint.weight)

    @property
    def load(self) -> float:
        """Requests in flight anywhere, with this one, over capacity (the concurrency cap, else the weight)."""
        capacity = self.endpoint.max_in_flight or self.weight
        return (self.state.in_flight + self.state.elsewhere + 1) / capacity


class Level:
    """Candidates of equal rank; the next level is looked at when none of this one is ready.

    `cache` holds what strategies derived from the members, by strategy; it is dropped with the level when anything is
    reconfigured.
    """

    __slots__ = ("cache", "candidates", "key", "name", "strides")

    def __init__(self, key: Hashable, name: str, candidates: Sequence[Candidate]) -> None:
        self.key = key
        self.name = name
        self.candidates = tuple(candidates)
        self.cache: dict[str, Any] = {}
        size = len(self.candidates)
        self.strides = tuple(step for step in (1, 3, 7, 13, 29, 53, 101, 211) if gcd(step, size) == 1) or (1,)


class Exclusion(StrEnum):
    """Why a candidate is not ready."""

    TRIED = "tried"
    EJECTED = "ejected"
    BREAKER = "breaker"
    OUTAGE = "outage"
    """Several keys of its address or its quota have failed, and none succeeded since."""
    BUSY = "busy"
    LIMITED = "limited"
    COOLING = "cooling"
    TOO_LARGE = "too_large"
    RESERVED = "reserved"
    """What is left of this tier is kept for more critical requests."""


def exclusion_of(candidate: Candidate, ask: Ask, now: float, floor: float = 0.0) -> tuple[Exclusion, float] | None:
    """Give what keeps `candidate` from serving `ask` and until when (inf: no known moment); None when it is ready."""
    state = candidate.state
    if ask.excluded and state.endpoint.id in ask.excluded:
        return Exclusion.TRIED, inf
    breaker = state.breaker
    if breaker.tripped:
        at = breaker.ready_at(now)
        if at > now:
            return (Exclusion.EJECTED if breaker.ejected else Exclusion.BREAKER), at
    common = state.common
    if common.tripped and (at := common.ready_at(now)) > now:
        answering = state.in_flight > 0 and breaker.consecutive == 0 and not common.is_tried_by(state.endpoint.id)
        if not answering:
            return Exclusion.OUTAGE, at
    if (lack := room_in(candidate, ask, now)) is not None:
        return lack
    if floor > 0.0 and candidate.ledger.headroom(now) <= floor:
        return Exclusion.RESERVED, inf
    return None


def room_in(candidate: Candidate, ask: Ask, now: float) -> tuple[Exclusion, float] | None:
    """Give what `candidate` lacks to serve one more request, and until when, as `exclusion_of`; well or not."""
    state = candidate.state
    ledger, quota = candidate.ledger, state.quota
    cap, quota_cap, family = state.slots, quota.slots, ledger.concurrency
    if (
        (cap is not None and state.in_flight >= cap)
        or (quota_cap is not None and quota.in_flight >= quota_cap)
        or (family.slots is not None and family.in_flight >= family.slots)
    ):
        if ledger.lease is not None:
            ledger.lease.ask()
        return Exclusion.BUSY, inf
    output_tokens = ledger.output_of(ask) if ask.output_unset else ask.est_output_tokens
    at = ledger.ready_at(ask.est_input_tokens, output_tokens, now)
    if at > now:
        if at == inf:
            return Exclusion.TOO_LARGE, inf
        return (Exclusion.COOLING if ledger.cooldown.until >= at else Exclusion.LIMITED), at
    return None


class Ready:
    """One level as one ask finds it now: candidates, and whether each is ready."""

    __slots__ = ("_floor", "ask", "blocked", "candidates", "level", "now")

    def __init__(self, level: Level, ask: Ask, now: float, floor: float = 0.0) -> None:
        self.level = level
        self.candidates = level.candidates
        self.ask = ask
        self.now = now
        self.blocked: dict[int, tuple[Exclusion, float]] = {}
        """What was found not ready so far, by position among the candidates."""
        self._floor = floor

    def allows(self, index: int) -> bool:
        """Tell whether the candidate at `index` may be picked."""
        if index in self.blocked:
            return False
        blocked = exclusion_of(self.candidates[index], self.ask, self.now, self._floor)
        if blocked is None:
            return True
        self.blocked[index] = blocked
        return False

    def sample(self, count: int, rng: Random, *, full_scan: int = FULL_SCAN) -> list[Candidate]:
        """Give all ready candidates of a level of up to `full_scan`, else up to `count` of them at random.

        Large levels are walked from a random start with a random stride, so that a run of dead keys does not send
        all its traffic to the neighbour; the walk ends with `count` ready ones or when all were seen.
        """
        candidates = self.candidates
        size = len(candidates)
        index, stride = 0, 1
        if size <= full_scan:
            count = size
        else:
            strides = self.level.strides
            index = int(rng.random() * size)
            stride = strides[int(rng.random() * len(strides))]
        ask, now, floor = self.ask, self.now, self._floor
        found: list[Candidate] = []
        for _ in range(size):
            blocked = exclusion_of(candidates[index], ask, now, floor)
            if blocked is None:
                found.append(candidates[index])
                if len(found) >= count:
                    break
            else:
                self.blocked[index] = blocked
            index += stride
            if index >= size:
                index %= size
        return found

    def first_of(self, indexes: Sequence[int], count: int, rng: Random) -> list[Candidate]:
        """Give up to `count` ready candidates of a part of the level, from a random start; all of a small part."""
        size = len(indexes)
        wanted = size if size <= FULL_SCAN else count
        start = int(rng.random() * size) if wanted < size else 0
        found: list[Candidate] = []
        for step in range(size):
            index = indexes[(start + step) % size]
            if self.allows(index):
                found.append(self.candidates[index])
                if len(found) >= wanted:
                    break
        return found

    def explore(self) -> None:
        """Check everything that was not looked at, so that `blocked` tells of all."""
        for index in range(len(self.candidates)):
            self.allows(index)
