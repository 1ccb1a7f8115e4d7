"""Makes the rows of a new key: the key, its quota when it brings its own, and its first sealed version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from auth.errors import Invalid
from auth.sealing import Sealed, Sealer
from auth.secret import Secret
from tenants.custody import seal_key
from tenants.fingerprint import fingerprint_of, prefix_of
from tenants.lifecycle import VersionState
from tenants.models import KeySource, KeyVersion, Pool, ProviderKey, Quota, new_id
from tenants.names import own_quota_name
from tenants.rotation_commands import intent
from tenants.sources.registry import KEYLESS, mints
from tenants.store import keys, quotas, rotations


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to store; `quota_id` None means a quota of its own with `limits`.

    `secret` None: it has none yet, or never.
    """

    name: str
    provider: str
    secret: Secret | None
    base_url: str | None = None
    region: str | None = None
    tier: int = 0
    weight: int = 1
    models: tuple[str, ...] = ()
    model_map: Mapping[str, str] = field(default_factory=dict)
    max_in_flight: int | None = None
    enabled: bool = True
    quota_id: UUID | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    id: UUID = field(default_factory=new_id)


async def seal_new_key(sealer: Sealer, tenant_id: UUID, pool_id: UUID, new: NewKey) -> Sealed:
    """Seal the first version, before the transaction opens: a KMS may be asked, and no row lock waits for one."""
    if new.secret is None:
        raise LookupError("a key without a secret has nothing to seal")
    return await seal_key(
        sealer, tenant_id, new.secret, pool_id=pool_id, key_id=new.id, number=1, provider=new.provider
    )


async def store_new_key(
    session: AsyncSession, pool: Pool, new: NewKey, sealed: Sealed, *, at: datetime
) -> tuple[ProviderKey, KeyVersion]:
    """Insert the rows; `Invalid` when the quota belongs to another provider, `Conflict` when the name is taken."""
    if new.secret is None:
        raise LookupError("a key without a secret is made by `store_key_of_source`")
    key = await _row(session, pool, new)
    version = sealed_version(
        pool.tenant_id, new.id, 1, secret=new.secret, sealed=sealed, state=VersionState.CURRENT, at=at
    )
    await keys.add(session, key, version)
    return key, version


async def store_key_of_source(
    session: AsyncSession, pool: Pool, new: NewKey, source: KeySource, *, at: datetime
) -> tuple[ProviderKey, KeyVersion]:
    """Insert the rows of a key that its source makes, or that has no secret; `Invalid` when the source can do neither.

    A key that is made serves once it was made and probed: its first version is an intent that the engine carries out.
    """
    if source.driver not in KEYLESS and not mints(source.driver):
        raise Invalid(
            f"The source {source.name} makes no keys.",
            hint="Give api_key, or a source that makes keys.",
            errors=(("/source_id", f"is a {source.driver} source, which makes no keys"),),
        )
    await rotations.refuse_taken_turns(session, source, [new.id])
    key = await _row(session, pool, new)
    key.source_id = source.id
    version = intent(key, (), at=at)
    if source.driver in KEYLESS:
        version.state = VersionState.CURRENT.value
        version.successes = 1
    await keys.add(session, key, version)
    return key, version


async def _row(session: AsyncSession, pool: Pool, new: NewKey) -> ProviderKey:
    quota_id = await _quota_id(session, pool, new)
    return ProviderKey(
        id=new.id,
        tenant_id=pool.tenant_id,
        pool_id=pool.id,
        quota_id=quota_id,
        name=new.name,
        provider=new.provider,
        base_url=new.base_url,
        region=new.region,
        tier=new.tier,
        weight=new.weight,
        models=list(new.models),
        model_map=dict(new.model_map),
        max_in_flight=new.max_in_flight,
        enabled=new.enabled,
    )


def sealed_version(
    tenant_id: UUID, key_id: UUID, number: int, *, secret: Secret, sealed: Sealed, state: VersionState, at: datetime
) -> KeyVersion:
    """Make the row of a sealed version."""
    return KeyVersion(
        tenant_id=tenant_id,
        key_id=key_id,
        number=number,
        state=state.value,
        data_key_id=sealed.data_key_id,
        envelope=sealed.blob,
        prefix=prefix_of(secret),
        fingerprint=fingerprint_of(tenant_id, secret),
        created_at=at,
        state_changed_at=at,
    )


async def _quota_id(session: AsyncSession, pool: Pool, new: NewKey) -> UUID:
    if new.quota_id is not None:
        quota = await quotas.get(session, pool.tenant_id, new.quota_id)
        check_quota_provider(quota, new.provider)
        return quota.id
    name = own_quota_name(pool.name, new.name)
    if await quotas.is_taken(session, pool.tenant_id, name):
        # By a key that has been renamed or whose pool has, or by one of the same name: that is for the key's own row
        # to say.
        name = f"{name}/{new.id}"
    own = Quota(
        tenant_id=pool.tenant_id,
        name=name,
        provider=new.provider,
        limits=dict(new.limits),
    )
    return (await quotas.add(session, own)).id


def check_quota_provider(quota: Quota, provider: str) -> None:
    """Refuse a quota of another provider."""
    if quota.provider != provider:
        raise Invalid(
            f"The quota {quota.name} is {quota.provider}'s, and the key is {provider}'s.",
            hint=f"Choose a quota of {provider}, or leave quota_id out.",
            errors=(("/quota_id", f"is a quota of {quota.provider}"),),
        )
