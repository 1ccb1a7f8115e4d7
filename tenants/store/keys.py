"""Provider keys of a tenant and their versions; secrets come in and go out sealed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from auth.errors import NotFound
from auth.etag import check_if_match
from auth.paging import PageAsk
from tenants.lifecycle import ERASED, VersionState, follow
from tenants.models import KeyVersion, ProviderKey
from tenants.store.violations import conflicts


async def add(session: AsyncSession, key: ProviderKey, first: KeyVersion) -> ProviderKey:
    """Insert a key with its first version."""
    async with conflicts():
        session.add(key)
        await session.flush()
        session.add(first)
        await session.flush()
    await session.refresh(key)
    await session.refresh(first)
    return key


async def page(
    session: AsyncSession, tenant_id: UUID, ask: PageAsk, *, pool_id: UUID | None = None
) -> Sequence[ProviderKey]:
    """Return up to `ask.fetch` keys, of one pool or of all, in order of id."""
    query = select(ProviderKey).where(col(ProviderKey.tenant_id) == tenant_id)
    if pool_id is not None:
        query = query.where(col(ProviderKey.pool_id) == pool_id)
    if ask.after is not None:
        query = query.where(col(ProviderKey.id) > ask.after)
    return (await session.execute(query.order_by(col(ProviderKey.id)).limit(ask.fetch))).scalars().all()


async def get(
    session: AsyncSession, tenant_id: UUID, key_id: UUID, *, if_match: str | None = None, for_change: bool = False
) -> ProviderKey:
    """Return a key; `NotFound`, or `Stale` when `if_match` names another version. `for_change` locks the row."""
    query = select(ProviderKey).where(col(ProviderKey.tenant_id) == tenant_id, col(ProviderKey.id) == key_id)
    key = (await session.execute(query.with_for_update(key_share=True) if for_change else query)).scalar_one_or_none()
    if key is None:
        raise NotFound("The key does not exist.", hint="List the keys of a pool: GET /api/v1/pools/{pool_id}/keys.")
    check_if_match(if_match, key.version)
    return key


async def save(session: AsyncSession, key: ProviderKey, *, at: datetime) -> ProviderKey:
    """Write a changed key under its next version."""
    key.version += 1
    key.updated_at = at
    async with conflicts():
        await session.flush()
    await session.refresh(key)
    return key


async def remove(session: AsyncSession, key: ProviderKey) -> None:
    """Delete a key with all its versions."""
    await session.delete(key)
    async with conflicts():
        await session.flush()


async def versions(session: AsyncSession, tenant_id: UUID, key_id: UUID) -> Sequence[KeyVersion]:
    """Return all versions of a key, the newest first."""
    query = (
        select(KeyVersion)
        .where(col(KeyVersion.tenant_id) == tenant_id, col(KeyVersion.key_id) == key_id)
        .order_by(col(KeyVersion.number).desc())
    )
    return (await session.execute(query)).scalars().all()


async def current_of(session: AsyncSession, tenant_id: UUID, key_ids: Iterable[UUID]) -> Mapping[UUID, KeyVersion]:
    """Return the current version of each key that has one."""
    query = select(KeyVersion).where(
        col(KeyVersion.tenant_id) == tenant_id,
        col(KeyVersion.key_id).in_(list(key_ids)),
        col(KeyVersion.state) == VersionState.CURRENT.value,
    )
    return {version.key_id: version for version in (await session.execute(query)).scalars()}


async def add_version(session: AsyncSession, version: KeyVersion) -> KeyVersion:
    """Insert a version; `Conflict` when a rotation at the same time took its number or its place."""
    async with conflicts():
        session.add(version)
        await session.flush()
    await session.refresh(version)
    return version


async def move(session: AsyncSession, version: KeyVersion, state: VersionState, *, at: datetime) -> KeyVersion:
    """Take a version to another state, as `tenants.lifecycle` allows; the envelope is erased in the final states."""
    version.state = follow(VersionState(version.state), state).value
    version.state_changed_at = at
    if state in ERASED:
        version.envelope = None
        version.data_key_id = None
    async with conflicts():
        await session.flush()
    return version
