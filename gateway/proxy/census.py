"""Sums over all pools, for the metrics: taken before a scrape, for with ten thousand tenants it takes its time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gateway.balancing.hedging import Hedging
from gateway.proxy.queue import PoolQueue, QueueTally
from gateway.proxy.runtime import TenantRuntime
from gateway.proxy.sizing import Sizing
from gateway.unhurried import unhurried

Source = PoolQueue | Hedging | Sizing
"""What counts for one pool, as long as it lives."""


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
        """Note what a tenant has now; what its pools have counted is `count`'s."""
        self.tenants += 1
        self.misconfigured += tenant.book.misconfigured
        for pool in tenant.pools.values():
            if pool.queue.waiting:
                self.waiting += pool.queue.waiting
                self.oldest_s = max(self.oldest_s, pool.queue.view().oldest_s)

    def count(self, source: Source) -> None:
        """Add what one part of a pool has counted."""
        if isinstance(source, PoolQueue):
            self._count_queue(source.tally)
        elif isinstance(source, Hedging):
            self.hedges["won"] += source.won
            self.hedges["lost"] += source.lost
            self.hedges["failed"] += source.failed
            self.hedge_tokens["input"] += source.est_input_tokens
            self.hedge_tokens["output"] += source.est_output_tokens
            self.hedge_cost_nanos += source.est_cost_nanos
        else:
            self.sized["whole"] += source.sized - source.truncated
            self.sized["truncated"] += source.truncated

    def _count_queue(self, tally: QueueTally) -> None:
        all_of_them = self.queues
        all_of_them.served += tally.served
        all_of_them.waited_s += tally.waited_s
        all_of_them.full += tally.full
        all_of_them.too_late += tally.too_late
        all_of_them.expired += tally.expired
        all_of_them.displaced += tally.displaced
        all_of_them.left += tally.left

    def include(self, other: Sums) -> None:
        """Add what `other` has counted."""
        self._count_queue(other.queues)
        self.hedge_cost_nanos += other.hedge_cost_nanos
        for mine, theirs in (
            (self.hedges, other.hedges),
            (self.hedge_tokens, other.hedge_tokens),
            (self.sized, other.sized),
        ):
            for name, count in theirs.items():
                mine[name] += count

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
    """`take` counts the tenants that `tenants` gives; `sums` is what it found last.

    What pools have counted that are gone by now stays in the sums: a counter that fell would be taken for one that
    began anew, and all that is left of it for new.
    """

    def __init__(self, tenants: Callable[[], Iterable[TenantRuntime]]) -> None:
        self._tenants = tenants
        self._sources: dict[int, Source] = {}
        self._gone = Sums()
        self.sums = Sums()

    async def take(self) -> None:
        """Count all of them anew, while requests go on in between."""
        sums, sources = Sums(), dict[int, Source]()
        async for tenant in unhurried(self._tenants()):
            sums.add(tenant)
            for pool in tenant.pools.values():
                for source in (pool.queue, pool.hedging, pool.sizing):
                    if source is not None:
                        sources[id(source)] = source
                        sums.count(source)
        former, self._sources = self._sources, sources
        for known, source in former.items():
            if known not in sources:
                self._gone.count(source)
        sums.include(self._gone)
        self.sums = sums
