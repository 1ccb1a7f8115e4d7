"""What processes share about single keys: caps on requests in flight, how busy a key is, and whether it is well."""

from __future__ import annotations

from random import Random
from uuid import UUID

import msgspec
import pytest

from gateway.balancing.balancer import Balancer
from gateway.balancing.book import QuotaBook
from gateway.balancing.decision import Ask, Lease, Picked
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.families import MAX_FAMILIES
from gateway.balancing.outcome import Outcome, OutcomeKind
from gateway.balancing.quota import Limits, Quota
from gateway.balancing.strategies.least_connections import LeastConnections
from gateway.leases.driver import LeaseDriver
from gateway.leases.row import MAX_ACCOUNTS, Row, exchange
from gateway.leases.store import InMemoryLeaseStore
from tests.leases.world import STEP_S, lease_driver

TENANT = UUID(int=1)


class Fleet:
    """Processes with a pool each, over the same keys."""

    def __init__(
        self,
        processes: int,
        *,
        max_in_flight: int | None = None,
        concurrency: int | None = None,
        families: dict[str, Limits] | None = None,
        provider: str = "generic",
    ) -> None:
        self.now = 1000.0
        self.store = InMemoryLeaseStore(lambda: self.now + 1e9)
        endpoints = [Endpoint(name, f"quota {name}", provider, max_in_flight=max_in_flight) for name in "ab"]
        common = Limits(rpm=600, concurrency=concurrency)
        quotas = [Quota(f"quota {name}", common, families=families or {}) for name in "ab"]
        self.drivers: list[LeaseDriver] = []
        self.pools: list[Balancer] = []
        for number in range(processes):
            driver = lease_driver(self, str(number), unix_offset_s=1e9)
            book = QuotaBook(driver.desk.of(TENANT))
            self.drivers.append(driver)
            self.pools.append(
                Balancer(endpoints, quotas, LeastConnections(), rng=Random(number), now=self.now, book=book)
            )

    async def second(self) -> None:
        self.now += 1.0
        await self.exchange()

    async def exchange(self) -> None:
        for driver in self.drivers:
            await driver.exchange()

    async def run(self, seconds: float) -> None:
        """Let time pass in which each process exchanges early when there is reason to; no period ends."""
        ends = self.now + seconds
        while self.now < ends:
            self.now += STEP_S
            for driver in self.drivers:
                if driver.is_waited_for:
                    await driver.exchange(everything=False)

    def send(self, process: int, *, key: str | None = None, model: str = "m") -> Lease | None:
        excluded = frozenset("ab") - {key} if key else frozenset[str]()
        decision = self.pools[process].acquire(Ask(model, dialect="openai", excluded=excluded), now=self.now)
        return decision.lease if isinstance(decision, Picked) else None

    def end(self, process: int, lease: Lease, kind: OutcomeKind = OutcomeKind.OK) -> None:
        self.pools[process].observe(lease, Outcome(kind=kind, status=200), now=self.now)

    def breaker(self, process: int, key: str) -> str:
        return next(each.breaker for each in self.pools[process].view(self.now).endpoints if each.id == key)


async def fill(fleet: Fleet, seconds: int, *, key: str | None = "a", model: str = "m") -> int:
    """Let every process send all it may each second, and end nothing; give how many are in flight."""
    sent = 0
    for _ in range(seconds):
        for process in range(len(fleet.pools)):
            for _ in range(2):
                while fleet.send(process, key=key, model=model) is not None:
                    sent += 1
                await fleet.exchange()
        await fleet.second()
    return sent


async def test_a_keys_cap_on_requests_in_flight_holds_over_all_processes() -> None:
    fleet = Fleet(4, max_in_flight=10)
    assert await fill(fleet, 12) == 10


@pytest.mark.parametrize(("caps", "expected"), [({}, (None, None)), ({"max_in_flight": 2, "concurrency": 3}, (2, 3))])
async def test_a_cap_that_is_changed_while_the_store_answers_holds_as_changed(
    caps: dict[str, int], expected: tuple[int | None, int | None]
) -> None:
    fleet = Fleet(1, max_in_flight=64, concurrency=64)
    pool, key_cap, quota_cap = fleet.pools[0], caps.get("max_in_flight"), caps.get("concurrency")
    lease = fleet.send(0, key="a")
    assert lease is not None
    reports = fleet.drivers[0].desk.collect(fleet.now, everything=True)
    pool.reconfigure(
        [Endpoint(name, f"quota {name}", "generic", max_in_flight=key_cap) for name in "ab"],
        [Quota(f"quota {name}", Limits(rpm=600, concurrency=quota_cap)) for name in "ab"],
        LeastConnections(),
    )
    for key, report in reports.items():
        answer = exchange(Row(), report, fleet.now + 1e9)
        fleet.drivers[0].desk.granted(key, answer, sent_at=fleet.now, now=fleet.now, retry_at=fleet.now + 1.0)
    state = next(each for each in pool.endpoint_states() if each.endpoint.id == "a")
    assert (state.slots, state.quota.slots) == expected


