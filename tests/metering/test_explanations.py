"""Stored explanations: one contract for both stores, and the bounds of what is buffered and kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from auth.storage import Connections
from gateway.metering.explanations import (
    MAX_PER_S,
    ExplanationRecorder,
    ExplanationStore,
    InMemoryExplanationStore,
    PostgresExplanationStore,
    StoredExplanation,
)

_TENANT = "insert into tenant (id, slug, name) values ($1, $2, 'x')"
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def explained(tenant_id: UUID, number: int = 1, *, at: datetime = AT, note: str = "x") -> StoredExplanation:
    pools = [{"pool": "main", "candidates": [{"key": note, "score": 0.5}], "tried": []}]
    return StoredExplanation(tenant_id=tenant_id, request_id=f"req_{number}", at=at, pools=pools)


@pytest.fixture
async def tenants(database: Connections) -> tuple[UUID, UUID]:
    """Return the ids of two tenants that exist."""
    a, b = uuid7(), uuid7()
    async with database.platform() as connection:
        for tenant_id in (a, b):
            await connection.execute(_TENANT, tenant_id, str(tenant_id))
    return a, b


@pytest.fixture(params=["memory", "postgres"])
def store(request: pytest.FixtureRequest) -> ExplanationStore:
    if request.param == "memory":
        return InMemoryExplanationStore()
    database: Connections = request.getfixturevalue("database")
    return PostgresExplanationStore(database)


async def test_what_is_written_is_read_back_by_its_tenant_only(
    store: ExplanationStore, tenants: tuple[UUID, UUID]
) -> None:
    a, b = tenants
    await store.write([explained(a), explained(b, note="theirs"), explained(a, 2)])
    await store.write([explained(a, note="again")])
    assert await store.read(a, "req_1") == explained(a)
    assert await store.read(b, "req_2") is None
    await store.write([])


async def test_what_is_old_goes(store: ExplanationStore, tenants: tuple[UUID, UUID]) -> None:
    tenant, _ = tenants
    await store.write([explained(tenant), explained(tenant, 2, at=AT + timedelta(days=2))])
    await store.purge(AT + timedelta(days=1))
    assert await store.read(tenant, "req_1") is None
    assert await store.read(tenant, "req_2") is not None


async def test_names_with_a_nul_are_stored_without_it(database: Connections, tenants: tuple[UUID, UUID]) -> None:
    tenant, _ = tenants
    store = PostgresExplanationStore(database)
    await store.write([explained(tenant, note="a\0b")])
    found = await store.read(tenant, "req_1")
    assert found is not None
    assert found.pools[0]["candidates"][0]["key"] == "ab"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_no_more_than_so_many_a_second_are_stored() -> None:
    clock, store = Clock(), InMemoryExplanationStore()
    recorder = ExplanationRecorder(store, clock)
    for number in range(100):
        recorder.record(explained(UUID(int=1), number))
    clock.now = 1.0
    recorder.record(explained(UUID(int=1), 100))
    await recorder.flush()
    assert recorder.stored == len(store.rows) == MAX_PER_S + 1
    assert recorder.dropped == 100 - MAX_PER_S


async def test_while_the_store_is_away_the_newest_are_kept() -> None:
    clock, store = Clock(), InMemoryExplanationStore()
    recorder = ExplanationRecorder(store, clock)
    store.broken = ConnectionError()
    for number in range(1_200):
        clock.now += 1.0
        recorder.record(explained(UUID(int=1), number))
        if number % 300 == 0:
            await recorder.flush()
    store.broken = None
    await recorder.close()
    assert recorder.stored == 1_000
    assert (UUID(int=1), "req_1199") in store.rows
    assert recorder.dropped == 200
