"""How often and how soon a request may be tried again: a policy per pool, a budget shared by its requests."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from random import Random

from gateway.balancing.outcome import OutcomeKind

CHEAP = frozenset({OutcomeKind.RATE_LIMITED, OutcomeKind.AUTH_REJECTED, OutcomeKind.CONNECT_FAILED})
"""Failures that cost the provider no work."""
RETRYABLE = CHEAP | {OutcomeKind.SERVER_ERROR, OutcomeKind.TIMEOUT}
"""Failures that another key may not have: never the caller's own mistakes."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What one request may do; times in seconds.

    `max_attempts` counts the first attempt too; `failover=False` means one attempt whatever it says. `max_pause_s`
    bounds the sum of all waiting for capacity, counted from the start of the request.
    """

    max_attempts: int = 4
    failover: bool = True
    backoff_base_s: float = 0.1
    backoff_cap_s: float = 5.0
    max_pause_s: float = 30.0

    @property
    def attempts_allowed(self) -> int:
        """Attempts in all, never below one."""
        return max(1, self.max_attempts) if self.failover else 1

    def backoff_s(self, failures: int, rng: Random) -> float:
        """Full jitter: uniform in [0, min(cap, base * 2^(failures-1))], `failures` >= 1.

        Source: "Exponential Backoff And Jitter", AWS Architecture Blog: of the jitters it does the least work.
        """
        ceiling = min(self.backoff_cap_s, self.backoff_base_s * 2.0 ** min(max(failures, 1) - 1, 30))
        return rng.uniform(0.0, ceiling)


class RetryBudget:
    """A token bucket filled by traffic: each request deposits `ratio`, each retry takes one.

    `floor_per_s` lets a quiet pool retry at all; `burst` bounds what a long calm can save up for an outage, so retries
    never multiply load on a provider that is down. Invariant: 0 <= balance <= burst.
    """

    __slots__ = ("_at", "_balance", "_burst", "_deposited_at", "_deposits", "_floor_per_s", "_ratio")

    def __init__(self, ratio: float = 0.2, *, floor_per_s: float = 1.0, burst: float = 20.0) -> None:
        self._ratio = max(0.0, ratio)
        self._floor_per_s = max(0.0, floor_per_s)
        self._burst = max(1.0, burst)
        self._balance = self._burst
        self._at: float | None = None
        # Deposits are as many as requests, and looked at by retries alone: only then are they added up.
        self._deposits = 0
        self._deposited_at = -inf

    def _settle(self, now: float) -> None:
        earned_s = 0.0 if self._at is None else max(0.0, now - self._at)
        earned = earned_s * self._floor_per_s + self._deposits * self._ratio
        self._balance = min(self._burst, self._balance + earned)
        self._at = now if self._at is None else max(self._at, now)
        self._deposits = 0

    def deposit(self, now: float) -> None:
        """Count one request of the callers."""
        self._deposits += 1
        self._deposited_at = now

    def affords(self, now: float) -> bool:
        """Tell whether one more retry is within the budget."""
        self._settle(now)
        return self._balance >= 1.0

    def withdraw(self, now: float) -> bool:
        """Take one retry; False (and nothing taken) when the budget is spent."""
        if not self.affords(now):
            return False
        self._balance -= 1.0
        return True

    @property
    def balance(self) -> float:
        """Retries that could be made now, as of the last deposit or withdrawal."""
        if self._deposits:
            self._settle(self._deposited_at)
        return self._balance
