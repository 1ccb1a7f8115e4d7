"""One contract over both lease stores; and what only Postgres has: fences, races, a table that a crash empties."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from random import Random
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.balancing.ledger import Ledger
from gateway.balancing.quota import Limits
from gateway.balancing.semantics import SEMANTICS
from gateway.database import Postgres
from gateway.leases.driver import LeaseDriver
from gateway.leases.postgres_store import PostgresLeaseStore
from gateway.leases.store import InMemoryLeaseStore, LeaseStore, Stored, Swap
from tests.conftest import TestDatabase

A, B = (UUID(int=1), "a"), (UUID(int=2), "b")


@pytest.fixture(params=["memory", "postgres"])
async def store(request: pytest.FixtureRequest, test_database: TestDatabase) -> AsyncIterator[LeaseStore]:
    if request.param == "memory":
        yield InMemoryLeaseStore(time.time)
        return
    postgres = Postgres(test_database.url, max_size=4)
    store = PostgresLeaseStore(postgres)
    yield store
    await store.close()
    await postgres.close()


async def test_there_is_nothing_at_first_but_the_time(store: LeaseStore) -> None:
    clock, found = await store.read([A, B])
    assert found == {}
    assert abs(clock - time.time()) < 5.0


async def test_a_row_is_read_as_it_was_put(store: LeaseStore) -> None:
    assert await store.swap([Swap(A, 0, 1, b"one"), Swap(B, 0, 7, b"seven")]) == {A, B}
    assert (await store.read([A, B]))[1] == {A: Stored(1, b"one"), B: Stored(7, b"seven")}
    assert (await store.read([B]))[1] == {B: Stored(7, b"seven")}


async def test_only_who_knew_the_row_as_it_stood_may_put_it_back(store: LeaseStore) -> None:
    await store.swap([Swap(A, 0, 1, b"one")])
    assert await store.swap([Swap(A, 1, 2, b"two"), Swap(B, 3, 4, b"never was")]) == {A}
    assert await store.swap([Swap(A, 1, 2, b"too late")]) == set()
    assert await store.swap([Swap(A, 0, 1, b"thought there was none")]) == set()
    assert (await store.read([A, B]))[1] == {A: Stored(2, b"two")}


async def test_of_many_at_once_one_wins(store: LeaseStore) -> None:
    await store.swap([Swap(A, 0, 1, b"")])
    done = await asyncio.gather(
        *(store.swap([Swap(A, 1, 2, b"%d" % n), Swap((A[0], str(n)), 0, 1, b"")]) for n in range(4))
    )
    assert sum(A in each for each in done) == 1
    assert all(len(each - {A}) == 1 for each in done)


async def test_batches_over_the_same_rows_never_wait_for_each_other_for_ever(test_database: TestDatabase) -> None:
    postgres = Postgres(test_database.url, max_size=4)
    store = PostgresLeaseStore(postgres)
    keys = [(UUID(int=1), str(n)) for n in range(50)]
    await store.swap([Swap(key, 0, 1, b"") for key in keys])

    async def work(seed: int) -> int:
        store = PostgresLeaseStore(postgres)
        rng, won = Random(seed), 0
        for _ in range(10):
            _, found = await store.read(keys)
            order = rng.sample(keys, len(keys))
            won += len(await store.swap([Swap(key, found[key].version, found[key].version + 1, b"") for key in order]))
        await store.close()
        return won

    won = sum(await asyncio.gather(*(work(seed) for seed in range(4))))
    _, found = await store.read(keys)
    assert sum(row.version - 1 for row in found.values()) == won > 0
    await store.close()
    await postgres.close()


async def test_a_tenant_sees_its_own_rows_alone(test_database: TestDatabase, database: Postgres) -> None:
    store = PostgresLeaseStore(database)
    await store.swap([Swap(A, 0, 1, b"one"), Swap(B, 0, 1, b"two")])
    await store.close()
    async with database.tenant(A[0]) as connection:
        assert [row["quota_id"] for row in await connection.fetch("select quota_id from quota_lease")] == ["a"]


async def test_processes_divide_a_quota_over_a_real_postgres(test_database: TestDatabase) -> None:
    pools = [Postgres(test_database.url, max_size=2) for _ in range(4)]
    tenant = uuid4()
    drivers, ledgers = [], []
    for number, postgres in enumerate(pools):
        driver = LeaseDriver(
            PostgresLeaseStore(postgres),
            lessee=f"process {number}",
            clock=time.monotonic,
            unix_offset_s=time.time() - time.monotonic(),
            rng=Random(number),
            on_granted=lambda _: None,
        )
        ledger = Ledger(Limits(rpm=600), SEMANTICS["simulated"], time.monotonic())
        driver.desk.open(tenant, "q", "", ledger)
        drivers.append(driver)
        ledgers.append(ledger)
    sent = 0
    for _ in range(15):
        for ledger in ledgers:
            now = time.monotonic()
            while ledger.ready_at(10.0, 10.0, now) <= now:
                ledger.reserve(10.0, 10.0, now)
                sent += 1
        # All at once: they meet on the row, and some have to try again.
        await asyncio.gather(*(driver.exchange() for driver in drivers))
    assert 590 <= sent <= 600 + 10 * 60
    assert all(driver.failures == 0 for driver in drivers)
    store = PostgresLeaseStore(pools[0])
    _, rows = await store.read([(tenant, "q")])
    assert rows[tenant, "q"].version > 40
    await store.close()
    await asyncio.gather(*(driver.close() for driver in drivers))
    await asyncio.gather(*(postgres.close() for postgres in pools))


async def test_who_gives_up_waiting_leaves_the_connection_usable(test_database: TestDatabase) -> None:
    postgres = Postgres(test_database.url)
    store = PostgresLeaseStore(postgres)
    await store.swap([Swap(A, 0, 1, b"one")])
    blocker = await asyncpg.connect(test_database.owner_url)
    lock = blocker.transaction()
    await lock.start()
    await blocker.execute("lock table quota_lease in access exclusive mode")
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await store.swap([Swap(A, 1, 2, b"two")])
    connections = await blocker.fetchval(
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    )
    await lock.rollback()
    assert (await store.read([A]))[1][A] == Stored(2, b"two")
    assert connections == 1
    await blocker.close()
    await store.close()
    await postgres.close()
