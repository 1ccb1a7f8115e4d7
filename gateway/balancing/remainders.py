"""What a provider's word on what remains shows of a limiter: its limit where none is named, its other users. Pure."""

from __future__ import annotations

from math import exp, inf

PEAK_WINDOWS = 3
PHASE_WITHIN = 0.2
"""A window's begin is learned where requests around it are this close, as a share of the window."""
OUTSIDE_TAU_S = 20.0


class Remainders:
    """One dimension whose remainders are told but not its limit, in fixed windows of unknown phase.

    Just after a window began the remainder is the limit; where it rose from one request to the next, one has begun.
    A window in which everything was refused says nothing of the limit: it had been spent before, by whomever.
    Amounts and times are those of the meter's window. `limit` is what was seen here, `elsewhere` in other processes.
    """

    __slots__ = ("_admitted", "_began", "_current", "_last", "_last_at", "_past", "elsewhere", "limit")

    def __init__(self, now: float) -> None:
        self._began = now
        self._current = 0.0
        self._admitted = False
        self._past: list[float] = []
        self._last, self._last_at = inf, now
        self.limit: float | None = None
        self.elsewhere = 0.0

    @property
    def known(self) -> float | None:
        """The limit by all that was seen: a process that never sees the quota untouched sees less than the limit."""
        return max(self.limit or 0.0, self.elsewhere) or None

    def add(
        self, remaining: float, held: float, as_of: float, window_s: float, *, refused: bool
    ) -> tuple[bool, float | None]:
        """Take in a remainder, and what it was before that request's share; gives whether the limit has changed, and
        the earliest request known to be in a new window (None: none is)."""
        rose = held > self._last + 0.5 and as_of - self._last_at < PHASE_WITHIN * window_s
        edge = as_of if rose else None
        self._last, self._last_at = remaining, as_of
        if as_of - self._began >= window_s:
            if self._admitted:
                self._past = [*self._past[1 - PEAK_WINDOWS :], self._current]
            self._began, self._current, self._admitted = as_of, 0.0, False
        self._current = max(self._current, held)
        self._admitted |= not refused
        if len(self._past) < PEAK_WINDOWS and (self.limit is None or held <= self.limit):
            return False, edge
        peak = max(self._current, *self._past, 0.0)
        changed = peak >= 1.0 and (self.limit is None or abs(peak - self.limit) > 0.01 * self.limit)
        if changed:
            self.limit = peak
        return changed, edge


class Outside:
    """One dimension's other users: what the remainder fell beyond our own spending, over the time it took."""

    __slots__ = ("drop", "elapsed_s", "error")

    def __init__(self) -> None:
        self.drop = self.elapsed_s = 0.0
        self.error: float | None = None

    def add(self, drop: float, elapsed_s: float, error: float) -> None:
        keep = exp(-elapsed_s / OUTSIDE_TAU_S)
        self.drop = self.drop * keep + drop
        self.elapsed_s = self.elapsed_s * keep + elapsed_s
        self.error = error if self.error is None else 0.95 * self.error + 0.05 * error

    def rate(self) -> float:
        """Samples are signed, so that estimates that are merely off cancel out."""
        return max(0.0, self.drop / self.elapsed_s) if self.elapsed_s > 1.0 else 0.0
