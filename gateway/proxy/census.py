"""Sums over all pools, for the metrics: taken before a scrape, for with ten thousand tenants it takes its time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gateway.balancing.hedging import Hedging
from gateway.proxy.queue import QueueTally
from gateway.proxy.runtime import PoolRuntime, TenantRuntime
from gateway.proxy.sizing import Sizing
from gateway.proxy.unhurried import unhurried


@dataclass(slots=True)
class Sums:
    """What was counted, all pools together; `oldest_s` is the longest that somebody waits."""

    tenants: int = 0
    waiting: int = 0
    oldest_s: float = 0.0
    queues: QueueTally = field(default_factory=QueueTally)
    hedges: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("won", "lost", "failed"), 0.0))
    hedge_tokens: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("input", "output"), 0.0))
    hedge_cost_nanos: float = 0.0
    sized: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("whole", "truncated"), 0.0))
    misconfigured: int = 0

    def add(self, tenant: TenantRuntime) -> None:
        """Count one tenant."""
        self.tenants += 1
        self.misconfigured += tenant.book.misconfigured
        for pool in tenant.pools.values():
            self._add_queue(pool)
            if pool.hedging is not None:
                self._add_hedging(pool.hedging)
            if pool.sizing is not None:
                self._add_sizing(pool.sizing)

    def _add_queue(self, pool: PoolRuntime) -> None:
        queue, tally, all_of_them = pool.queue, pool.queue.tally, self.queues
        all_of_them.served += tally.served
        all_of_them.waited_s += tally.waited_s
        all_of_them.full += tally.full
        all_of_them.too_late += tally.too_late
        all_of_them.expired += tally.expired
        all_of_them.displaced += tally.displaced
        all_of_them.left += tally.left
        if queue.waiting:
            self.waiting += queue.waiting
            self.oldest_s = max(self.oldest_s, queue.view().oldest_s)

    def _add_hedging(self, hedging: Hedging) -> None:
        self.hedges["won"] += hedging.won
        self.hedges["lost"] += hedging.lost
        self.hedges["failed"] += hedging.failed
        self.hedge_tokens["input"] += hedging.est_input_tokens
        self.hedge_tokens["output"] += hedging.est_output_tokens
        self.hedge_cost_nanos += hedging.est_cost_nanos

    def _add_sizing(self, sizing: Sizing) -> None:
        self.sized["whole"] += sizing.sized - sizing.truncated
        self.sized["truncated"] += sizing.truncated

    @property
    def turned_away(self) -> dict[str, float]:
        """Give how many were not served, by reason."""
        queues = self.queues
        return {
            "full": queues.full,
            "too_late": queues.too_late,
            "expired": queues.expired,
            "displaced": queues.displaced,
            "left": queues.left,
        }


class Census:
    """`take` counts the tenants that `tenants` gives; `sums` is what it found last."""

    def __init__(self, tenants: Callable[[], Iterable[TenantRuntime]]) -> None:
        self._tenants = tenants
        self.sums = Sums()

    async def take(self) -> None:
        """Count all of them anew, while requests go on in between."""
        sums = Sums()
        async for tenant in unhurried(self._tenants()):
            sums.add(tenant)
        self.sums = sums
