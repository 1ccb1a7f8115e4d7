"""A limiter of a class that the balancer has no semantics for: it wants an even pace, and says nothing of it."""

from __future__ import annotations

from typing import ClassVar

from gateway.simulation.limits.meters import MINUTE_S, Meter, RefillBucket
from gateway.simulation.limits.model import (
    REQUESTS,
    TOKENS,
    Headers,
    Rejected,
    Shortage,
    present,
    whole_seconds,
)
from gateway.simulation.limits.opaque import OpaqueLimits

BURST_S = 10.0
"""So many seconds' worth of a limit may come at once (the burst tolerance of a virtual-scheduling limiter, GCRA)."""


class PacedLimits(OpaqueLimits):
    """RPM and TPM as rates with a burst of `BURST_S` alone; output counts when it has been produced.

    A 429 carries `retry-after`, answers nothing. It stands for gateways and model servers behind GCRA or a leaky
    bucket: whoever believes in minutes meets refusals with five sixths of his minute unspent.
    """

    style: ClassVar[str] = "paced"

    def meters(self) -> dict[str, Meter]:
        limits = self.limits
        return present(
            (
                (REQUESTS, _paced(limits.rpm, 1.0) if limits.rpm else None),
                (TOKENS, _paced(limits.tpm, limits.tpm / 4) if limits.tpm else None),
            )
        )

    def rejection(self, short: Shortage, told: Headers = ()) -> Rejected:
        if short.wait_s is not None:
            told = (*told, ("retry-after", whole_seconds(short.wait_s)))
        return super().rejection(short, told)


def _paced(per_minute: float, at_least: float) -> Meter:
    """Make a bucket that refills at the rate and saves up a burst; the largest request of a trace must fit in it."""
    burst = max(at_least, per_minute * BURST_S / MINUTE_S)
    return RefillBucket(burst, burst * MINUTE_S / per_minute)
