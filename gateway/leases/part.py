"""One dimension of one quota's lease in one process, between exchanges: what it asks for, and lives on alone. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp

from gateway.balancing.leased import LeasedMeter
from gateway.balancing.limiter import Bucket, FixedWindow, Meter
from gateway.balancing.windows import DAY_S
from gateway.leases.account import Kind
from gateway.leases.row import LEASE_S, Draw, Grant

HORIZON_S, BURST, ALONE = 1.5, 1.0 / 16.0, 0.5
KEEP_S = 0.25
"""For so much demand a process keeps what it holds while an exchange is under way."""
SPARE = 1.0 / 64.0  # of the limit is kept, too, while nobody goes short: a burst or a slow exchange stops no request
SLACK_S = 5.0
SHORT_S = 10.0
"""Windows this short are over before an exchange would tell of what was spent in them: it is told when."""
DECAY_S = 60.0
NEWCOMER = 1.0 / 16.0
_RATE_TAU_S = 2.0


@dataclass(slots=True)
class Part:
    """One dimension of one ledger, between exchanges."""

    counts_requests: bool
    acked: float = 0.0
    sent: float = 0.0
    returned: float = 0.0
    gross: float = 0.0
    gross_at: float = 0.0
    rate: float = 0.0
    need: float = 0.0
    share: float = NEWCOMER
    lessees: int = int(1.0 / NEWCOMER) - 1
    free: float = 0.0
    is_alone: bool = False
    plenty: bool = False
    logged: list[tuple[float, float]] = field(default_factory=list)

    def measure(self, meter: LeasedMeter, now: float) -> None:
        """Work out the demand a second: up at once, down slowly."""
        span = now - self.gross_at
        measured = (meter.gross - self.gross) / max(span, 1.0)
        if measured > self.rate:
            self.rate = measured
        elif span >= 1.0:
            self.rate += (measured - self.rate) * (1.0 - exp(-span / _RATE_TAU_S))
        if span >= 1.0:
            self.gross, self.gross_at = meter.gross, now

    def dated(self, meter: LeasedMeter, window_s: float, now: float) -> list[tuple[float, float]]:
        """Give what was spent in the last window and not acknowledged yet: (seconds ago, amount)."""
        self.logged = [(at, amount) for at, amount in [*self.logged, *(meter.recent or ())] if now - at < window_s]
        meter.recent = []
        return [(now - at, amount) for at, amount in self.logged]

    def draw(self, meter: LeasedMeter, source: Meter, now: float, *, unix_offset_s: float, leaving: bool) -> Draw:
        """Report on it: give back all that is not about to be spent, and ask anew."""
        self.measure(meter, now)
        limit = meter.limit
        demand, need = self.rate, 0.0
        if meter.blocked:
            # How much more is wanted is not known: twice as much each time, until it is enough or the fair part.
            demand, need = 2.0 * self.rate + meter.need, meter.need
        if self.counts_requests:
            need = 1.0
        self.need = max(0.5 * self.need, meter.need)
        want = demand * HORIZON_S
        if source.window_s < DAY_S:
            want = max(want, limit * (ALONE if self.lessees == 1 else BURST))
        want = min(limit, max(want, need, self.need))
        spare = limit * SPARE if self.plenty and source.window_s < DAY_S else 0.0
        keep = 0.0 if leaving else max(0.0, min(meter.balance, max(self.rate * KEEP_S, spare)))
        self.returned = meter.balance - keep
        self.sent = meter.spent
        meter.balance = keep
        meter.blocked, meter.need = False, 0.0
        kind: Kind = "bucket" if isinstance(source, Bucket) else "sliding"
        phase, recent = 0.0, None
        if kind == "sliding" and source.window_s <= SHORT_S:
            recent = self.dated(meter, source.window_s, now)
        if isinstance(source, FixedWindow):
            kind, phase = "fixed", (source.phase + unix_offset_s) % source.window_s
        return Draw(
            kind=kind,
            limit=limit,
            window_s=source.window_s,
            phase=round(phase, 3),
            spent=self.sent,
            acked=self.acked,
            keep=keep,
            want=want,
            need=need,
            rate=min(demand, limit / source.window_s),
            leaving=leaving,
            recent=recent,
        )

    def take_over(self, meter: LeasedMeter, grant: Grant) -> bool:
        """Take over what was granted; True: it is more than before."""
        self.acked = self.sent
        self.logged.clear()
        self.returned, self.is_alone = 0.0, False
        self.share, self.lessees, self.free = grant.share, grant.lessees, max(0.0, grant.free)
        meter.free, meter.pace_per_s = self.free, grant.pace_per_s
        before = meter.balance
        meter.balance = grant.held - (meter.spent - self.sent)
        return meter.balance > before


def safe_share(share: float, lessees: int, alone_s: float) -> float:
    """Give the part of a limit that is a process's own, `alone_s` after its lease ended; see `desk`."""
    even = 1.0 / (lessees + 1)
    passed_s = alone_s if even < share else alone_s - LEASE_S
    weight = min(1.0, max(0.0, passed_s / DECAY_S))
    return share + (even - share) * weight
