"""New keys under stored data, while it is read and written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from auth.errors import NotFound
from auth.keyset import KeySet
from auth.principal import PLATFORM_TENANT_ID
from auth.signing_keys import SigningKeys
from auth.storage import Connections
from tenants.custody import source_context
from tenants.datakeys import DataKeys
from tenants.errors import KekDisabled
from tenants.kek_uses import KekUse, kek_uses
from tenants.keyring import LocalKeyring
from tenants.reencryption import reencrypt
from tenants.rewrap import Progress, new_data_key, rewrap_data_keys
from tenants.snapshot import SnapshotLoader
from tenants.verification import verify_everything
from tests.tenants.conftest import KEK, Clock, Plant

NEW_KEK = bytes(range(32, 64))


async def last(progress: AsyncIterator[Progress]) -> Progress:
    found = Progress()
    async for each in progress:
        found = each
    return found


async def test_a_new_kek_takes_over_and_the_old_one_can_go(
    database: Connections, keyring: LocalKeyring, data_keys: DataKeys, plant: Plant, clock: Clock
) -> None:
    planted = [await plant(slug) for slug in ("a", "b", "c")]
    both = LocalKeyring([NEW_KEK, KEK])
    done = await last(rewrap_data_keys(database, both))
    assert (done.done, done.total, done.failed) == (3, 3, {})
    assert await kek_uses(database) == [KekUse(both.uri, "wraps", 3)]
    assert (await last(rewrap_data_keys(database, both))).done == 0, "a second run finds nothing to do"
    alone = DataKeys(database, LocalKeyring([NEW_KEK]), clock=clock)
    for each in planted:
        loaded = await SnapshotLoader(database, alone).load(each.tenant_id)
        assert loaded is not None
        assert loaded.pools[0].keys[0].secret == each.secret
    with pytest.raises(KekDisabled):
        await DataKeys(database, keyring).seal(planted[0].tenant_id, ("x",), b"x")


async def test_a_data_key_that_does_not_open_is_reported_and_left(database: Connections, plant: Plant) -> None:
    bad = await plant("bad")
    await plant("good")
    async with database.platform() as connection:
        await connection.execute(
            "update data_key set wrapped = set_byte(wrapped, 20, 255 - get_byte(wrapped, 20)) where tenant_id = $1",
            bad.tenant_id,
        )
    done = await last(rewrap_data_keys(database, LocalKeyring([NEW_KEK, KEK])))
    assert done.done == 1
    assert len(done.failed) == 1


async def test_a_new_data_key_moves_every_envelope_while_they_are_read(
    database: Connections, data_keys: DataKeys, plant: Plant
) -> None:
    planted = await plant("acme")
    other = await plant("other")
    active = await new_data_key(database, data_keys.wrapper, planted.tenant_id)
    loader = SnapshotLoader(database, data_keys)

    async def read() -> None:
        for _ in range(10):
            loaded = await loader.load(planted.tenant_id)
            assert loaded is not None
            assert loaded.pools[0].keys[0].secret == planted.secret

    done, _ = await asyncio.gather(last(reencrypt(database, data_keys, planted.tenant_id)), read())
    assert (done.done, done.total, done.failed) == (1, 1, {})
    async with database.platform() as connection:
        used = await connection.fetchval("select data_key_id from key_version where tenant_id = $1", planted.tenant_id)
        untouched = await connection.fetchval("select count(*) from data_key where tenant_id = $1", other.tenant_id)
    assert (used, untouched) == (active, 1)
    assert (await last(reencrypt(database, data_keys, planted.tenant_id))).done == 0
    checked = await last(verify_everything(database, data_keys))
    assert (checked.done, checked.total, checked.failed) == (5, 5, {}), "three data keys, two key versions"


async def add_source(database: Connections, data_keys: DataKeys, tenant_id: UUID) -> UUID:
    source_id = uuid7()
    sealed = await data_keys.seal(tenant_id, source_context(source_id, "openai"), b"sk-admin")
    async with database.tenant(tenant_id) as connection:
        await connection.execute(
            "insert into key_source (id, tenant_id, name, driver, data_key_id, sealed) "
            "values ($1, $2, 'a', 'openai', $3, $4)",
            source_id,
            tenant_id,
            sealed.data_key_id,
            sealed.blob,
        )
    return source_id


async def test_sources_and_signing_keys_move_too(database: Connections, data_keys: DataKeys, plant: Plant) -> None:
    planted = await plant("acme")
    await add_source(database, data_keys, planted.tenant_id)
    await SigningKeys(database, data_keys, KeySet()).maintain(now=1e9)
    for tenant_id, total in ((planted.tenant_id, 2), (PLATFORM_TENANT_ID, None)):
        active = await new_data_key(database, data_keys.wrapper, tenant_id)
        done = await last(reencrypt(database, data_keys, tenant_id))
        assert done.failed == {}
        assert done.done == done.total > 0
        assert total in {None, done.total}
        async with database.platform() as connection:
            for table in ("key_version", "key_source", "signing_key"):
                used = await connection.fetch(f"select data_key_id from {table} where tenant_id = $1", tenant_id)
                assert {row["data_key_id"] for row in used} <= {active}
    checked = await last(verify_everything(database, data_keys))
    assert checked.failed == {}
    assert checked.done == checked.total >= 7
    again = SigningKeys(database, data_keys, KeySet())
    await again.refresh()
    assert again.algs


async def test_a_run_that_ended_early_goes_on_at_its_cursor(
    database: Connections, data_keys: DataKeys, plant: Plant
) -> None:
    planted = await plant("acme")
    await add_source(database, data_keys, planted.tenant_id)
    steps = verify_everything(database, data_keys)
    first = await anext(steps)
    assert (first.done, first.total) == (1, 3), "the data key"
    rest = await last(verify_everything(database, data_keys, cursor=first.cursor))
    assert (rest.done, rest.total, rest.cursor) == (2, 2, "")
    second = await anext(steps)
    rest = await last(verify_everything(database, data_keys, cursor=second.cursor))
    assert (rest.done, rest.total, rest.cursor) == (1, 1, "")
    with pytest.raises(ValueError, match="not in"):
        await last(verify_everything(database, data_keys, cursor="elsewhere:1"))


async def test_verify_names_what_does_not_open(database: Connections, data_keys: DataKeys, plant: Plant) -> None:
    planted = await plant("acme")
    async with database.platform() as connection:
        await connection.execute("update key_version set number = 9 where key_id = $1", planted.key_id)
    checked = await last(verify_everything(database, data_keys))
    assert checked.done == 1
    assert list(checked.failed.values()) == ["the envelope belongs to another data key or context"]


async def test_a_shredded_tenants_ciphertexts_open_for_nobody(
    database: Connections, data_keys: DataKeys, plant: Plant
) -> None:
    """Ciphertexts that outlive their data key, as in an export of the key table, open for nobody."""
    planted = await plant("acme")
    async with database.platform() as connection:
        row = await connection.fetchrow("select data_key_id, envelope from key_version")
        await connection.execute("delete from provider_key")
        await connection.execute("delete from data_key")
    assert row is not None
    data_keys.forget(planted.tenant_id)
    with pytest.raises(ValueError, match="does not exist"):
        await data_keys.open(planted.tenant_id, row["data_key_id"], ("x",), bytes(row["envelope"]))


async def test_a_rewrap_is_safe_while_keys_are_read_and_written(
    database: Connections, keyring: LocalKeyring, data_keys: DataKeys, plant: Plant, clock: Clock
) -> None:
    """Processes with the old order of keys and with the new one read and seal; tenants are made and re-encrypted."""
    planted = [await plant(slug) for slug in ("a", "b", "c")]
    both = LocalKeyring([NEW_KEK, KEK])
    ahead = DataKeys(database, both, clock=clock)
    behind = DataKeys(database, LocalKeyring([KEK, NEW_KEK]), clock=clock)
    running = True
    sealed = []

    async def use(keys: DataKeys) -> None:
        while running:
            for each in planted:
                loaded = await SnapshotLoader(database, keys).load(each.tenant_id)
                assert loaded is not None
                assert loaded.pools[0].keys[0].secret == each.secret
                one = await keys.seal(each.tenant_id, ("row",), b"x")
                sealed.append((each.tenant_id, one))
                keys.forget(each.tenant_id)

    async def work() -> None:
        nonlocal running
        for round_number in range(3):
            late = uuid7()
            async with database.platform() as connection:
                await connection.execute(
                    "insert into tenant (id, slug, name) values ($1, $2, 't')", late, f"late-{round_number}"
                )
            sealed.append((late, await behind.seal(late, ("row",), b"x")))
            await new_data_key(database, behind.wrapper, planted[0].tenant_id)
            assert (await last(rewrap_data_keys(database, both))).failed == {}
        running = False

    await asyncio.gather(use(ahead), use(behind), work())
    assert (await last(rewrap_data_keys(database, both))).failed == {}
    assert await kek_uses(database) == [KekUse(both.uri, "wraps", 9)]
    alone = DataKeys(database, LocalKeyring([NEW_KEK]), clock=clock)
    for tenant_id, one in sealed:
        assert await alone.open(tenant_id, one.data_key_id, ("row",), one.blob) == b"x"
    assert len(sealed) > 6


async def test_a_tenant_that_does_not_exist_gets_no_data_key(database: Connections, keyring: LocalKeyring) -> None:
    with pytest.raises(NotFound):
        await new_data_key(database, keyring, uuid7())
