"""What is left of one limit, for all processes together: the meters of `balancing.limiter` as plain values. Pure.

An account is charged with what lessees *report* as spent; what they hold and have not spent yet (`held`) is deducted by
the row on top of it. So `available - held` is free whatever a lessee does with what it holds, and a lessee that
vanishes is charged all that it held: no assumption errs towards more than the limit.

Kinds, times in Unix seconds by the store's clock:

- `bucket`: `level` at `at`, refilled at `limit / window_s` a second up to `limit`;
- `fixed`: `level` used in the window number `at`, zero again in the next one (`phase + n * window_s`);
- `sliding`: `slots` of (number, amount), each held until it is a whole window old;
- `slots`: requests in flight: nothing is ever charged, only held;
- `stock`: `level` is what a higher level has granted; it does not come back by itself.
"""

from __future__ import annotations

from math import floor
from typing import Literal

import msgspec

Kind = Literal["bucket", "fixed", "sliding", "slots", "stock"]
SLOTS = 20
"""Parts of a sliding window that is kept in the database: coarser than `balancing.limiter.SlidingWindow`."""
CAUTION = 0.02
"""An account is raised by a provider's word only where it differs by more than this share of the limit."""


class Account(msgspec.Struct, array_like=True):
    """One limit; see the module. `total` sums up all charges, so that lessees see what others have spent."""

    kind: Kind
    limit: float
    window_s: float = 60.0
    phase: float = 0.0
    level: float = 0.0
    at: float = 0.0
    total: float = 0.0
    slots: list[tuple[int, float]] = []

    @classmethod
    def open(cls, kind: Kind, limit: float, window_s: float, phase: float, now: float) -> Account:
        """Make an account nothing was taken from."""
        made = cls(kind, limit, window_s, phase)
        if kind == "bucket":
            made.level, made.at = limit, now
        elif kind == "fixed":
            made.at = made._number(now)
        return made

    def _number(self, now: float) -> int:
        return floor((now - self.phase) / self.window_s)

    def _slot(self, now: float) -> int:
        return floor(now * SLOTS / self.window_s)

    @property
    def per_s(self) -> float:
        """What comes back in a second, on average."""
        return self.limit / self.window_s if self.window_s > 0.0 else 0.0

    def available(self, now: float) -> float:
        """Give what is not spent; below zero when overdrawn."""
        if self.kind == "bucket":
            return min(self.limit, self.level + max(0.0, now - self.at) * self.per_s)
        if self.kind == "fixed":
            return self.limit - (self.level if self._number(now) <= self.at else 0.0)
        if self.kind == "sliding":
            oldest = self._slot(now) - SLOTS
            return self.limit - sum(amount for number, amount in self.slots if number >= oldest)
        return self.level if self.kind == "stock" else self.limit

    def charge(self, amount: float, now: float, *, span_s: float = 0.0) -> None:
        """Take what was spent in the last `span_s` seconds; below zero it is given back.

        Of what was spent evenly over more than a window (the store was away) only the last window's part is in use.
        """
        if self.kind == "slots" or amount == 0.0:
            return
        self.total += amount
        if span_s > 0.0 and self.kind != "stock":
            lasts_s = self.window_s
            if self.kind == "fixed":
                lasts_s = now - self.phase - self._number(now) * self.window_s
            amount *= min(1.0, lasts_s / span_s)
        if self.kind == "bucket":
            self.level = min(self.limit, self.available(now) - amount)
            self.at = max(self.at, now)
        elif self.kind == "fixed":
            self._roll(now)
            self.level = max(0.0, self.level + amount)
        elif self.kind == "sliding":
            self._charge_slot(amount, now)
        else:
            self.level -= amount

    def charge_dated(self, amount: float, recent: list[tuple[float, float]], now: float) -> None:
        """Take what was spent, of which `recent` (seconds ago, amount) is all that lies in the last window. Sliding.

        Who did not hear that an earlier report was taken tells its part again: only the latest `amount` of it is new.
        """
        self.total += amount
        counts, left = dict(self.slots), amount
        for age_s, told in sorted(recent):
            part = min(told, left)
            if part <= 0.0:
                break
            left -= part
            slot = self._slot(now - max(0.0, age_s))
            counts[slot] = counts.get(slot, 0.0) + part
        oldest = self._slot(now) - SLOTS
        self.slots = sorted((slot, held) for slot, held in counts.items() if slot >= oldest and held > 0.0)

    def passed(self, now: float) -> float:
        """Tell how much of a fixed window has gone by, 0..1; 0 of the other kinds."""
        return ((now - self.phase) / self.window_s) % 1.0 if self.kind == "fixed" else 0.0

    def has_begun_anew(self, within_s: float, now: float) -> bool:
        """Tell whether a fixed window began in the last `within_s` seconds."""
        return self.kind == "fixed" and self._number(now) > self._number(now - within_s)

    def _roll(self, now: float) -> None:
        if (number := self._number(now)) > self.at:
            self.at, self.level = number, 0.0

    def _charge_slot(self, amount: float, now: float) -> None:
        current = self._slot(now)
        kept = [(number, held) for number, held in self.slots if number >= current - SLOTS]
        if amount < 0.0:
            # Given back where it was charged last: those slots leave latest.
            for index in range(len(kept) - 1, -1, -1):
                number, held = kept[index]
                given = min(held, -amount)
                kept[index] = number, held - given
                amount += given
        elif kept and kept[-1][0] >= current:
            kept[-1] = kept[-1][0], kept[-1][1] + amount
        else:
            kept.append((current, amount))
        self.slots = [slot for slot in kept if slot[1] > 0.0]

    def fit(self, kind: Kind, limit: float, window_s: float, phase: float, now: float) -> None:
        """Take over a changed limit or window; what is in use stays in use."""
        if (kind, limit, window_s, phase) == (self.kind, self.limit, self.window_s, self.phase):
            return
        used = self.limit - self.available(now)
        if kind != self.kind or window_s != self.window_s:
            total = self.total
            fresh = Account.open(kind, limit, window_s, phase, now)
            self.kind, self.window_s, self.level, self.at, self.slots = kind, window_s, fresh.level, fresh.at, []
            self.limit, self.phase = limit, phase
            self.charge(min(used, limit), now)
            self.total = total
            return
        if kind == "fixed" and phase != self.phase:
            self._roll(now)
            self.phase = phase
            self.at = self._number(now)
        if kind == "bucket":
            # As `limiter.Bucket.resize`: a debt of a larger limit is not to be repaid at the smaller one's pace.
            debt = max(-limit, min(0.0, self.available(now)))
            self.level, self.at = max(limit - used, debt), max(self.at, now)
        self.limit = limit

    def told(self, remaining: float, unreported: float, since: float, now: float) -> None:
        """Take in what the provider says is left.

        `unreported` at most may be spent and not charged yet: by so much the figure may be below ours; beyond that,
        somebody else has taken it. `since` was spent after the provider spoke: by so much the truth may be below the
        figure; above ours even then, our charges were too cautious (a lessee vanished with what it held).
        """
        ours = self.available(now)
        if remaining + unreported < ours:
            change = remaining + unreported - ours
        elif min(remaining - since, self.limit) > ours + CAUTION * self.limit:
            change = min(remaining - since, self.limit) - ours
        else:
            return
        total = self.total
        self.charge(-change, now)
        self.total = total

    def free_in(self, amount: float, held: float, now: float) -> float:
        """Give the seconds until `amount` may be free beside `held`, as far as time alone decides; at most a minute."""
        missing = amount + held - self.available(now)
        if missing <= 0.0:
            return 0.0
        if self.kind == "bucket" and self.per_s > 0.0:
            return min(60.0, missing / self.per_s)
        if self.kind == "fixed":
            return min(60.0, self.phase + (self._number(now) + 1) * self.window_s - now)
        if self.kind != "sliding":
            return 1.0
        for slot, part in self.slots:
            missing -= part
            if missing <= 0.0:
                return min(60.0, max(0.0, (slot + SLOTS + 1) * self.window_s / SLOTS - now))
        return min(60.0, self.window_s / SLOTS)
