"""The audit chain shows what was edited, removed or put in."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
import pytest
from sqlmodel import col, select

from auth.storage import Sessions
from tenants import audit
from tenants.api.audit_trail import export_lines
from tenants.audit import Actor, ChainBreak, chain_hash, verify_chain
from tenants.models import AuditEvent
from tests.conftest import TestDatabase
from tests.tenants.conftest import Plant

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
ACTOR = Actor("client-1", "203.0.113.9", "req-1")
WAITING = (
    "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'"
)


@pytest.fixture
async def tenant(plant: Plant) -> UUID:
    return (await plant("acme")).tenant_id


async def append(sessions: Sessions, tenant_id: UUID, action: str) -> None:
    async with sessions.tenant(tenant_id) as session:
        await audit.record(
            session, tenant_id, ACTOR, action, "key:1", at=AT, detail={"n": 1, "f": 0.5, "s": "é", "l": []}
        )


async def chain(sessions: Sessions, tenant_id: UUID) -> list[AuditEvent]:
    async with sessions.tenant(tenant_id) as session:
        query = select(AuditEvent).where(col(AuditEvent.tenant_id) == tenant_id).order_by(col(AuditEvent.seq))
        return list((await session.execute(query)).scalars())


async def test_events_chain_also_when_written_at_once(sessions: Sessions, tenant: UUID) -> None:
    await asyncio.gather(*(append(sessions, tenant, f"key.change{i}") for i in range(8)))
    events = await chain(sessions, tenant)
    assert verify_chain(events) == 8
    assert {event.action for event in events} == {f"key.change{i}" for i in range(8)}


async def test_a_failed_change_leaves_no_event(sessions: Sessions, tenant: UUID) -> None:
    async def fail() -> None:
        async with sessions.tenant(tenant) as session:
            await audit.record(session, tenant, ACTOR, "key.create", "key:1", at=AT)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert verify_chain(await chain(sessions, tenant)) == 0


async def test_no_transaction_waits_for_whoever_takes_an_export(
    sessions: Sessions, tenant: UUID, test_database: TestDatabase
) -> None:
    """The server ends one that is idle for a minute: who reads slowly would never get the end."""
    for i in range(5):
        await append(sessions, tenant, f"key.change{i}")
    owner = await asyncpg.connect(test_database.owner_url)
    lines: list[bytes] = []
    try:
        async for line in export_lines(sessions, tenant, batch=2):
            lines.append(line)
            assert await owner.fetchval(WAITING) == 0
    finally:
        await owner.close()
    events = await chain(sessions, tenant)
    assert [json.loads(line).get("seq") for line in lines] == [1, 2, 3, 4, 5, None]
    assert json.loads(lines[-1])["head"]["hash"] == events[-1].hash.hex()


def make(seq: int, previous: bytes, action: str = "key.create") -> AuditEvent:
    event = AuditEvent(
        tenant_id=UUID(int=1),
        seq=seq,
        at=AT,
        actor="c",
        action=action,
        subject="key:1",
        detail={},
        previous_hash=previous,
        hash=b"",
    )
    event.hash = chain_hash(event)
    return event


def three() -> list[AuditEvent]:
    events: list[AuditEvent] = []
    for seq in (1, 2, 3):
        events.append(make(seq, events[-1].hash if events else audit.GENESIS))
    return events


def test_an_edit_shows() -> None:
    for field, value in (("actor", "x"), ("action", "x"), ("subject", "x"), ("detail", {"a": 1}), ("address", "x")):
        events = three()
        setattr(events[1], field, value)
        assert verify_chain(events) == ChainBreak(2, "its content does not match its hash"), field


def test_a_removed_event_shows() -> None:
    events = three()
    assert verify_chain([events[0], events[2]]) == ChainBreak(2, "event 2 is missing: the next one is 3")


def test_a_rewritten_event_with_a_right_hash_of_its_own_shows_at_the_next_one() -> None:
    events = three()
    events[1] = make(2, events[0].hash, "key.delete")
    assert verify_chain(events) == ChainBreak(3, "it does not follow the event before it")
