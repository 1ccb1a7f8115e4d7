"""The deny-list in memory and how it is read from Postgres by processes whose clocks differ."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import text

from auth.principal import Principal
from auth.revocation_store import purge_revocations, revoke_key
from auth.revocations import Revocation, Revocations, Traces, client_key, tenant_key
from tests.auth.conftest import World

TENANT = UUID(int=5)
NOW = 1_800_000_000.0


def traces(token_id: str = "j", *, issued_at: float = NOW, lineage: tuple[str, ...] = ()) -> Traces:
    return Traces.of(
        Principal(TENANT, "c", frozenset(), token_id, NOW + 99, issued_at=issued_at, lineage=lineage),
    )


def test_what_is_refused() -> None:
    for key in ("j", "ancestor", client_key("c"), client_key("maker"), tenant_key(TENANT)):
        revoked = Revocations()
        revoked.add([Revocation(key, NOW, NOW + 99)])
        assert revoked.refuses(traces(lineage=("maker:ancestor",))), key
    for key in ("other", client_key("j"), "c", tenant_key(UUID(int=6))):
        revoked = Revocations()
        revoked.add([Revocation(key, NOW, NOW + 99)])
        assert not revoked.refuses(traces(lineage=("maker:ancestor",))), key


def test_a_cut_off_spares_what_was_issued_later_and_is_never_taken_back() -> None:
    revoked = Revocations()
    revoked.add([Revocation(client_key("c"), NOW, NOW + 99), Revocation(client_key("c"), NOW - 50, NOW + 10)])
    assert revoked.refuses(traces(issued_at=NOW))
    assert not revoked.refuses(traces(issued_at=NOW + 1))
    revoked.purge(NOW + 20)
    assert revoked.refuses(traces(issued_at=NOW))
    revoked.purge(NOW + 99)
    assert len(revoked) == 0


async def test_a_process_whose_clock_runs_ahead_hides_no_revocation(world: World) -> None:
    tenant_id, reader = world.tenants["acme"], Revocations()
    until = datetime.fromtimestamp(NOW + 10**8, UTC)

    async def revoke(jti: str, at: float) -> None:
        async with world.sessions.tenant(tenant_id) as session:
            await revoke_key(session, tenant_id, jti, now=datetime.fromtimestamp(at, UTC), expires_at=until)

    await revoke("ahead", NOW + 10**6)
    await reader.refresh(world.database, now=NOW)
    await revoke("right", NOW)
    await revoke("behind", NOW - 10**6)
    await reader.refresh(world.database, now=NOW)
    for jti in ("ahead", "right", "behind"):
        assert reader.refuses(traces(jti)), jti


async def test_a_database_whose_clock_was_set_back_hides_no_revocation(world: World) -> None:
    tenant_id, reader = world.tenants["acme"], Revocations()
    now, until = datetime.fromtimestamp(NOW, UTC), datetime.fromtimestamp(NOW + 10**8, UTC)
    async with world.sessions.tenant(tenant_id) as session:
        await revoke_key(session, tenant_id, "before", now=now, expires_at=until)
        await session.execute(text("update token_revocation set recorded_at = recorded_at + interval '1 hour'"))
    await reader.refresh(world.database, now=NOW)
    async with world.sessions.tenant(tenant_id) as session:
        await revoke_key(session, tenant_id, "after", now=now, expires_at=until)
    await reader.refresh(world.database, now=NOW)
    assert reader.refuses(traces("after"))


async def test_expired_rows_are_purged(world: World) -> None:
    tenant_id = world.tenants["acme"]
    past = datetime.fromtimestamp(NOW - 10, UTC)
    async with world.sessions.tenant(tenant_id) as session:
        await revoke_key(session, tenant_id, "long gone", now=past, expires_at=past)
        assert await purge_revocations(session, now=datetime.fromtimestamp(NOW, UTC)) == 1
