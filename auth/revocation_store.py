"""Writes refusals into Postgres; a trigger tells every process at commit, which then reads them into memory."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from auth.models import ApiToken, TokenRevocation


async def revoke_key(session: AsyncSession, tenant_id: UUID, key: str, *, now: datetime, expires_at: datetime) -> None:
    """Refuse what `key` names (a jti, `client:…`, `tenant:…`) from now on, as long as such a token can live.

    Long-lived tokens among it are listed as revoked.
    """
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
    await _list_as_revoked(session, tenant_id, key, now)


async def _list_as_revoked(session: AsyncSession, tenant_id: UUID, key: str, now: datetime) -> None:
    kind, _, name = key.rpartition(":")
    whose = {
        "": col(ApiToken.jti) == name,
        "client": col(ApiToken.client_id) == name,
        "tenant": sa.true(),
    }[kind]
    owner = UUID(name) if kind == "tenant" else tenant_id
    good = (col(ApiToken.revoked_at).is_(None), col(ApiToken.expires_at) > now)
    await session.execute(
        sa.update(ApiToken).where(col(ApiToken.tenant_id) == owner, whose, *good).values(revoked_at=now)
    )


async def purge_revocations(session: AsyncSession, *, now: datetime) -> int:
    """Delete refusals whose tokens have all expired; returns how many."""
    result = await session.execute(sa.delete(TokenRevocation).where(sa.column("expires_at") < now))
    return int(getattr(result, "rowcount", 0))
