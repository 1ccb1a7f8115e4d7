"""Writes refusals into Postgres; a trigger tells every process at commit, which then reads them into memory."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from auth.models import TokenRevocation


async def revoke_key(session: AsyncSession, tenant_id: UUID, key: str, *, now: datetime, expires_at: datetime) -> None:
    """Refuse what `key` names (a jti, `client:…`, `tenant:…`) from now on, as long as such a token can live."""
    statement = insert(TokenRevocation).values(jti=key, tenant_id=tenant_id, revoked_at=now, expires_at=expires_at)
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=["jti"],
            set_={
                "revoked_at": sa.func.greatest(TokenRevocation.revoked_at, statement.excluded.revoked_at),
                "recorded_at": sa.func.clock_timestamp(),
                "expires_at": sa.func.greatest(TokenRevocation.expires_at, statement.excluded.expires_at),
            },
        )
    )


async def purge_revocations(session: AsyncSession, *, now: datetime) -> int:
    """Delete refusals whose tokens have all expired; returns how many."""
    result = await session.execute(sa.delete(TokenRevocation).where(sa.column("expires_at") < now))
    return int(getattr(result, "rowcount", 0))