async def test_a_quotas_concurrency_holds_over_all_processes() -> None:
    fleet = Fleet(4, concurrency=12)
    assert await fill(fleet, 12) == 12


async def test_a_model_familys_concurrency_holds_over_all_processes() -> None:
    fleet = Fleet(4, concurrency=40, families={"big*": Limits(concurrency=9)})
    assert await fill(fleet, 12, model="big-1") == 9
    assert await fill(fleet, 12, model="small") == 31


async def test_what_is_held_for_a_forgotten_family_goes_back() -> None:
    fleet = Fleet(2, families={"big": Limits(concurrency=16), "other": Limits(concurrency=3)})
    for process in (0, 1):
        for model in ("big", "other"):
            lease = fleet.send(process, key="a", model=model)
            assert lease is not None or model == "other"
            if lease is not None:
                fleet.end(process, lease)
    await fleet.second()
    book = fleet.pools[0]._book
    state = book.state("quota a")
    assert state is not None
    book.drop(state, ["big"])
    for _ in range(3):
        fleet.send(0, key="a", model="another")
        await fleet.second()
    row = next(iter(fleet.store.rows.values()))
    held = msgspec.json.decode(row.state, type=Row).lessees["0"].holdings
    assert "big|concurrency" not in held
    assert await fill(fleet, 12, model="big") == 16


async def test_models_that_callers_make_up_take_no_room_for_long() -> None:
    """On a quota that is never idle: neither here nor in the row that all processes share."""
    fleet = Fleet(2, provider="openai")
    await fleet.second()
    running = fleet.send(0, key="a", model="gpt-4o")
    assert running is not None
    number = 0
    for _ in range(20):
        for _ in range(100):
            number += 1
            lease = fleet.send(0, key="a", model=f"made up {number}x")
            if lease is not None:
                fleet.end(0, lease, OutcomeKind.CLIENT_ERROR)
        await fleet.second()
    key = next(key for key in fleet.store.rows if key[1] == "quota a")
    row = msgspec.json.decode(fleet.store.rows[key].state, type=Row)
    assert len(fleet.drivers[0].desk._active[key]) <= MAX_FAMILIES + 100
    assert len(row.accounts) <= MAX_ACCOUNTS + 100
    assert "gpt-4o|rpm" in row.accounts
    fleet.end(0, running)


async def test_slots_follow_those_who_need_them() -> None:
    fleet = Fleet(2, max_in_flight=40)
    busy = []
    for _ in range(8):
        while (lease := fleet.send(0, key="a")) is not None:
            busy.append(lease)
        await fleet.second()
    assert len(busy) >= 36
    for lease in busy:
        fleet.end(0, lease)
    for _ in range(8):
        while fleet.send(1, key="a") is not None:
            pass
        await fleet.second()
    assert fleet.pools[1].in_flight >= 36


async def test_least_connections_counts_what_other_processes_have_in_flight() -> None:
    fleet = Fleet(2)
    for _ in range(5):
        assert fleet.send(0, key="a") is not None
    assert fleet.send(1, key="a") is not None
    assert fleet.send(1, key="b") is not None
    await fleet.second()
    await fleet.second()
    chosen = [lease.endpoint.id for _ in range(4) if (lease := fleet.send(1)) is not None]
    assert chosen == ["b"] * 4


async def test_a_breaker_that_opens_in_one_process_is_open_in_all_within_a_second() -> None:
    fleet = Fleet(2)
    for process in (0, 1):
        lease = fleet.send(process, key="a")
        assert lease is not None
        fleet.end(process, lease)
    await fleet.second()
    for _ in range(3):
        lease = fleet.send(0, key="a")
        assert lease is not None
        fleet.end(0, lease, OutcomeKind.SERVER_ERROR)
    assert (fleet.breaker(0, "a"), fleet.breaker(1, "a")) == ("open", "closed")
    await fleet.run(0.6)
    assert fleet.breaker(1, "a") == "open"
    fleet.pools[0].revive("a")
    await fleet.run(1.0)
    assert fleet.breaker(1, "a") == "closed"


async def test_a_rejected_key_is_out_in_all_processes() -> None:
    fleet = Fleet(2)
    for process in (0, 1):
        lease = fleet.send(process, key="a")
        assert lease is not None
        fleet.end(process, lease, OutcomeKind.OK if process else OutcomeKind.AUTH_REJECTED)
    await fleet.second()
    assert fleet.breaker(1, "a") == "ejected"


async def test_what_is_idle_is_returned_with_its_slots() -> None:
    fleet = Fleet(2, max_in_flight=8)
    assert fleet.send(0, key="a") is None  # so small a cap is not divided on credit: an exchange comes first
    await fleet.exchange()
    lease = fleet.send(0, key="a")
    assert lease is not None
    fleet.end(0, lease)
    for _ in range(12):
        await fleet.second()
    assert len(fleet.drivers[0].desk) == 0
    for _ in range(6):
        while fleet.send(1, key="a") is not None:
            pass
        await fleet.second()
    assert fleet.pools[1].in_flight == 8
