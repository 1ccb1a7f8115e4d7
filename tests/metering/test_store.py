"""One contract for every usage store: the in-memory twin and Postgres."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import asyncpg
import pytest

from auth.storage import Connections
from gateway.metering.event import UsageEvent
from gateway.metering.recorder import UsageRecorder
from gateway.metering.store import InMemoryUsageStore, PostgresUsageStore, RowsRefused, UsageStore
from tests.metering.rows import TENANT, usage_row

Stored = Callable[[], Awaitable[list[UsageEvent]]]


@pytest.fixture(params=["memory", "postgres"])
def store_and_rows(request: pytest.FixtureRequest) -> tuple[UsageStore, Stored]:
    if request.param == "memory":
        memory = InMemoryUsageStore()

        async def kept() -> list[UsageEvent]:
            return list(memory.rows.values())

        return memory, kept
    connections: Connections = request.getfixturevalue("database")

    async def selected() -> list[UsageEvent]:
        async with connections.platform() as connection:
            return [UsageEvent(**row) for row in await connection.fetch("select * from usage_event order by id")]

    return PostgresUsageStore(connections), selected


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


async def test_a_tenant_sees_its_own_rows_alone(database: Connections) -> None:
    other = usage_row().pool_id
    assert other is not None
    await PostgresUsageStore(database).write([usage_row(), usage_row(tenant_id=other)])
    async with database.tenant(TENANT) as connection:
        assert [row["tenant_id"] for row in await connection.fetch("select tenant_id from usage_event")] == [TENANT]
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.tenant(TENANT) as connection:
            await connection.execute(
                "insert into usage_event select (jsonb_populate_record(u, "
                "jsonb_build_object('tenant_id', $1::uuid))).* from usage_event u limit 1",
                other,
            )
