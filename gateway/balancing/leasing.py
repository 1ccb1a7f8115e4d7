"""What an `Exchange` needs of a balancer."""

from __future__ import annotations

from typing import Protocol

from gateway.balancing.decision import Ask, Decision, Lease
from gateway.balancing.hints import Hint
from gateway.balancing.outcome import Outcome


class Leasing(Protocol):
    """Gives leases and takes them back; fulfilled by `Balancer`."""

    def acquire(self, ask: Ask, *, now: float) -> Decision:
        """Choose and reserve, or say why not."""

    def spare(self, ask: Ask, *, now: float, headroom: float) -> Lease | None:
        """Reserve on a healthy key with more than `headroom` of its limits free; None when there is none."""

    def observe(self, lease: Lease, outcome: Outcome, *, now: float) -> None:
        """Give the lease back; exactly once."""

    def learn(self, lease: Lease, hint: Hint, *, now: float) -> None:
        """Take in the limits that a response head told."""
