"""Which one-time JWTs (client assertions, DPoP proofs) were used before, across all processes."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from auth.models import SeenProof


async def first_use(
    session: AsyncSession, tenant_id: UUID, kind: str, owner: str, jti: str, *, expires_at: float
) -> bool:
    """Record a use and tell whether it is the first: one of any number of racing callers gets True.

    The transaction of `session` must commit, also when the request fails for another reason afterwards. `expires_at`
    (Unix seconds) is when the JWT is refused for its age anyway.
    """
    digest = hashlib.sha256("\x00".join((kind, owner, jti)).encode()).digest()
    statement = (
        insert(SeenProof)
        .values(digest=digest, tenant_id=tenant_id, expires_at=datetime.fromtimestamp(expires_at, UTC))
        .on_conflict_do_nothing()
        .returning(col(SeenProof.digest))
    )
    return (await session.execute(statement)).first() is not None


async def purge_seen(session: AsyncSession, *, now: datetime) -> int:
    """Forget uses whose JWTs have expired; returns how many."""
    result = await session.execute(sa.delete(SeenProof).where(sa.column("expires_at") < now))
    return int(getattr(result, "rowcount", 0))
