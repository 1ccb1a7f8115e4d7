"""Deleting a tenant makes its ciphertexts unreadable, in backups of the database too; others are restored from them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import pytest
from sqlmodel import select

from auth.storage import Connections, Sessions
from gateway.control.orm import OrmSessions
from gateway.database import Postgres
from gateway.embedded.binaries import find_binaries
from tenants.datakeys import DataKeys
from tenants.errors import KekDisabled, KekUnavailable, SealBroken, TenantShredded
from tenants.kek_uses import KekUse, kek_uses
from tenants.keyring import LocalKeyring, Wrapped
from tenants.models import AuditEvent
from tenants.rewrap import Progress, new_data_key, rewrap_data_keys
from tenants.shares.files import FileShares
from tenants.shares.layer import PREFIX, ShareLayer, wrap_context
from tenants.shares.protocol import InMemoryShares, ShareMissing
from tenants.shredding import shred_noted, shreddings
from tenants.snapshot import SnapshotLoader
from tenants.store import tenants as tenants_store
from tenants.verification import verify_everything
from tests.conftest import TestDatabase
from tests.tenants.conftest import KEK, Clock, Plant
from tests.tenants.test_rewrap import last

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def shares(tmp_path: Path) -> FileShares:
    return FileShares(tmp_path / "shares", create=True)


@pytest.fixture
def data_keys(database: Connections, keyring: LocalKeyring, shares: FileShares, clock: Clock) -> DataKeys:
    return DataKeys(database, ShareLayer(keyring, shares), clock=clock)


async def delete(sessions: Sessions, tenant_id: UUID) -> None:
    async with sessions.platform() as session:
        tenant = await tenants_store.get(session, tenant_id, for_change=True)
        await tenants_store.remove(session, tenant, at=AT)


async def shred(sessions: Sessions, shares: FileShares | InMemoryShares) -> Progress:
    return await last(shred_noted(sessions, shares, lambda: AT))


def run(program: str, *arguments: str, url: str) -> bytes:
    parts = urlsplit(url)
    environment = {
        **os.environ,
        "PGHOST": str(parts.hostname),
        "PGPORT": str(parts.port),
        "PGUSER": str(parts.username),
        "PGPASSWORD": str(parts.password),
        "PGDATABASE": parts.path.removeprefix("/"),
    }
    return subprocess.run(
        [str(find_binaries().directory / program), *arguments], env=environment, check=True, capture_output=True
    ).stdout


@pytest.fixture
async def beside(test_database: TestDatabase) -> AsyncIterator[TestDatabase]:
    """Another empty database on the same server."""
    name = f"{test_database.name}_restored"
    owner = await asyncpg.connect(test_database.owner_url)
    await owner.execute(f"create database {name}")
    old = f"/{test_database.name}"
    yield TestDatabase(
        name, test_database.url.replace(old, f"/{name}"), test_database.owner_url.replace(old, f"/{name}")
    )
    await owner.execute(f"drop database {name} with (force)")
    await owner.close()


async def test_a_backup_opens_for_every_tenant_but_the_shredded_one(
    *,
    database: Connections,
    sessions: Sessions,
    test_database: TestDatabase,
    beside: TestDatabase,
    data_keys: DataKeys,
    shares: FileShares,
    plant: Plant,
    tmp_path: Path,
) -> None:
    """Dump, delete, restore the dump beside it, with the same KEK: what an attacker with an old backup has."""
    gone, kept = await plant("gone"), await plant("kept")
    dump = tmp_path / "backup.dump"
    run("pg_dump", "--format=custom", f"--file={dump}", url=test_database.owner_url)
    await delete(sessions, gone.tenant_id)
    assert (await shred(sessions, shares)).done == 1
    run("pg_restore", "--dbname", beside.name, str(dump), url=beside.owner_url)

    restored = Postgres(beside.url, max_size=2)
    keys = DataKeys(restored, ShareLayer(LocalKeyring([KEK]), shares))
    try:
        loader = SnapshotLoader(restored, keys)
        back = await loader.load(kept.tenant_id)
        assert back is not None
        assert back.pools[0].keys[0].secret == kept.secret
        lost = await loader.load(gone.tenant_id)
        assert lost is not None, "its rows are back"
        assert (lost.pools[0].keys, lost.unopened) == ((), (gone.key_id,)), "and its secret is not"
        async with restored.platform() as connection:
            row = await connection.fetchrow(
                "select id, kek_uri, wrapped from data_key where tenant_id = $1", gone.tenant_id
            )
        assert row is not None
        context, uri = wrap_context(gone.tenant_id, row["id"]), row["kek_uri"].removeprefix(PREFIX)
        with pytest.raises(SealBroken):
            await LocalKeyring([KEK]).unwrap(context, Wrapped(uri, bytes(row["wrapped"])))
        with pytest.raises(TenantShredded):
            await keys.seal(gone.tenant_id, ("x",), b"nothing new is sealed for it either")

        checked = await last(verify_everything(restored, keys))
        assert (checked.done, checked.total, checked.failed) == (2, 2, {})
        assert list(checked.shredded) == [str(gone.tenant_id)]
        [told] = await shreddings(restored, shares)
        assert (told.tenant_id, told.slug, told.done_at, told.back) == (gone.tenant_id, "gone", AT, True)
        rewrapped = await last(rewrap_data_keys(restored, ShareLayer(LocalKeyring([bytes(range(1, 33)), KEK]), shares)))
        assert (rewrapped.done, rewrapped.failed, list(rewrapped.shredded)) == (1, {}, [str(gone.tenant_id)])

        again = OrmSessions(beside.url, pool_size=1)
        await delete(again, gone.tenant_id)
        await shred(again, shares)
        await again.aclose()
        [told] = await shreddings(restored, shares)
        assert (told.done_at, told.back, told.covers_backups) == (AT, False, True)
    finally:
        await restored.close()


async def test_a_deletion_that_is_rolled_back_shreds_nothing(
    sessions: Sessions, data_keys: DataKeys, shares: FileShares, plant: Plant
) -> None:
    planted = await plant("acme")

    async def fail() -> None:
        async with sessions.platform() as session:
            tenant = await tenants_store.get(session, planted.tenant_id, for_change=True)
            await tenants_store.remove(session, tenant, at=AT)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert (await shred(sessions, shares)).total == 0
    assert await shares.get(planted.tenant_id)


class AwayShares(InMemoryShares):
    """A store that does not answer."""

    async def destroy(self, tenant_id: UUID, *, at: datetime) -> None:
        raise KekUnavailable("The store does not answer.")


async def test_a_store_that_is_away_is_tried_again_and_two_at_once_leave_one_event(
    sessions: Sessions, database: Connections, data_keys: DataKeys, shares: FileShares, plant: Plant
) -> None:
    planted = await plant("acme")
    await delete(sessions, planted.tenant_id)
    failed = await shred(sessions, AwayShares())
    assert list(failed.failed) == [str(planted.tenant_id)]
    [told] = await shreddings(database, shares)
    assert (told.done_at, told.covers_backups, told.error) == (None, False, "The store does not answer.")
    first, second = shred_noted(sessions, shares, lambda: AT), shred_noted(sessions, shares, lambda: AT)
    async for _ in first:
        async for _ in second:
            pass
    async with database.platform() as connection:
        assert await connection.fetchval("select count(*) from audit_event where action = 'tenant.shred'") == 1
    assert (await shred(sessions, shares)).total == 0
    [told] = await shreddings(database, shares)
    assert (told.done_at, told.covers_backups, told.error) == (AT, True, None)


async def test_a_done_that_only_the_database_claims_is_not_believed(
    sessions: Sessions, database: Connections, data_keys: DataKeys, shares: FileShares, plant: Plant
) -> None:
    planted = await plant("acme")
    await delete(sessions, planted.tenant_id)
    async with database.platform() as connection:
        await connection.execute("update tenant_shredding set done_at = now()")
    [told] = await shreddings(database, shares)
    assert told.done_at is None


async def test_shares_are_introduced_by_a_rewrap(
    *, database: Connections, keyring: LocalKeyring, shares: FileShares, plant: Plant, data_keys: DataKeys, clock: Clock
) -> None:
    before = DataKeys(database, ShareLayer(keyring, None), clock=clock)
    planted = await plant("acme")
    async with database.platform() as connection:
        await connection.execute("delete from key_version")
        await connection.execute("delete from data_key")
    data_keys.forget()
    sealed = await before.seal(planted.tenant_id, ("x",), b"secret")
    assert await kek_uses(database) == [KekUse(keyring.uri, "wraps", 1)]
    layer = ShareLayer(keyring, shares)
    assert (await last(rewrap_data_keys(database, layer))).done == 1
    assert await kek_uses(database) == [KekUse(layer.uri, "wraps", 1)]
    assert await data_keys.open(planted.tenant_id, sealed.data_key_id, ("x",), sealed.blob) == b"secret"
    with pytest.raises(KekDisabled):
        await DataKeys(database, ShareLayer(keyring, None)).open(
            planted.tenant_id, sealed.data_key_id, ("x",), sealed.blob
        )


async def test_the_wrong_store_stops_new_data_keys_instead_of_giving_a_second_share(
    *, database: Connections, keyring: LocalKeyring, data_keys: DataKeys, plant: Plant, tmp_path: Path, clock: Clock
) -> None:
    """An empty volume mounted by mistake: nothing is made in the wrong place."""
    planted = await plant("acme")
    wrong = FileShares(tmp_path / "wrong", create=True)
    with pytest.raises(ShareMissing):
        await new_data_key(database, ShareLayer(keyring, wrong), planted.tenant_id)
    with pytest.raises(ShareMissing):
        await DataKeys(database, ShareLayer(keyring, wrong), clock=clock).seal(planted.tenant_id, ("x",), b"x")
    assert list((tmp_path / "wrong").iterdir()) == []
    await new_data_key(database, data_keys.wrapper, planted.tenant_id)


async def test_deleting_is_in_the_platforms_audit_chain(
    sessions: Sessions, database: Connections, data_keys: DataKeys, shares: FileShares, plant: Plant
) -> None:
    planted = await plant("acme")
    await delete(sessions, planted.tenant_id)
    await shred(sessions, shares)
    async with sessions.platform() as session:
        [event] = (await session.execute(select(AuditEvent))).scalars().all()
    assert (event.action, event.subject, event.detail) == (
        "tenant.shred",
        f"tenant:{planted.tenant_id}",
        {"slug": "acme"},
    )
