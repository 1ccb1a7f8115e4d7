"""Decaying averages of irregular samples; reading projects in time and never changes the state."""

from __future__ import annotations

from math import exp, inf


class Ewma:
    """A mean whose weights decay with age: w = exp(-dt / tau). None until the first sample."""

    __slots__ = ("_at", "_tau_s", "value")

    def __init__(self, tau_s: float) -> None:
        self._tau_s = tau_s
        self._at = 0.0
        self.value: float | None = None

    def add(self, sample: float, now: float) -> None:
        """Take in a sample; older than the newest counts as of now."""
        if self.value is None:
            self.value = sample
        else:
            # A floor under dt lets bursts of simultaneous samples move the mean, each a little.
            keep = exp(-max(now - self._at, self._tau_s * 0.02) / self._tau_s)
            self.value = self.value * keep + sample * (1.0 - keep)
        self._at = max(self._at, now)


class PeakEwma:
    """A latency mean that jumps up at once and comes down slowly (Finagle's Peak EWMA), in seconds.

    `read` decays towards zero with time since the last sample, so that a slow key is tried again some day.
    """

    __slots__ = ("_at", "_least_s", "_tau_s", "_value")

    def __init__(self, tau_s: float = 10.0, *, initial_s: float | None = None) -> None:
        self._tau_s = tau_s
        self._least_s = tau_s * 0.02
        self._at = -inf
        self._value = 0.0 if initial_s is None else initial_s

    def add(self, sample_s: float, now: float) -> None:
        """Take in one latency."""
        if sample_s > self._value:
            self._value = sample_s
        else:
            dt = now - self._at
            keep = exp(-(dt if dt > self._least_s else self._least_s) / self._tau_s)
            self._value = self._value * keep + sample_s * (1.0 - keep)
        self._at = now if now > self._at else self._at

    def read(self, now: float) -> float | None:
        """Give the estimate; None before the first sample."""
        if self._at == -inf:
            return self._value or None
        idle_s = now - self._at
        # Half an hour of silence forgets a latency by a factor of e: other keys' samples are then the better guess.
        return self._value * exp(-idle_s / (180.0 * self._tau_s)) if idle_s > 0.0 else self._value


class DecayingCounts:
    """Successes and failures with exponential forgetting; gives the failure share among the recent ones.

    What comes within 1/64 of `tau_s` weighs the same, so that a busy key is not charged an exponential a request.
    """

    __slots__ = ("_at", "_due", "_failures", "_tau_s", "_total")

    def __init__(self, tau_s: float = 30.0) -> None:
        self._tau_s = tau_s
        self._at = self._due = 0.0
        self._failures = 0.0
        self._total = 0.0

    def add(self, now: float, *, failed: bool) -> None:
        """Count one attempt."""
        if now >= self._due:
            self._fade(now)
        self._total += 1.0
        if failed:
            self._failures += 1.0

    def _fade(self, now: float) -> None:
        keep = exp((self._at - now) / self._tau_s)
        self._failures *= keep
        self._total *= keep
        self._at, self._due = now, now + self._tau_s / 64.0

    @property
    def total(self) -> float:
        """Attempts counted, decayed as of the last one."""
        return self._total

    @property
    def failure_share(self) -> float:
        """Failures over attempts, 0 when there are none."""
        return self._failures / self._total if self._total > 0.0 else 0.0

    def share_at(self, now: float, prior: float) -> float:
        """Give the failure share as of now, as if `prior` further attempts had succeeded: it fades with silence."""
        keep = exp((self._at - now) / self._tau_s) if now > self._at else 1.0
        return self._failures * keep / (self._total * keep + prior) if self._failures else 0.0

    def clear(self) -> None:
        """Forget everything."""
        self._failures = self._total = 0.0
