"""Very many quotas are exchanged in batches: a row is put back soon after it was read, and requests have their turn."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from auth.errors import Unavailable
from gateway.balancing.ledger import Ledger
from gateway.balancing.outcome import Outcome, OutcomeKind
from gateway.balancing.quota import Limits
from gateway.balancing.semantics import semantics_of
from gateway.leases.desk import BATCH
from gateway.leases.driver import LeaseDriver
from gateway.leases.store import InMemoryLeaseStore, Key, Swap
from tests.leases.world import TENANT, UNIX, lease_driver

QUOTAS = 2 * BATCH + 1


class Counting(InMemoryLeaseStore):
    """Notes how many rows were put at once; `breaks_after` so many times it is away."""

    breaks_after = inf

    def __init__(self, world: Crowd) -> None:
        super().__init__(lambda: world.now + UNIX)
        self.put: list[int] = []

    async def swap(self, swaps: Sequence[Swap]) -> set[Key]:
        done = await super().swap(swaps)
        self.put.append(len(swaps))
        if len(self.put) >= self.breaks_after:
            self.broken = Unavailable("away")
        return done


class Crowd:
    """One process with `QUOTAS` quotas that it has just used."""

    def __init__(self) -> None:
        self.now = 0.0
        self.store = Counting(self)
        self.driver: LeaseDriver = lease_driver(self, "one")
        limits, semantics = Limits(rpm=600), semantics_of("simulated")
        self.ledgers = [Ledger(limits, semantics, 0.0, unix_offset_s=UNIX) for _ in range(QUOTAS)]
        for number, ledger in enumerate(self.ledgers):
            self.driver.desk.open(TENANT, f"quota {number}", "", ledger)
        self.use()

    def use(self) -> None:
        for ledger in self.ledgers:
            reservation = ledger.reserve(1.0, 1.0, self.now)
            ledger.settle(reservation, Outcome(kind=OutcomeKind.OK, status=200, total_s=0.01), self.now)


async def test_each_row_is_put_in_a_batch_of_its_turn() -> None:
    crowd = Crowd()
    await crowd.driver.exchange()
    assert crowd.store.put == [BATCH, BATCH, 1]
    assert len(crowd.store.rows) == QUOTAS
    assert not crowd.driver.is_waited_for


async def test_a_store_that_goes_away_in_between_is_asked_once_more_and_all_the_rest_lives_alone() -> None:
    crowd = Crowd()
    await crowd.driver.exchange()
    crowd.use()
    crowd.now, crowd.store.breaks_after = 1.0, 4
    await crowd.driver.exchange()
    assert crowd.driver.is_away
    assert crowd.driver.failures == 1
    # Nobody holds more than a lone share of what it was lent before.
    ready = [ledger.ready_at(1.0, 1.0, crowd.now) <= crowd.now for ledger in crowd.ledgers]
    assert all(ready)
    for _ in range(40):
        crowd.use()
    alone = [ledger.ready_at(1.0, 1.0, crowd.now) > crowd.now for ledger in crowd.ledgers]
    assert not any(alone[:BATCH])
    assert all(alone[BATCH:])
