"""Tenants, as operators see them: every call needs a platform transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from auth.errors import Conflict, NotFound
from auth.etag import check_if_match
from auth.paging import PageAsk
from auth.principal import PLATFORM_TENANT_ID
from tenants.models import Tenant
from tenants.shredding import note_shredding
from tenants.store.violations import conflicts


async def add(session: AsyncSession, tenant: Tenant) -> Tenant:
    """Insert a tenant; `Conflict` when the slug is taken."""
    async with conflicts():
        session.add(tenant)
        await session.flush()
    await session.refresh(tenant)
    return tenant


async def page(session: AsyncSession, ask: PageAsk) -> Sequence[Tenant]:
    """Return up to `ask.fetch` tenants in order of id, the platform's own left out."""
    query = select(Tenant).where(col(Tenant.id) != PLATFORM_TENANT_ID).order_by(col(Tenant.id)).limit(ask.fetch)
    if ask.after is not None:
        query = query.where(col(Tenant.id) > ask.after)
    return (await session.execute(query)).scalars().all()


async def get(
    session: AsyncSession, tenant_id: UUID, *, if_match: str | None = None, for_change: bool = False
) -> Tenant:
    """Return a tenant; `NotFound`, or `Stale` when `if_match` names another version. `for_change` locks the row."""
    query = select(Tenant).where(col(Tenant.id) == tenant_id)
    tenant = (
        await session.execute(query.with_for_update(key_share=True) if for_change else query)
    ).scalar_one_or_none()
    if tenant is None:
        raise NotFound("The tenant does not exist.", hint="List the tenants: GET /api/v1/tenants.")
    check_if_match(if_match, tenant.version)
    return tenant


async def save(session: AsyncSession, tenant: Tenant, *, at: datetime) -> Tenant:
    """Write a changed tenant under its next version."""
    tenant.version += 1
    tenant.updated_at = at
    async with conflicts():
        await session.flush()
    await session.refresh(tenant)
    return tenant


async def remove(session: AsyncSession, tenant: Tenant, *, at: datetime) -> None:
    """Delete a tenant with everything it owns and note that its share is to be shredded; the platform's own stays."""
    if tenant.id == PLATFORM_TENANT_ID:
        raise Conflict("The platform's own tenant cannot be deleted.", hint="Delete another tenant.")
    await note_shredding(session, tenant.id, tenant.slug, at=at)
    # A key draws on a quota and a version on a data key: these references forbid, so the cascade needs this order.
    for table in ("provider_key", "key_source", "signing_key", "quota", "data_key"):
        await session.execute(
            text(f"delete from {table} where tenant_id = :tenant_id"),  # noqa: S608 -- the names stand above
            {"tenant_id": tenant.id},
        )
    await session.delete(tenant)
    await session.flush()
