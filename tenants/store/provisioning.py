"""What provisioning reads and claims: pools that are to be looked at, their keys, and what the last minute took."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from tenants.models import PoolProvisioning, ProviderKey
from tenants.provisioning_plan import WINDOW_S, Load

# Quotas count once, whatever number of keys draws on them; without a limit on one of them there is none on all.
_LOAD: Final = text(
    """
    with drawn as (
      select distinct q.id, (q.limits->>'rpm')::bigint as rpm, (q.limits->>'tpm')::bigint as tpm
      from provider_key k
      join key_version v on v.tenant_id = k.tenant_id and v.key_id = k.id and v.state = 'current'
      join quota q on q.tenant_id = k.tenant_id and q.id = k.quota_id
      where k.tenant_id = :tenant_id and k.pool_id = :pool_id and k.enabled
    ), used as (
      select count(*) filter (where key_id is not null) as requests,
             coalesce(sum(input_tokens + output_tokens), 0) as tokens,
             count(*) filter (where status = 429 and outcome in ('rate_limited', 'rate_limit_exceeded')) as refused
      from usage_event where tenant_id = :tenant_id and pool_id = :pool_id and at > :since
    )
    select used.requests, used.tokens, used.refused,
           case when count(drawn.id) = count(drawn.rpm) then sum(drawn.rpm) end as rpm,
           case when count(drawn.id) = count(drawn.tpm) then sum(drawn.tpm) end as tpm
    from used left join drawn on true group by used.requests, used.tokens, used.refused
    """
)


async def claim_looks(
    session: AsyncSession, *, now: datetime, again_s: float, limit: int
) -> list[tuple[UUID, UUID, datetime]]:
    """Claim pools of every tenant that are due, as (tenant, pool, fence); needs a platform transaction."""
    query = (
        select(PoolProvisioning)
        .where(col(PoolProvisioning.look_at) <= now)
        .order_by(col(PoolProvisioning.look_at))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    claims = []
    for row in (await session.execute(query)).scalars():
        row.look_at = now + timedelta(seconds=again_s)
        claims.append((row.tenant_id, row.pool_id, row.look_at))
    await session.flush()
    return claims


async def of_pool(
    session: AsyncSession, tenant_id: UUID, pool_id: UUID, *, for_change: bool = False
) -> PoolProvisioning | None:
    """Return a pool's provisioning, None while it is off. `for_change` locks the row."""
    query = select(PoolProvisioning).where(
        col(PoolProvisioning.tenant_id) == tenant_id, col(PoolProvisioning.pool_id) == pool_id
    )
    return (await session.execute(query.with_for_update() if for_change else query)).scalar_one_or_none()


async def keys_of(session: AsyncSession, tenant_id: UUID, pool_id: UUID) -> Sequence[ProviderKey]:
    """Return the pool's keys, the newest first, locked."""
    query = (
        select(ProviderKey)
        .where(col(ProviderKey.tenant_id) == tenant_id, col(ProviderKey.pool_id) == pool_id)
        .order_by(col(ProviderKey.id).desc())
        .with_for_update(key_share=True)
    )
    return (await session.execute(query)).scalars().all()


async def load_of(session: AsyncSession, tenant_id: UUID, pool_id: UUID, *, now: datetime) -> Load:
    """Return what the last minute took of the pool's limits."""
    since = now - timedelta(seconds=WINDOW_S)
    row = (await session.execute(_LOAD, {"tenant_id": tenant_id, "pool_id": pool_id, "since": since})).one_or_none()
    if row is None:
        return Load()
    rpm, tpm = (None if value is None else int(value) for value in (row.rpm, row.tpm))
    return Load(int(row.requests), int(row.tokens), int(row.refused), rpm, tpm)
