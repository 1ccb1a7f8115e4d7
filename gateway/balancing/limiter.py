"""The three window semantics that providers use, as meters of one limited dimension.

A meter is told what is taken and answers when an amount is free. It never refuses: what the balancer takes is taken,
and a level below zero (an actual above its estimate) is paid back by time. Reading never changes what a later reading
says. Amounts are requests or tokens; times are seconds on one clock that may stand still but not matter when it jumps
back: such readings count as the latest known moment.

`resync` corrects a meter by what a response head told: the provider spoke of the moment when it admitted that request,
so what was taken since (`taken` now minus `mark`, the value of `taken` right after that request's own reservation) is
still to come off, and what has refilled since is added. That is the in-flight correction of the header-fed ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from math import floor, inf
from typing import ClassVar, Protocol


class Meter(Protocol):
    """One dimension of a quota in one window.

    Invariant: `available(now) >= a` exactly when `earliest(a, now) <= now`.
    """

    limit: float
    window_s: float
    taken: float
    """The sum of all that was ever taken; only differences of it mean anything."""

    def available(self, now: float) -> float:
        """Give what is free now; below zero when overdrawn."""

    def earliest(self, amount: float, now: float) -> float:
        """Give the moment from which `amount` is free if nothing else is taken; inf when it never is."""

    def take(self, amount: float, now: float) -> None:
        """Charge `amount`."""

    def adjust(self, delta: float, taken_at: float, now: float) -> None:
        """Charge (`delta` > 0) or refund (< 0) the difference to an earlier estimate taken at `taken_at`."""

    def resync(self, remaining: float, *, as_of: float, mark: float, reset_s: float | None, now: float) -> None:
        """Take over the provider's word, see the module."""

    def resize(self, limit: float, now: float) -> None:
        """Change the limit; what is in use stays in use."""

    def lean(self, outside_per_s: float, now: float) -> None:
        """Assume that others take so much a second from now on, between one word of the provider and the next."""

    def begun(self, now: float) -> float:
        """Give when the count last began anew, all at once; -inf: never, inf: what others take is not followed."""

    spare: ClassVar[float]
    """How much of a margin to ask for, in margins: as much as keeping it free costs little here; none where it would be
    lost with the window."""


class Bucket:
    """Continuous refill: full at `limit`, refilled at `limit / window_s` a second (OpenAI, Anthropic, Groq).

    Stated burst: any window of `window_s` seconds admits at most 2 * limit (a full bucket plus its refill).
    """

    # A level that is left untouched costs some delay once, no throughput: it refills as fast below it as above.
    spare: ClassVar[float] = 10.0

    __slots__ = ("_at", "_level", "_outside_per_s", "_per_s", "limit", "taken", "window_s")

    def __init__(self, limit: float, window_s: float, now: float) -> None:
        self.limit = float(limit)
        self.window_s = window_s
        self._per_s = self.limit / window_s
        self._outside_per_s = 0.0
        self.taken = 0.0
        self._level = self.limit
        self._at = now

    def available(self, now: float) -> float:
        if now <= self._at:
            return self._level
        level = self._level + (now - self._at) * self._per_s
        return level if level < self.limit else self.limit

    def earliest(self, amount: float, now: float) -> float:
        missing = amount - self.available(now)
        if missing <= 0.0:
            return now
        if amount > self.limit:
            return inf
        # The margin keeps "free at t" true at t itself in spite of rounding.
        return max(now, self._at) + missing / self._per_s + 1e-6

    def take(self, amount: float, now: float) -> None:
        if now > self._at:
            level = self._level + (now - self._at) * self._per_s
            self._level = (level if level < self.limit else self.limit) - amount
            self._at = now
        else:
            self._level -= amount
        self.taken += amount

    def adjust(self, delta: float, taken_at: float, now: float) -> None:
        # A refund older than the window has been refilled by time already.
        if delta < 0.0:
            delta *= max(0.0, 1.0 - (now - taken_at) / self.window_s)
        self._level = min(self.limit, self.available(now) - delta)
        self._at = max(self._at, now)

    def resync(self, remaining: float, *, as_of: float, mark: float, reset_s: float | None, now: float) -> None:
        del reset_s  # refill is continuous: no window ends
        if now > as_of:
            remaining += (now - as_of) * self._per_s
        self._level = (remaining if remaining < self.limit else self.limit) - (self.taken - mark)
        self._at = now if now > self._at else self._at

    def resize(self, limit: float, now: float) -> None:
        available = self.available(now)
        used = self.limit - available
        self.limit = float(limit)
        # What was in use under a larger limit came back at that limit's pace: it is no debt to be repaid at this one's.
        debt = max(-self.limit, min(0.0, available))
        self._level = max(self.limit - used, debt)
        self._at = max(self._at, now)
        self._refill()

    def lean(self, outside_per_s: float, now: float) -> None:
        self._level = self.available(now)
        self._at = max(self._at, now)
        self._outside_per_s = outside_per_s
        self._refill()

    def begun(self, now: float) -> float:
        del now
        return -inf

    def _refill(self) -> None:
        gross = self.limit / self.window_s
        # However much others take, an account that never fills up again would never be corrected either.
        self._per_s = max(0.1 * gross, gross - self._outside_per_s)


