"""Limits on token requests: guessing is slowed by where it comes from, so that no stranger locks the owner out. Pure.

GCRA, as one number a key: the theoretical arrival time. Failed authentications count against the caller's address and
against the pair of address and client, and beyond the limit are answered 429; right credentials pass all the same.
Granted tokens count against the client, once it has authenticated. What makes guessing hopeless is a secret's 256 bits.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """`burst` at once, refilled at `per_s` a second."""

    per_s: float
    burst: int


FAILURES_PER_ADDRESS = Rate(per_s=1.0, burst=60)
FAILURES_PER_PAIR = Rate(per_s=0.2, burst=10)
SIGN_INS_PER_ADDRESS = Rate(per_s=1.0, burst=30)
TOKENS_PER_CLIENT = Rate(per_s=20.0, burst=200)


class Throttle:
    """Arrival times by key, bounded: the keys unused for longest are forgotten, which only ever forgives."""

    def __init__(self, *, capacity: int = 50_000) -> None:
        self._arrivals: OrderedDict[tuple[str, ...], float] = OrderedDict()
        self._capacity = capacity

    def wait_s(self, key: tuple[str, ...], rate: Rate, *, now: float) -> float:
        """Return how long the next event of `key` has to wait, 0.0 if it may happen now; changes nothing."""
        arrival = self._arrival(key, rate, now)
        return max(0.0, arrival - (rate.burst - 1) / rate.per_s - now)

    def count(self, key: tuple[str, ...], rate: Rate, *, now: float) -> None:
        """Record one event of `key`."""
        arrival = max(self._arrival(key, rate, now), now)
        self._arrivals[key] = min(arrival, now + rate.burst / rate.per_s) + 1.0 / rate.per_s
        self._arrivals.move_to_end(key)
        if len(self._arrivals) > self._capacity:
            self._arrivals.popitem(last=False)

    def _arrival(self, key: tuple[str, ...], rate: Rate, now: float) -> float:
        """Return when the next event is due; one further ahead than `count` ever puts it is from a clock set back."""
        arrival = self._arrivals.get(key, now)
        return now if arrival - now > (rate.burst + 2) / rate.per_s else arrival
