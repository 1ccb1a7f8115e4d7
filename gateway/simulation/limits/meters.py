"""The windows that providers count in: what is left, what a charge costs, and when it fits again.

All are plain arithmetic over an injected `now` (Unix seconds) and share one shape, `Meter`. Amounts are requests or
tokens. `available` may be negative: a provider that settles after the answer charges what was used, wanted or not.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol

from gateway.balancing.pacific import next_midnight, pacific_day

DAY_S = 86_400.0
MINUTE_S = 60.0
NEVER = math.inf
_EPSILON = 1e-9


class Meter(Protocol):
    """One limited dimension of one quota: `capacity` per `period_s` seconds."""

    capacity: float
    period_s: float

    def available(self, now: float) -> float:
        """Return what may be charged right now."""

    def take(self, amount: float, now: float) -> None:
        """Charge `amount`, even below zero."""

    def give(self, amount: float, now: float, taken_at: float) -> None:
        """Return `amount` of a charge made at `taken_at`; a window that has passed since keeps nothing."""

    def free_in(self, amount: float, now: float) -> float:
        """Return seconds until `amount` fits if nothing else is charged, `NEVER` if it is above the capacity."""

    def full_in(self, now: float) -> float:
        """Return seconds until the whole capacity is available again."""

    def resize(self, capacity: float, now: float) -> None:
        """Change the limit while it is in use, keeping what was charged."""


class RefillBucket:
    """Continuous refill: `capacity` per `period_s`, at most `capacity` saved up (OpenAI, Anthropic)."""

    __slots__ = ("_at", "_level", "capacity", "period_s")

    def __init__(self, capacity: float, period_s: float = MINUTE_S) -> None:
        self.capacity = float(capacity)
        self.period_s = period_s
        self._level = self.capacity
        self._at = -math.inf

    def available(self, now: float) -> float:
        if now > self._at:
            # The first look finds a full bucket: `_at` is -inf until something was charged.
            gained = (now - self._at) * self.capacity / self.period_s
            self._level = min(self.capacity, self._level + gained)
            self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        self._level = self.available(now) - amount

    def give(self, amount: float, now: float, taken_at: float) -> None:  # noqa: ARG002 - the bucket has no windows
        self._level = min(self.capacity, self.available(now) + amount)

    def free_in(self, amount: float, now: float) -> float:
        if amount > self.capacity:
            return NEVER
        missing = amount - self.available(now)
        return missing * self.period_s / self.capacity if missing > _EPSILON else 0.0

    def full_in(self, now: float) -> float:
        return self.free_in(self.capacity, now)

    def resize(self, capacity: float, now: float) -> None:
        used = self.capacity - self.available(now)
        self.capacity = float(capacity)
        self._level = self.capacity - used


class FixedWindow:
    """A counter that starts anew at each multiple of `period_s` from `phase_s` (Azure, Gemini, Bedrock)."""

    __slots__ = ("_phase_s", "_used", "_window", "capacity", "period_s")

    def __init__(self, capacity: float, period_s: float = MINUTE_S, phase_s: float = 0.0) -> None:
        self.capacity = float(capacity)
        self.period_s = period_s
        self._phase_s = phase_s
        self._window = -math.inf
        self._used = 0.0

    def _window_of(self, moment: float) -> float:
        return math.floor((moment - self._phase_s) / self.period_s)

    def available(self, now: float) -> float:
        window = self._window_of(now)
        if window > self._window:
            self._window, self._used = window, 0.0
        return self.capacity - self._used

    def take(self, amount: float, now: float) -> None:
        self.available(now)
        self._used += amount

    def give(self, amount: float, now: float, taken_at: float) -> None:
        self.available(now)
        if self._window_of(taken_at) == self._window:
            self._used -= amount

    def full_in(self, now: float) -> float:
        return (self._window_of(now) + 1) * self.period_s + self._phase_s - now

    def free_in(self, amount: float, now: float) -> float:
        if amount > self.capacity:
            return NEVER
        return 0.0 if amount <= self.available(now) + _EPSILON else self.full_in(now)

    def resize(self, capacity: float, now: float) -> None:
        self.available(now)
        self.capacity = float(capacity)


class PacificDay(FixedWindow):
    """A day that starts at midnight in Los Angeles, daylight saving included (Gemini's RPD)."""

    __slots__ = ()

    def __init__(self, capacity: float) -> None:
        super().__init__(capacity, DAY_S)

    def _window_of(self, moment: float) -> float:
        return pacific_day(moment)

    def full_in(self, now: float) -> float:
        return next_midnight(now) - now


class SlidingWindow:
    """A log of charges in the last `period_s` seconds (providers that say nothing are modelled so)."""

    __slots__ = ("_log", "_used", "capacity", "period_s")

    def __init__(self, capacity: float, period_s: float = MINUTE_S) -> None:
        self.capacity = float(capacity)
        self.period_s = period_s
        self._log: deque[tuple[float, float]] = deque()
        self._used = 0.0

    def available(self, now: float) -> float:
        horizon = now - self.period_s
        log = self._log
        while log and log[0][0] <= horizon:
            self._used -= log.popleft()[1]
        return self.capacity - self._used

    def take(self, amount: float, now: float) -> None:
        self.available(now)
        self._log.append((now, amount))
        self._used += amount

    def give(self, amount: float, now: float, taken_at: float) -> None:
        self.available(now)
        if taken_at <= now - self.period_s:
            return
        # Dated like the charge it takes back, so that both leave the window together.
        place = next((i for i, (moment, _) in enumerate(self._log) if moment >= taken_at), len(self._log))
        self._log.insert(place, (taken_at, -amount))
        self._used -= amount

    def free_in(self, amount: float, now: float) -> float:
        if amount > self.capacity:
            return NEVER
        missing = amount - self.available(now)
        if missing <= _EPSILON:
            return 0.0
        for moment, charge in self._log:
            missing -= charge
            if missing <= _EPSILON:
                return moment + self.period_s - now
        return self.period_s

    def full_in(self, now: float) -> float:
        self.available(now)
        return self._log[-1][0] + self.period_s - now if self._log else 0.0

    def resize(self, capacity: float, now: float) -> None:
        self.available(now)
        self.capacity = float(capacity)
