"""Whether a key is worth asking: a circuit breaker per endpoint, on failures that are the key's or its provider's.

| state     | event                                              | next                                               |
|-----------|----------------------------------------------------|----------------------------------------------------|
| closed    | `THRESHOLD` failures in a row, or half of the      | open for base * 2^streak, jittered, at most `CAP_S` |
|           | recent attempts failed (at least `MIN_ATTEMPTS`)   |                                                    |
| closed    | auth rejected                                      | ejected for `EJECTED_S` * 2^streak, at most a cap  |
| open      | its time is over                                   | half-open: one trial at a time                     |
| ejected   | its time is over                                   | half-open: one trial at a time                     |
| half-open | trial succeeds, or is answered 429 or 4xx          | closed, streak forgotten                           |
| half-open | trial fails                                        | open or ejected again, longer                      |
| half-open | trial abandoned                                    | half-open: nothing was learned about its health    |
| any       | `revive` (an active health check succeeded)        | closed                                             |

429s and client errors are answers: they prove that the key works, and limits are the ledger's business. Every state but
closed ends by itself, so that no key is ever lost for good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from math import inf
from random import Random

from gateway.balancing.ewma import DecayingCounts
from gateway.balancing.outcome import OutcomeKind

THRESHOLD = 3
MIN_ATTEMPTS = 10.0
FAILURE_SHARE = 0.5
OPEN_BASE_S = 1.0
OPEN_CAP_S = 60.0
EJECTED_BASE_S = 60.0
EJECTED_CAP_S = 900.0
TRIAL_TIMEOUT_S = 600.0
"""A trial that was never given back stops blocking the next one after this time."""
QUIET_S = 1.0
"""What worked here so lately is not broken, whatever other processes say: their way to it may be."""

_FAILURES = frozenset({OutcomeKind.SERVER_ERROR, OutcomeKind.TIMEOUT, OutcomeKind.CONNECT_FAILED})


class BreakerState(StrEnum):
    """Where the breaker stands, for views."""

    CLOSED = "closed"
    OPEN = "open"
    EJECTED = "ejected"
    HALF_OPEN = "half_open"


class OpenBreakers:
    """The open ones among many, and some that were open; `on_first` is called whenever there is one again."""

    __slots__ = ("_breakers", "_on_first")

    def __init__(self, on_first: Callable[[], None] | None = None) -> None:
        self._breakers: set[Breaker] = set()
        self._on_first = on_first

    def add(self, breaker: Breaker) -> None:
        """Take in that one has opened."""
        if not self._breakers and self._on_first is not None:
            self._on_first()
        self._breakers.add(breaker)

    def among(self, named: Iterable[tuple[str, Breaker]]) -> list[str]:
        """Give the names of those that are open; `named` are all, and seldom looked at."""
        found = [name for name, breaker in named if breaker.tripped] if self._breakers else []
        if not found:
            self._breakers.clear()
        return found


class Breaker:
    """One endpoint's breaker; see the module's table. It adds itself to `open_ones` whenever it opens."""

    __slots__ = (
        "_counts", "_open_ones", "_trial_since", "consecutive", "ejected", "opened_at", "streak", "tripped", "until",
        "worked_at",
    )  # fmt: skip

    def __init__(self, open_ones: OpenBreakers | None = None) -> None:
        self._counts = DecayingCounts()
        self._open_ones = open_ones
        self._trial_since = -inf
        self.tripped = False
        self.ejected = False
        self.until = -inf
        self.opened_at = -inf
        """When it was last opened, or kept open."""
        self.streak = 0
        self.consecutive = 0
        self.worked_at = -inf

    def ready_at(self, now: float) -> float:
        """Give the moment from which an attempt is allowed; `now` or less: at once, inf: when the trial has ended."""
        if not self.tripped:
            return -inf
        if self.until > now:
            return self.until
        return inf if self._trial_since > now - TRIAL_TIMEOUT_S else -inf

    def state(self, now: float) -> BreakerState:
        """Tell where it stands."""
        if not self.tripped:
            return BreakerState.CLOSED
        if self.until > now:
            return BreakerState.EJECTED if self.ejected else BreakerState.OPEN
        return BreakerState.HALF_OPEN

    @property
    def failure_share(self) -> float:
        """Failures over recent attempts."""
        return self._counts.failure_share

    def started(self, now: float) -> bool:
        """Note an attempt; True when it is the trial of a half-open breaker (give it back to `ended`)."""
        if not self.tripped:
            return False
        self._trial_since = now
        return True

    def worked(self, now: float) -> None:
        """Take in the success of an attempt that was no trial: `ended`, in short."""
        self._counts.add(now, failed=False)
        self.consecutive = 0
        self.worked_at = now

    def ended(self, kind: OutcomeKind, now: float, *, trial: bool, rng: Random) -> None:
        """Take in the outcome of an attempt."""
        if trial:
            self._trial_since = -inf
        if kind is OutcomeKind.ABANDONED:
            return
        if kind is OutcomeKind.AUTH_REJECTED:
            self._trip(now, EJECTED_BASE_S, EJECTED_CAP_S, rng, renew=trial or not self.ejected)
            self.ejected = True
            return
        failed = kind in _FAILURES
        self._counts.add(now, failed=failed)
        if failed:
            self.consecutive += 1
            often = self._counts.total >= MIN_ATTEMPTS and self._counts.failure_share >= FAILURE_SHARE
            # Attempts sent before it opened fail late: they do not prolong it, only a trial does.
            if trial or (not self.tripped and (self.consecutive >= THRESHOLD or often)):
                self._trip(now, OPEN_BASE_S, OPEN_CAP_S, rng, renew=True)
            return
        self.consecutive = 0
        self.worked_at = now
        # A success that was sent before it opened says no more than what opened it did.
        if trial:
            self.revive()

    def revive(self) -> None:
        """Close it: the key was seen to work."""
        if self.tripped:
            self._counts.clear()
        self.tripped = self.ejected = False
        self.until = self._trial_since = -inf
        self.streak = self.consecutive = 0

    def half_open(self) -> None:
        """Let it be tried at once: what others failed of too is over. A key that was rejected stays out."""
        if not self.ejected:
            self.until = -inf

    def hear(self, until: float, streak: int, now: float, *, ejected: bool) -> bool:
        """Take in that it opened in another process; for no longer than it would have here.

        False: not taken in, since it worked here less than `QUIET_S` ago. That a key is rejected is true everywhere.
        """
        if not ejected and now - self.worked_at < QUIET_S:
            return False
        self.until = max(self.until, min(until, now + (EJECTED_CAP_S if ejected else OPEN_CAP_S)))
        self.streak = max(self.streak, streak)
        self.ejected = self.ejected or ejected
        self._open(now)
        return True

    def _trip(self, now: float, base_s: float, cap_s: float, rng: Random, *, renew: bool) -> None:
        if not renew:
            return
        delay_s = min(cap_s, base_s * 2.0 ** min(self.streak, 20))
        # Jitter keeps replicas and keys from coming back in step.
        self.until = now + delay_s * rng.uniform(0.75, 1.0)
        self.streak += 1
        self._open(now)

    def _open(self, now: float) -> None:
        self.tripped = True
        self.opened_at = now
        if self._open_ones is not None:
            self._open_ones.add(self)