class FixedWindow:
    """A count that falls to zero at `phase + n * window_s` (Gemini's minutes and days, Mistral's minutes).

    Stated burst: 2 * limit across one boundary, none above `limit` inside a window.
    """

    # What is left untouched at the end of a window is lost: the last request of every one.
    spare: ClassVar[float] = 0.0

    __slots__ = ("_index", "_outside_per_s", "_phase", "_told_at", "_used", "limit", "taken", "window_s")

    def __init__(self, limit: float, window_s: float, now: float, *, phase: float = 0.0) -> None:
        self.limit = float(limit)
        self.window_s = window_s
        self.taken = 0.0
        self._phase = phase
        self._index = floor((now - phase) / window_s)
        self._used = 0.0
        self._outside_per_s = 0.0
        self._told_at = now

    def _roll(self, now: float) -> None:
        # The same comparison as in `available`: a quotient may round to the other side of the boundary.
        if now >= self._phase + (self._index + 1) * self.window_s:
            self._index = max(self._index + 1, floor((now - self._phase) / self.window_s))
            self._used = 0.0
            self._told_at = self._phase + self._index * self.window_s

    def available(self, now: float) -> float:
        began = self._phase + (self._index + 1) * self.window_s
        if now >= began:
            return self.limit - self._outside_per_s * (now - began)
        if self._outside_per_s and now > self._told_at:
            return self.limit - self._used - self._outside_per_s * (now - self._told_at)
        return self.limit - self._used

    def lean(self, outside_per_s: float, now: float) -> None:
        del now  # counted from the last word on
        self._outside_per_s = outside_per_s

    @property
    def phase(self) -> float:
        """When some window begins."""
        return self._phase

    def begun(self, now: float) -> float:
        return self._phase + floor((now - self._phase) / self.window_s) * self.window_s

    def rephase(self, phase: float, now: float) -> None:
        """Take over when windows really begin; what is in use stays in use until the next one does."""
        if abs(phase - self._phase) > 1e-6:
            self._roll(now)
            self._phase, self._index = phase, floor((now - phase) / self.window_s)

    def spent(self, now: float) -> float:
        """Give how much of the window has gone by, 0..1: what is left of its limit expires with it."""
        return ((now - self._phase) / self.window_s) % 1.0

    def earliest(self, amount: float, now: float) -> float:
        if self.available(now) >= amount:
            return now
        if amount > self.limit:
            return inf
        return self._phase + (self._index + 1) * self.window_s

    def take(self, amount: float, now: float) -> None:
        self._roll(now)
        self._used += amount
        self.taken += amount

    def adjust(self, delta: float, taken_at: float, now: float) -> None:
        self._roll(now)
        if delta > 0.0 or floor((taken_at - self._phase) / self.window_s) >= self._index:
            self._used = max(0.0, self._used + delta)

    def resync(self, remaining: float, *, as_of: float, mark: float, reset_s: float | None, now: float) -> None:
        self._roll(now)
        if reset_s is not None and 0.0 < reset_s <= self.window_s:
            end = now + reset_s
            if abs(end - (self._phase + (self._index + 1) * self.window_s)) > 0.02 * self.window_s:
                # The provider names the end of its window: that is the phase, learned.
                self._phase, self._index = end, -1
        if floor((as_of - self._phase) / self.window_s) == self._index:
            self._used = max(0.0, self.limit - remaining + self.taken - mark)
            self._told_at = max(self._told_at, as_of)

    def resize(self, limit: float, now: float) -> None:
        self._roll(now)
        self.limit = float(limit)


