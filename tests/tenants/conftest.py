"""A migrated database with tenants, and the custody parts over it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from auth.secret import Secret
from auth.storage import Connections, Sessions
from tenants.custody import seal_key
from tenants.datakeys import DataKeys
from tenants.keyring import LocalKeyring
from tenants.lifecycle import VersionState
from tenants.models import KeyVersion, Pool, ProviderKey, Quota, Tenant
from tenants.store import keys, pools, quotas
from tenants.store import tenants as tenants_store

KEK = bytes(range(32))


@dataclass(slots=True)
class Clock:
    """Monotonic seconds that move when told."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class Planted:
    """A tenant with one pool, one quota and one key, and the secret in it."""

    tenant_id: UUID
    pool_id: UUID
    quota_id: UUID
    key_id: UUID
    secret: Secret
    extra: list[UUID] = field(default_factory=list)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keyring() -> LocalKeyring:
    return LocalKeyring([KEK])


@pytest.fixture
def data_keys(database: Connections, keyring: LocalKeyring, clock: Clock) -> DataKeys:
    return DataKeys(database, keyring, clock=clock)


Plant = Callable[[str], Awaitable[Planted]]


@pytest.fixture
def plant(sessions: Sessions, data_keys: DataKeys) -> Plant:
    """Make a tenant with a key, through the stores."""

    async def make(slug: str) -> Planted:
        tenant_id, pool_id, quota_id, key_id = uuid7(), uuid7(), uuid7(), uuid7()
        secret = Secret(f"sk-planted-{slug}-{key_id.hex}")
        async with sessions.platform() as session:
            await tenants_store.add(session, Tenant(id=tenant_id, slug=slug, name=slug))
        sealed = await seal_key(
            data_keys, tenant_id, secret, pool_id=pool_id, key_id=key_id, number=1, provider="openai"
        )
        async with sessions.tenant(tenant_id) as session:
            await pools.add(session, Pool(id=pool_id, tenant_id=tenant_id, name="main", strategy="weighted"))
            await quotas.add(
                session, Quota(id=quota_id, tenant_id=tenant_id, name="org", provider="openai", limits={"rpm": 10})
            )
            key = ProviderKey(
                id=key_id,
                tenant_id=tenant_id,
                pool_id=pool_id,
                quota_id=quota_id,
                name="k1",
                provider="openai",
                models=["gpt-*"],
                model_map={"a": "b"},
                weight=50,
            )
            version = KeyVersion(
                tenant_id=tenant_id,
                key_id=key_id,
                number=1,
                state=VersionState.CURRENT.value,
                data_key_id=sealed.data_key_id,
                envelope=sealed.blob,
            )
            await keys.add(session, key, version)
        return Planted(tenant_id, pool_id, quota_id, key_id, secret)

    return make
