"""Snapshots: all that a data path needs of a tenant, and nothing that cannot be trusted."""

from __future__ import annotations

import logging

import pytest
from uuid_utils.compat import uuid7

from auth.principal import PLATFORM_TENANT_ID
from auth.storage import Connections
from tenants.datakeys import DataKeys
from tenants.keyring import LocalKeyring
from tenants.snapshot import SnapshotLoader
from tests.tenants.conftest import Plant


@pytest.fixture
def loader(database: Connections, data_keys: DataKeys) -> SnapshotLoader:
    return SnapshotLoader(database, data_keys)


async def test_a_tenant_is_loaded_with_decrypted_keys(loader: SnapshotLoader, plant: Plant) -> None:
    planted = await plant("acme")
    tenant = await loader.load(planted.tenant_id)
    assert tenant is not None
    assert (tenant.slug, tenant.status, tenant.unopened) == ("acme", "active", ())
    (pool,) = tenant.pools
    assert (pool.pool_id, pool.name, pool.strategy, pool.is_default) == (planted.pool_id, "main", "weighted", True)
    (key,) = pool.keys
    assert key.secret == planted.secret
    assert (key.models, key.model_map, key.weight, key.version) == (("gpt-*",), {"a": "b"}, 50, 1)
    (quota,) = pool.quotas
    assert (quota.id, quota.limits) == (planted.quota_id, {"rpm": 10})
    assert planted.secret.reveal() not in repr(tenant)


async def test_unknown_and_foreign_tenants(loader: SnapshotLoader, plant: Plant) -> None:
    assert await loader.load(uuid7()) is None
    a, b = await plant("a"), await plant("b")
    loaded = {tenant.tenant_id: tenant for tenant in await loader.load_all()}
    assert set(loaded) == {a.tenant_id, b.tenant_id, PLATFORM_TENANT_ID}
    assert loaded[a.tenant_id].pools[0].keys[0].secret == a.secret
    assert loaded[b.tenant_id].pools[0].keys[0].secret == b.secret


CHANGES = (
    "update provider_key set weight = 1",
    "update quota set limits = '{}'",
    "update pool set strategy = 'round_robin'",
    "update tenant set status = 'suspended'",
    "update key_version set state = 'disabled'",
    "delete from provider_key",
)


async def test_every_change_moves_the_revision(loader: SnapshotLoader, database: Connections, plant: Plant) -> None:
    tenant_id = (await plant("acme")).tenant_id
    for change in CHANGES:
        before, mark = (await loader.revisions())[tenant_id], await loader.mark()
        assert await loader.mark() == mark
        async with database.tenant(tenant_id) as connection:
            await connection.execute(change)
        after = (await loader.revisions())[tenant_id]
        assert after > before, change
        assert await loader.mark() != mark, change
        loaded = await loader.load(tenant_id)
        assert loaded is not None
        assert loaded.revision == after


async def test_tenants_that_come_and_go_move_the_mark(
    loader: SnapshotLoader, database: Connections, plant: Plant
) -> None:
    first = (await plant("first")).tenant_id
    marks = [await loader.mark()]
    await plant("second")
    marks.append(await loader.mark())
    async with database.tenant(first) as connection:
        await connection.execute("delete from tenant")
    marks.append(await loader.mark())
    await plant("third")
    marks.append(await loader.mark())
    assert len(set(map(repr, marks))) == 4


async def test_disabled_keys_and_states_are_not_served(
    loader: SnapshotLoader, database: Connections, plant: Plant
) -> None:
    tenant_id = (await plant("acme")).tenant_id
    for change in ("update provider_key set enabled = false", "update key_version set state = 'draining'"):
        async with database.tenant(tenant_id) as connection:
            await connection.execute(change)
        loaded = await loader.load(tenant_id)
        assert loaded is not None
        assert loaded.pools[0].keys == ()


SWAPS = {
    "the whole envelope of another tenant": (
        "update key_version t set envelope = o.envelope from key_version o where t.key_id = $1 and o.key_id = $2"
    ),
    "another provider than it was sealed for": "update provider_key set provider = 'groq' where id = $1 and $2 <> $1",
    "a rolled-back number": "update key_version set number = 7 where key_id = $1 and $2 <> $1",
    "one byte": (
        "update key_version set envelope = set_byte(envelope, 90, get_byte(envelope, 90) # 1) "
        "where key_id = $1 and $2 <> $1"
    ),
}


@pytest.mark.parametrize("swap", SWAPS.values(), ids=SWAPS.keys())
async def test_a_row_swapped_in_sql_is_left_out_and_the_rest_served(
    loader: SnapshotLoader, database: Connections, plant: Plant, swap: str, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await plant("a"), await plant("b")
    async with database.platform() as connection:
        await connection.execute(swap, a.key_id, b.key_id)
    with caplog.at_level(logging.ERROR):
        hit = await loader.load(a.tenant_id)
        other = await loader.load(b.tenant_id)
    assert hit is not None
    assert other is not None
    assert (hit.unopened, hit.pools[0].keys) == ((a.key_id,), ())
    assert other.pools[0].keys[0].secret == b.secret
    assert (loader.unopened_total, loader.unopened_now) == (1, 1)
    assert str(a.key_id) in caplog.text
    assert a.secret.reveal() not in caplog.text


async def test_a_disabled_kek_leaves_keys_out(
    loader: SnapshotLoader, data_keys: DataKeys, keyring: LocalKeyring, plant: Plant, database: Connections
) -> None:
    planted = await plant("acme")
    keyring.disable(keyring.uri)
    await data_keys.drop_disabled()
    loaded = await loader.load(planted.tenant_id)
    assert loaded is not None
    assert loaded.unopened == (planted.key_id,)
    assert loader.unopened_now == 1
    async with database.platform() as connection:
        await connection.execute("delete from tenant where id = $1", planted.tenant_id)
    assert planted.tenant_id not in await loader.revisions()
    assert loader.unopened_now == 0
