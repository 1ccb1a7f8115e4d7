"""Data keys: cached for a bounded life, shared between callers, cut off when their KEK is disabled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from auth.sealing import InMemorySealer, Sealer
from auth.storage import Connections
from tenants.datakeys import FRESH_S, RETRY_S, STALE_S, DataKeys
from tenants.errors import KekDisabled, KekUnavailable, SealBroken
from tenants.keyring import KekStatus, LocalKeyring, Wrapped
from tenants.snapshot import SnapshotLoader
from tests.tenants.conftest import KEK, Clock, Plant

CONTEXT = ("test", "row-1")


class RemoteKeyring:
    """A KMS: counts calls, can be away, can be held up."""

    def __init__(self) -> None:
        self.inner = LocalKeyring([KEK])
        self.away = False
        self.unwraps = 0
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def uri(self) -> str:
        return self.inner.uri

    def opens(self, kek_uri: str) -> bool:
        return self.inner.opens(kek_uri)

    async def wrap(self, context: Sequence[str], plaintext: bytes) -> Wrapped:
        self._answer()
        return await self.inner.wrap(context, plaintext)

    async def unwrap(self, context: Sequence[str], wrapped: Wrapped) -> bytes:
        self.unwraps += 1
        await self.gate.wait()
        self._answer()
        return await self.inner.unwrap(context, wrapped)

    async def status(self, kek_uri: str) -> KekStatus:
        self._answer()
        return await self.inner.status(kek_uri)

    def _answer(self) -> None:
        if self.away:
            raise KekUnavailable("The KMS does not answer.")


@pytest.fixture
def kms() -> RemoteKeyring:
    return RemoteKeyring()


@pytest.fixture
def keys(database: Connections, kms: RemoteKeyring, clock: Clock) -> DataKeys:
    return DataKeys(database, kms, clock=clock)


@pytest.fixture
async def tenant(plant: Plant) -> UUID:
    return (await plant("acme")).tenant_id


@pytest.mark.parametrize("kind", ["memory", "data keys"])
async def test_sealer_contract(kind: str, data_keys: DataKeys, plant: Plant) -> None:
    a, b = (await plant("a")).tenant_id, (await plant("b")).tenant_id
    sealer: Sealer = data_keys if kind == "data keys" else InMemorySealer(uuid7())
    sealed = await sealer.seal(a, CONTEXT, b"secret")
    assert await sealer.open(a, sealed.data_key_id, CONTEXT, sealed.blob) == b"secret"
    for tenant_id, context, blob in (
        (b, CONTEXT, sealed.blob),
        (a, ("test", "row-2"), sealed.blob),
        (a, CONTEXT, sealed.blob[:-1]),
    ):
        with pytest.raises(ValueError):
            await sealer.open(tenant_id, sealed.data_key_id, context, blob)
    with pytest.raises(ValueError):
        await sealer.open(a, uuid7(), CONTEXT, sealed.blob)


async def test_a_first_data_key_is_made_once_for_all_racers(
    database: Connections, keyring: LocalKeyring, plant: Plant
) -> None:
    tenant_id = (await plant("acme")).tenant_id
    async with database.tenant(tenant_id) as connection:
        await connection.execute("delete from provider_key")
        await connection.execute("delete from data_key")
    racers = [DataKeys(database, keyring) for _ in range(4)]
    sealed = await asyncio.gather(*(racer.seal(tenant_id, CONTEXT, b"x") for racer in racers))
    assert len({one.data_key_id for one in sealed}) == 1
    assert await racers[0].open(tenant_id, sealed[3].data_key_id, CONTEXT, sealed[3].blob) == b"x"


async def test_a_fresh_key_asks_nobody_and_an_old_one_once_for_all(
    keys: DataKeys, kms: RemoteKeyring, clock: Clock, tenant: UUID
) -> None:
    sealed = await keys.seal(tenant, CONTEXT, b"x")
    kms.unwraps = 0
    clock.now += FRESH_S - 1
    await keys.open(tenant, sealed.data_key_id, CONTEXT, sealed.blob)
    assert kms.unwraps == 0
    clock.now += 2
    kms.gate.clear()
    opening = [asyncio.create_task(keys.open(tenant, sealed.data_key_id, CONTEXT, sealed.blob)) for _ in range(20)]
    while kms.unwraps == 0:
        await asyncio.sleep(0)
    opening[0].cancel()
    kms.gate.set()
    results = await asyncio.gather(*opening, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [b"x"] * 19
    assert kms.unwraps == 1


async def test_a_kms_that_is_away_is_survived_for_a_bounded_time(
    keys: DataKeys, kms: RemoteKeyring, clock: Clock, tenant: UUID
) -> None:
    sealed = await keys.seal(tenant, CONTEXT, b"x")
    kms.away, kms.unwraps = True, 0
    clock.now += FRESH_S
    assert await keys.open(tenant, sealed.data_key_id, CONTEXT, sealed.blob) == b"x"
    assert await keys.open(tenant, sealed.data_key_id, CONTEXT, sealed.blob) == b"x"
    assert kms.unwraps == 1, "a KMS that is away is not asked for every request"
    clock.now += RETRY_S
    assert await keys.open(tenant, sealed.data_key_id, CONTEXT, sealed.blob) == b"x"
    assert kms.unwraps == 2
    clock.now += STALE_S
    with pytest.raises(KekUnavailable):
        await keys.open(tenant, sealed.data_key_id, CONTEXT, sealed.blob)
    kms.away = False
    assert await keys.open(tenant, sealed.data_key_id, CONTEXT, sealed.blob) == b"x"


async def test_a_disabled_kek_cuts_off_at_once(keys: DataKeys, kms: RemoteKeyring, tenant: UUID) -> None:
    sealed = await keys.seal(tenant, CONTEXT, b"x")
    assert await keys.drop_disabled() == frozenset()
    kms.inner.disable(kms.uri)
    assert await keys.drop_disabled() == {tenant}
    with pytest.raises(KekDisabled):
        await keys.open(tenant, sealed.data_key_id, CONTEXT, sealed.blob)


async def test_a_kms_that_is_away_disables_nothing(keys: DataKeys, kms: RemoteKeyring, tenant: UUID) -> None:
    sealed = await keys.seal(tenant, CONTEXT, b"x")
    kms.away = True
    assert await keys.drop_disabled() == frozenset()
    assert await keys.open(tenant, sealed.data_key_id, CONTEXT, sealed.blob) == b"x"


async def test_a_deleted_data_key_is_gone_once_forgotten(keys: DataKeys, database: Connections, tenant: UUID) -> None:
    sealed = await keys.seal(tenant, CONTEXT, b"x")
    async with database.tenant(tenant) as connection:
        await connection.execute("delete from provider_key")
        await connection.execute("delete from data_key")
    keys.forget(tenant)
    with pytest.raises(SealBroken):
        await keys.open(tenant, sealed.data_key_id, CONTEXT, sealed.blob)


async def test_a_wrapped_data_key_moved_between_tenants_is_refused(
    keys: DataKeys, database: Connections, plant: Plant
) -> None:
    a, b = await plant("a"), await plant("b")
    async with database.platform() as connection:
        await connection.execute(
            "update data_key set wrapped = (select wrapped from data_key where tenant_id = $1) where tenant_id = $2",
            a.tenant_id,
            b.tenant_id,
        )
    with pytest.raises(SealBroken):
        await keys.seal(b.tenant_id, CONTEXT, b"x")


async def test_a_kms_that_hangs_holds_nobody_up(database: Connections, clock: Clock, plant: Plant) -> None:
    """With a stale key callers wait no longer than their patience; without one the next ones do not wait at all."""
    first, second = (await plant("a")).tenant_id, (await plant("b")).tenant_id
    kms = RemoteKeyring()
    keys = DataKeys(database, kms, clock=clock, timeout_s=0.2, patience_s=0.01)
    sealed = await keys.seal(first, CONTEXT, b"x")
    other = await DataKeys(database, kms.inner).seal(second, CONTEXT, b"y")
    kms.gate.clear()
    clock.now += FRESH_S
    assert await keys.open(first, sealed.data_key_id, CONTEXT, sealed.blob) == b"x"
    with pytest.raises(KekUnavailable):
        await keys.open(second, other.data_key_id, CONTEXT, other.blob)
    unwraps = kms.unwraps
    for _ in range(50):
        with pytest.raises(KekUnavailable):
            await keys.open(second, other.data_key_id, CONTEXT, other.blob)
        assert await keys.open(first, sealed.data_key_id, CONTEXT, sealed.blob) == b"x"
    assert kms.unwraps == unwraps, "a provider that hangs is left alone for a while"
    kms.gate.set()
    clock.now += RETRY_S
    assert await keys.open(second, other.data_key_id, CONTEXT, other.blob) == b"y"


async def test_an_answer_that_comes_late_is_taken(
    keys: DataKeys, kms: RemoteKeyring, clock: Clock, tenant: UUID
) -> None:
    slow = DataKeys(keys._connections, kms, clock=clock, patience_s=0.01)
    sealed = await slow.seal(tenant, CONTEXT, b"x")
    clock.now += FRESH_S
    kms.gate.clear()
    kms.unwraps = 0
    assert await slow.open(tenant, sealed.data_key_id, CONTEXT, sealed.blob) == b"x"
    kms.gate.set()
    while slow._flights:
        await asyncio.sleep(0)
    assert await slow.open(tenant, sealed.data_key_id, CONTEXT, sealed.blob) == b"x"
    assert kms.unwraps == 1, "fresh again"


async def test_a_kek_that_is_enabled_again_is_told(keys: DataKeys, kms: RemoteKeyring, tenant: UUID) -> None:
    sealed = await keys.seal(tenant, CONTEXT, b"x")
    kms.inner.disable(kms.uri)
    with pytest.raises(KekDisabled):
        await DataKeys(keys._connections, kms).open(tenant, sealed.data_key_id, CONTEXT, sealed.blob)
    assert await keys.drop_disabled() == {tenant}
    with pytest.raises(KekDisabled):
        await keys.open(tenant, sealed.data_key_id, CONTEXT, sealed.blob)
    assert await keys.drop_disabled() == frozenset()
    kms.inner.enable(kms.uri)
    assert await keys.drop_disabled() == {tenant}
    assert await keys.drop_disabled() == frozenset()
    assert await keys.open(tenant, sealed.data_key_id, CONTEXT, sealed.blob) == b"x"


async def test_a_start_while_the_kms_is_away_is_no_start(
    database: Connections, keys: DataKeys, kms: RemoteKeyring, plant: Plant
) -> None:
    planted = await plant("a")
    kms.away = True
    with pytest.raises(KekUnavailable):
        await SnapshotLoader(database, keys).load_all()
    kms.away = False
    [loaded] = [each for each in await SnapshotLoader(database, keys).load_all() if each.pools]
    assert loaded.pools[0].keys[0].secret == planted.secret


async def test_what_was_dropped_while_it_was_unwrapped_is_not_kept(
    keys: DataKeys, kms: RemoteKeyring, clock: Clock, tenant: UUID
) -> None:
    sealed = await keys.seal(tenant, CONTEXT, b"x")
    clock.now += FRESH_S
    kms.gate.clear()
    kms.unwraps = 0
    opening = asyncio.create_task(keys.open(tenant, sealed.data_key_id, CONTEXT, sealed.blob))
    while kms.unwraps == 0:
        await asyncio.sleep(0)
    keys.forget(tenant)
    kms.gate.set()
    assert await opening == b"x"
    assert not keys._cache


async def test_a_kek_that_is_disabled_during_a_long_outage_is_noticed_after_it(
    keys: DataKeys, kms: RemoteKeyring, clock: Clock, tenant: UUID
) -> None:
    """The stale data key is gone by then; what was opened with it is still being served from."""
    sealed = await keys.seal(tenant, CONTEXT, b"x")
    kms.away = True
    clock.now += STALE_S
    with pytest.raises(KekUnavailable):
        await keys.open(tenant, sealed.data_key_id, CONTEXT, sealed.blob)
    kms.away = False
    kms.inner.disable(kms.uri)
    assert await keys.drop_disabled() == {tenant}


async def test_what_was_warmed_opens_without_database_and_kms(
    keys: DataKeys, kms: RemoteKeyring, plant: Plant, clock: Clock
) -> None:
    tenants = [(await plant(slug)).tenant_id for slug in ("a", "b", "c")]
    sealed = [await keys.seal(tenant_id, CONTEXT, b"x") for tenant_id in tenants]
    fresh = DataKeys(keys._connections, kms, clock=clock)
    kms.unwraps = 0
    assert await fresh.warm() == kms.unwraps == len(tenants)
    kms.away = True
    opened = [
        await fresh.open(tenant_id, each.data_key_id, CONTEXT, each.blob)
        for tenant_id, each in zip(tenants, sealed, strict=True)
    ]
    assert opened == [b"x"] * len(tenants)
    assert kms.unwraps == len(tenants)


async def test_a_kms_that_is_away_ends_the_warming(keys: DataKeys, kms: RemoteKeyring, tenant: UUID) -> None:
    kms.away = True
    assert await keys.warm() == 0


async def test_plain_data_keys_that_nobody_asks_for_leave_memory(keys: DataKeys, tenant: UUID, clock: Clock) -> None:
    sealed = await keys.seal(tenant, CONTEXT, b"x")
    clock.now += STALE_S - 1
    assert keys.drop_stale() == 0
    clock.now += 1
    assert keys.drop_stale() == 1
    assert await keys.open(tenant, sealed.data_key_id, CONTEXT, sealed.blob) == b"x"
