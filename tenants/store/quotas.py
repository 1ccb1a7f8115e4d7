"""Quotas of a tenant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, exists
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from auth.errors import Conflict, NotFound
from auth.etag import check_if_match
from auth.paging import PageAsk
from tenants.models import LimiterBelief, ProviderKey, Quota
from tenants.store.violations import conflicts


async def add(session: AsyncSession, quota: Quota) -> Quota:
    """Insert a quota; `Conflict` when the name is taken."""
    async with conflicts():
        session.add(quota)
        await session.flush()
    await session.refresh(quota)
    return quota


async def page(session: AsyncSession, tenant_id: UUID, ask: PageAsk) -> Sequence[Quota]:
    """Return up to `ask.fetch` quotas in order of id."""
    query = select(Quota).where(col(Quota.tenant_id) == tenant_id).order_by(col(Quota.id)).limit(ask.fetch)
    if ask.after is not None:
        query = query.where(col(Quota.id) > ask.after)
    return (await session.execute(query)).scalars().all()


async def get(
    session: AsyncSession, tenant_id: UUID, quota_id: UUID, *, if_match: str | None = None, for_change: bool = False
) -> Quota:
    """Return a quota; `NotFound`, or `Stale` when `if_match` names another version. `for_change` locks the row."""
    query = select(Quota).where(col(Quota.tenant_id) == tenant_id, col(Quota.id) == quota_id)
    quota = (await session.execute(query.with_for_update(key_share=True) if for_change else query)).scalar_one_or_none()
    if quota is None:
        raise NotFound("The quota does not exist.", hint="List the quotas: GET /api/v1/quotas.")
    check_if_match(if_match, quota.version)
    return quota


async def beliefs(session: AsyncSession, tenant_id: UUID, quota_id: UUID) -> Sequence[LimiterBelief]:
    """Return what was learned of a quota's limiters, in order of model family."""
    query = (
        select(LimiterBelief)
        .where(col(LimiterBelief.tenant_id) == tenant_id, col(LimiterBelief.quota_id) == quota_id)
        .order_by(col(LimiterBelief.family))
    )
    return (await session.execute(query)).scalars().all()


async def named(session: AsyncSession, tenant_id: UUID, name: str) -> Quota | None:
    """Return the tenant's quota of this name, if there is one."""
    query = select(Quota).where(col(Quota.tenant_id) == tenant_id, col(Quota.name) == name)
    return (await session.execute(query)).scalar_one_or_none()


async def is_taken(session: AsyncSession, tenant_id: UUID, name: str) -> bool:
    """Tell whether a quota of the tenant has this name."""
    named = select(exists().where(col(Quota.tenant_id) == tenant_id, col(Quota.name) == name))
    return bool((await session.execute(named)).scalar_one())


async def save(session: AsyncSession, quota: Quota, *, at: datetime) -> Quota:
    """Write a changed quota under its next version."""
    quota.version += 1
    quota.updated_at = at
    async with conflicts():
        await session.flush()
    await session.refresh(quota)
    return quota


async def remove(session: AsyncSession, quota: Quota) -> None:
    """Delete a quota that no key draws on; `Conflict` otherwise."""
    drawn_on = select(exists().where(col(ProviderKey.quota_id) == quota.id))
    if (await session.execute(drawn_on)).scalar_one():
        raise Conflict("Keys draw on this quota.", hint="Move the keys to another quota or delete them first.")
    await session.delete(quota)
    async with conflicts():
        await session.flush()


async def lock_own(session: AsyncSession, tenant_id: UUID, quota_ids: Iterable[UUID]) -> None:
    """Lock those of the quotas that were made for single keys, before a key that draws on one changes or goes.

    Whoever is just putting another key on one is waited for here. Later it would be too late: each change of a key
    locks the tenant's row, which that one needs too.
    """
    query = select(Quota.id).where(
        col(Quota.tenant_id) == tenant_id, col(Quota.id).in_(list(quota_ids)), col(Quota.name).contains("/")
    )
    await session.execute(query.order_by(col(Quota.id)).with_for_update())


async def drawn_on_by(session: AsyncSession, tenant_id: UUID, pool_id: UUID) -> Sequence[UUID]:
    """Return the quotas that a pool's keys draw on."""
    query = select(ProviderKey.quota_id).where(
        col(ProviderKey.tenant_id) == tenant_id, col(ProviderKey.pool_id) == pool_id
    )
    return (await session.execute(query)).scalars().all()


async def remove_unused_own(session: AsyncSession, tenant_id: UUID) -> None:
    """Delete the quotas that were made for single keys and that no key draws on any more; lock them with `lock_own`."""
    unused = (
        col(Quota.tenant_id) == tenant_id,
        col(Quota.name).contains("/"),
        ~exists().where(col(ProviderKey.quota_id) == col(Quota.id)),
    )
    await session.execute(delete(Quota).where(*unused))
