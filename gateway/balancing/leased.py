"""The part of one quota's limits that this process may spend by itself: what it was granted, and what it took of it.

Several processes draw on one quota. A ledger's meters know the limit; the lease knows how much of it is ours until the
next exchange with the others (`gateway.leases`). Both must have room. The hot path reads a number and compares; what is
granted, when, and what happens while nobody grants is decided outside, between requests.

Before the first exchange a lease has `CREDIT` of each limit, so that the first request of a quiet quota does not wait.
After `until` nothing may be spent: a process that was stopped and wakes finds its lease over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf

from gateway.balancing.charging import Dimension, unit_of
from gateway.balancing.limiter import FixedWindow, Meter

CREDIT = 1.0 / 64.0
"""Of each limit so much may be spent before the first exchange; what is smaller than one request waits for it."""
LOG_S = 0.05
"""What is taken within so much of a second is noted as one."""
SOON_S = 0.02
"""About how long an exchange takes that is asked for at once."""


class LeasedMeter:
    """One dimension's part: `balance` may be spent, `spent` is all that ever was, `gross` the same without refunds.

    `blocked`: somebody found less than it needed since this was last cleared; `need`: what one request takes at most.
    `recent`: what was taken when, (clock, amount), oldest first; None where windows are long and nobody asks.
    `free` and `pace_per_s`: what nobody held at the last exchange, and what of the refill the others leave; inf: not
    known.
    """

    __slots__ = ("balance", "blocked", "free", "gross", "limit", "need", "pace_per_s", "recent", "spent")

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.balance = limit * CREDIT
        self.spent = 0.0
        self.gross = 0.0
        self.need = 0.0
        self.blocked = False
        self.free = self.pace_per_s = inf
        self.recent: list[tuple[float, float]] | None = None

    def log(self, amount: float, now: float) -> None:
        """Note what was taken, by parts of a second that count from their end."""
        recent = self.recent
        if recent is None:
            return
        if recent and now - recent[-1][0] < LOG_S and len(recent) > 1 and now - recent[-2][0] < LOG_S:
            recent[-1] = now, recent[-1][1] + amount
        else:
            recent.append((now, amount))


class QuotaLease:
    """One ledger's part; amounts come as `charging.sizes`, each capped at the limit as the ledger caps estimates.

    `on_need` is called when it is first used since `noted` was cleared, or found short since `asked` was: time to ask.
    `is_hurried`: also when it is found short after `retry_at`, since a short window is over before the next exchange.
    """

    __slots__ = ("_on_need", "asked", "is_hurried", "meters", "noted", "retry_at", "until", "uses")

    def __init__(self, on_need: Callable[[], None]) -> None:
        self._on_need = on_need
        self.meters: dict[Dimension, tuple[int, LeasedMeter]] = {}
        self.until = inf
        self.retry_at = -inf
        self.noted = False
        self.asked = False
        self.is_hurried = False
        self.uses = 0

    def fit(self, dimension: Dimension, limit: float | None) -> None:
        """Take over a changed limit; None: there is none any more."""
        if limit is None:
            self.meters.pop(dimension, None)
        elif (known := self.meters.get(dimension)) is None:
            self.meters[dimension] = unit_of(dimension), LeasedMeter(limit)
        else:
            known[1].limit = limit

    def fit_all(self, limits: Mapping[Dimension, float]) -> None:
        """Take over the limits of another ledger: nobody would be granted anything of those that it does not have."""
        for dimension in Dimension:
            self.fit(dimension, limits.get(dimension))

    def ready_at(self, counted: Sequence[float], now: float) -> float:
        """Give when a request of this size may be sent: `now`, or when more is expected to be granted."""
        short = False
        for unit, meter in self.meters.values():
            amount = min(counted[unit], meter.limit)
            if meter.balance < amount or now >= self.until:
                short = meter.blocked = True
                meter.need = max(meter.need, amount)
        if not short:
            return now
        if self.is_hurried and now >= self.retry_at:
            self.asked = False
        self.ask()
        return max(now + SOON_S, self.retry_at)

    def ask(self) -> None:
        """Have more asked for, unless that was found useless for now."""
        if not self.asked:
            self.noted = self.asked = True
            self._on_need()

    def take(self, counted: Sequence[float], now: float) -> None:
        """Spend; also what was not granted, which is then owed."""
        self.uses += 1
        for unit, meter in self.meters.values():
            amount = counted[unit]
            amount = min(amount, meter.limit)
            meter.balance -= amount
            meter.spent += amount
            meter.gross += amount
            meter.need = max(meter.need, amount)
            if meter.recent is not None:
                meter.log(amount, now)
        if not self.noted:
            self.noted = True
            self._on_need()

    def adjust(self, dimension: Dimension, delta: float, still: float, posted: float = 0.0) -> None:
        """Correct what was taken; of a refund the part `still` counts (`still_taken`). `posted` of it is taken anew."""
        known = self.meters.get(dimension)
        if known is None:
            return
        meter = known[1]
        if delta < 0.0:
            delta *= still
        else:
            meter.gross += delta
        delta += posted
        meter.balance -= delta
        meter.spent += delta


def still_taken(meter: Meter, taken_at: float, now: float) -> float:
    """Give what part (0..1) of an amount has not come back by time since it was taken."""
    if isinstance(meter, FixedWindow):
        return 1.0 if taken_at >= meter.begun(now) else 0.0
    return max(0.0, 1.0 - (now - taken_at) / meter.window_s)