class LocalDay(FixedWindow):
    """A day that ends at a local midnight, 23 to 25 hours after the last one. `midnight` gives the next after a moment.

    Stated burst: as any fixed window's.
    """

    __slots__ = ("_midnight",)

    def __init__(self, limit: float, now: float, midnight: Callable[[float], float]) -> None:
        super().__init__(limit, 86_400.0, now, phase=midnight(now))
        self._midnight = midnight
        self._index = -1

    def _roll(self, now: float) -> None:
        # The running day is always the one that ends at the phase.
        if now >= self._phase:
            self._phase = self._midnight(now)
            self._used = 0.0
            self._told_at = now


class SlidingWindow:
    """A window whose phase nobody told: never more than `limit` in any `window_s` seconds.

    Counted in slots, `SLOTS` a window, that leave whole: an amount is held for at most one slot longer than the window,
    which is also the share of the limit that this costs. Right for unknown providers, Azure's sub-windows, and every
    fixed window of unknown phase. No burst.
    """

    spare: ClassVar[float] = 0.0
    SLOTS = 100
    __slots__ = ("_counts", "_slot", "_slot_s", "_used", "limit", "taken", "window_s")

    def __init__(self, limit: float, window_s: float, now: float) -> None:
        self.limit = float(limit)
        self.window_s = window_s
        self.taken = 0.0
        self._slot_s = window_s / self.SLOTS
        # By slot, oldest first; what holds nothing is not there.
        self._counts: dict[int, float] = {}
        self._slot = floor(now / self._slot_s)
        self._used = 0.0

    def _roll(self, now: float) -> None:
        slot = floor(now / self._slot_s)
        if slot <= self._slot:
            return
        self._slot = slot
        counts, oldest = self._counts, slot - self.SLOTS
        gone = list(takewhile(lambda each: each < oldest, counts))
        if gone:
            for each in gone:
                del counts[each]
            # Summed anew, so that rounding errors of tokens cannot pile up.
            self._used = sum(counts.values())

    def available(self, now: float) -> float:
        self._roll(now)
        return self.limit - self._used

    def earliest(self, amount: float, now: float) -> float:
        self._roll(now)
        free = self.limit - self._used
        if free >= amount:
            return now
        if amount > self.limit:
            return inf
        last = self._slot
        for slot, held in self._counts.items():
            free += held
            if free >= amount - 1e-9:
                last = slot
                break
        return (last + self.SLOTS + 1) * self._slot_s + 1e-6

    def take(self, amount: float, now: float) -> None:
        self._roll(now)
        self._counts[self._slot] = self._counts.get(self._slot, 0.0) + amount
        self._used += amount
        self.taken += amount

    def adjust(self, delta: float, taken_at: float, now: float) -> None:
        self._roll(now)
        slot = floor(taken_at / self._slot_s)
        if delta < 0.0:
            held = self._counts.get(slot)
            if held is None:
                return
            delta = max(delta, -held)
            self._counts[slot] = held + delta
            self._used += delta
        else:
            self._hold(delta, min(slot, self._slot) if slot >= self._slot - self.SLOTS else self._slot)

    def _hold(self, amount: float, slot: int) -> None:
        """Count an amount as taken in a slot, which may be an earlier one."""
        held = self._counts.get(slot)
        self._counts[slot] = amount if held is None else held + amount
        self._used += amount
        if held is None and slot < self._slot:
            self._counts = dict(sorted(self._counts.items()))

    def resync(self, remaining: float, *, as_of: float, mark: float, reset_s: float | None, now: float) -> None:
        del as_of  # slots leave by age whatever was taken when
        self._roll(now)
        surplus = self.limit - remaining + self.taken - mark - self._used
        if surplus > 0.0:
            # Used by others than us, at an unknown moment: held until the told reset, else as long as if just now.
            back = self.window_s - reset_s if reset_s is not None and 0.0 <= reset_s < self.window_s else 0.0
            self._hold(surplus, max(self._slot - self.SLOTS, floor((now - back) / self._slot_s)))
            return
        for slot, held in self._counts.items():
            freed = min(-surplus, held)
            self._counts[slot] = held - freed
            surplus += freed
        self._used = sum(self._counts.values())

    def resize(self, limit: float, now: float) -> None:
        self._roll(now)
        self.limit = float(limit)

    def lean(self, outside_per_s: float, now: float) -> None:
        # What others used is held for a whole window as it is.
        del outside_per_s, now

    def begun(self, now: float) -> float:
        del now
        return inf
