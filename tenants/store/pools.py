"""Pools of a tenant."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from auth.errors import NotFound
from auth.etag import check_if_match
from auth.paging import PageAsk
from tenants.models import Pool
from tenants.store.violations import conflicts


async def add(session: AsyncSession, pool: Pool) -> Pool:
    """Insert a pool; a new default takes the place of the old one, and a tenant's first pool is its default."""
    if not pool.is_default:
        others = select(func.count()).select_from(Pool).where(col(Pool.tenant_id) == pool.tenant_id)
        pool.is_default = (await session.execute(others)).scalar_one() == 0
    async with conflicts():
        if pool.is_default:
            await _clear_default(session, pool.tenant_id)
        session.add(pool)
        await session.flush()
    await session.refresh(pool)
    return pool


async def page(session: AsyncSession, tenant_id: UUID, ask: PageAsk) -> Sequence[Pool]:
    """Return up to `ask.fetch` pools in order of id."""
    query = select(Pool).where(col(Pool.tenant_id) == tenant_id).order_by(col(Pool.id)).limit(ask.fetch)
    if ask.after is not None:
        query = query.where(col(Pool.id) > ask.after)
    return (await session.execute(query)).scalars().all()


async def get(
    session: AsyncSession, tenant_id: UUID, pool_id: UUID, *, if_match: str | None = None, for_change: bool = False
) -> Pool:
    """Return a pool; `NotFound`, or `Stale` when `if_match` names another version. `for_change` locks the row."""
    query = select(Pool).where(col(Pool.tenant_id) == tenant_id, col(Pool.id) == pool_id)
    pool = (await session.execute(query.with_for_update(key_share=True) if for_change else query)).scalar_one_or_none()
    if pool is None:
        raise NotFound("The pool does not exist.", hint="List the pools: GET /api/v1/pools.")
    check_if_match(if_match, pool.version)
    return pool


async def lock_all(session: AsyncSession, tenant_id: UUID) -> None:
    """Lock the tenant's pools in one order: for a change that reaches other pools than its own.

    Two of these that locked their own pool first, and then the other's, would wait for each other.
    """
    query = select(Pool.id).where(col(Pool.tenant_id) == tenant_id).order_by(col(Pool.id))
    await session.execute(query.with_for_update(key_share=True))


async def lock_whole(session: AsyncSession, pool: Pool) -> None:
    """Lock a pool that is to go also against keys that are just being added to it."""
    await session.execute(select(Pool.id).where(col(Pool.id) == pool.id).with_for_update())


async def names(session: AsyncSession, tenant_id: UUID) -> set[str]:
    """Return the names of the tenant's pools."""
    return set((await session.execute(select(Pool.name).where(col(Pool.tenant_id) == tenant_id))).scalars())


async def falling_back_to(session: AsyncSession, pool: Pool) -> Sequence[Pool]:
    """Return the other pools of the tenant that fall back to `pool`, locked."""
    query = (
        select(Pool)
        .where(
            col(Pool.tenant_id) == pool.tenant_id,
            col(Pool.id) != pool.id,
            col(Pool.settings)["fallbacks"].contains([{"pool": pool.name}]),
        )
        .order_by(col(Pool.id))
        .with_for_update(key_share=True)
    )
    return (await session.execute(query)).scalars().all()


async def save(session: AsyncSession, pool: Pool, *, at: datetime, becomes_default: bool = False) -> Pool:
    """Write a changed pool under its next version."""
    pool.version += 1
    pool.updated_at = at
    async with conflicts():
        if becomes_default:
            await _clear_default(session, pool.tenant_id)
            pool.is_default = True
        await session.flush()
    await session.refresh(pool)
    return pool


async def remove(session: AsyncSession, pool: Pool) -> None:
    """Delete a pool with its keys and their versions."""
    await session.delete(pool)
    async with conflicts():
        await session.flush()


async def _clear_default(session: AsyncSession, tenant_id: UUID) -> None:
    statement = update(Pool).where(col(Pool.tenant_id) == tenant_id, col(Pool.is_default)).values(is_default=False)
    await session.execute(statement)
