"""One contract for every usage store: the in-memory twin and Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial

import asyncpg
import pytest

from gateway.database import DatabaseAway, Postgres
from gateway.metering.event import UsageEvent
from gateway.metering.recorder import UsageRecorder
from gateway.metering.store import InMemoryUsageStore, PostgresUsageStore, RowsRefused, UsageStore
from tests.conftest import TestDatabase
from tests.metering.rows import TENANT, usage_row

Stored = Callable[[], Awaitable[list[UsageEvent]]]


async def all_rows(database: Postgres) -> list[UsageEvent]:
    async with database.platform() as connection:
        rows = await connection.fetch("select * from usage_event order by id")
        return [UsageEvent(**{**row, "id": row["id"].hex}) for row in rows]


@pytest.fixture
async def in_postgres(database: Postgres) -> AsyncIterator[PostgresUsageStore]:
    store = PostgresUsageStore(database)
    yield store
    await store.close()


@pytest.fixture(params=["memory", "postgres"])
def store_and_rows(
    request: pytest.FixtureRequest, database: Postgres, in_postgres: PostgresUsageStore
) -> tuple[UsageStore, Stored]:
    if request.param == "memory":
        memory = InMemoryUsageStore()

        async def kept() -> list[UsageEvent]:
            return list(memory.rows.values())

        return memory, kept
    return in_postgres, partial(all_rows, database)


async def test_a_batch_is_kept_as_it_is(store_and_rows: tuple[UsageStore, Stored]) -> None:
    store, stored = store_and_rows
    rows = [
        usage_row(),
        usage_row(pool_id=None, key_id=None, key_version=None, provider=None, served_model=None, cost_usd_nanos=None),
        usage_row(at=datetime(2031, 1, 1, tzinfo=UTC), first_byte_ms=None, status=499, outcome="abandoned"),
    ]
    await store.write(rows)
    assert await stored() == rows


async def test_writing_twice_keeps_once(store_and_rows: tuple[UsageStore, Stored]) -> None:
    store, stored = store_and_rows
    row = usage_row()
    await store.write([row])
    await store.write([row, usage_row()])
    assert len(await stored()) == 2


async def test_an_empty_batch_is_fine(store_and_rows: tuple[UsageStore, Stored]) -> None:
    store, stored = store_and_rows
    await store.write([])
    assert await stored() == []


async def test_a_row_that_cannot_be_stored_refuses_its_batch_whole(store_and_rows: tuple[UsageStore, Stored]) -> None:
    store, stored = store_and_rows
    with pytest.raises(RowsRefused):
        await store.write([usage_row(), usage_row(model="a\0b")])
    assert await stored() == []
    recorder = UsageRecorder(store)
    for row in (usage_row(), usage_row(model="a\0b"), usage_row()):
        recorder.record(row)
    await recorder.flush()
    assert (len(await stored()), recorder.refused) == (2, 1)


async def test_a_day_that_was_purged_since_gets_its_partition_again(
    database: Postgres, in_postgres: PostgresUsageStore, test_database: TestDatabase
) -> None:
    row, later = usage_row(), usage_row()
    await in_postgres.write([row])
    owner = await asyncpg.connect(test_database.owner_url)
    await owner.execute(f"drop table usage_event_{row.at:%Y%m%d}")
    await owner.close()
    await in_postgres.write([later])
    assert await all_rows(database) == [later]


async def test_a_connection_that_was_cut_costs_one_attempt(
    database: Postgres, in_postgres: PostgresUsageStore, test_database: TestDatabase
) -> None:
    first, second = usage_row(), usage_row()
    await in_postgres.write([first])
    owner = await asyncpg.connect(test_database.owner_url)
    await owner.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid != $1",
        owner.get_server_pid(),
    )
    await owner.close()
    try:
        await in_postgres.write([second])
    except DatabaseAway:  # unless the end of the connection was heard before
        await in_postgres.write([second])
    assert await all_rows(database) == [first, second]


async def test_who_gives_up_in_the_middle_leaves_no_connection_that_answers_out_of_turn(
    database: Postgres, in_postgres: PostgresUsageStore, test_database: TestDatabase
) -> None:
    first, second = usage_row(), usage_row()
    await in_postgres.write([first])
    owner = await asyncpg.connect(test_database.owner_url)
    async with owner.transaction():
        await owner.execute("lock table usage_event")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await in_postgres.write([second])
    await owner.close()
    await in_postgres.write([second])
    assert await all_rows(database) == [first, second]


async def test_a_tenant_sees_its_own_rows_alone(database: Postgres, in_postgres: PostgresUsageStore) -> None:
    other = usage_row().pool_id
    assert other is not None
    await in_postgres.write([usage_row(), usage_row(tenant_id=other)])
    async with database.tenant(TENANT) as connection:
        assert [row["tenant_id"] for row in await connection.fetch("select tenant_id from usage_event")] == [TENANT]
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.tenant(TENANT) as connection:
            await connection.execute(
                "insert into usage_event select (jsonb_populate_record(u, "
                "jsonb_build_object('tenant_id', $1::uuid))).* from usage_event u limit 1",
                other,
            )
