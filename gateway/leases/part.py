"""One dimension of one quota's lease in one process, between exchanges. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp

from gateway.balancing.leased import LeasedMeter

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
