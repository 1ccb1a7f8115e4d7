"""What the rotation engine claims: due keys and versions whose next step is due, each by one process at a time.

A claim moves `step_at` (or `due_at`) into the future in the same statement that reads it, skipping rows that others
hold. The moved moment is the claim's fence: a step is only settled while the row still carries it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from auth.errors import Conflict, NotFound
from tenants.lifecycle import USABLE, VersionState
from tenants.models import KeySource, KeyVersion, ProviderKey
from tenants.sources.registry import TURNS
from tenants.store import keys


@dataclass(frozen=True, slots=True)
class Claim:
    """One version to look at; valid while its row's `step_at` is `until`."""

    tenant_id: UUID
    version_id: UUID
    until: datetime


class ClaimLost(Exception):
    """Another process took the version over, or someone changed it: leave it alone."""


async def claim_steps(session: AsyncSession, *, now: datetime, lease_s: float, limit: int) -> list[Claim]:
    """Claim due versions of every tenant; needs a platform transaction."""
    query = (
        select(KeyVersion)
        .where(col(KeyVersion.step_at) <= now)
        .order_by(col(KeyVersion.step_at))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    claims = []
    for version in (await session.execute(query)).scalars():
        version.step_at = now + timedelta(seconds=lease_s)
        claims.append(Claim(version.tenant_id, version.id, version.step_at))
    await session.flush()
    return claims


async def claim_due_keys(session: AsyncSession, *, now: datetime, limit: int) -> Sequence[ProviderKey]:
    """Lock keys whose rotation is due; the caller starts it and stores the next `due_at` before it commits."""
    query = (
        select(ProviderKey)
        .where(col(ProviderKey.due_at) <= now, col(ProviderKey.source_id).is_not(None))
        .order_by(col(ProviderKey.due_at))
        .limit(limit)
        .with_for_update(skip_locked=True, key_share=True)
    )
    return (await session.execute(query)).scalars().all()


async def find(session: AsyncSession, claim: Claim) -> KeyVersion | None:
    """Return the version of a claim, whoever holds it now; None when it is gone."""
    query = select(KeyVersion).where(
        col(KeyVersion.tenant_id) == claim.tenant_id, col(KeyVersion.id) == claim.version_id
    )
    return (await session.execute(query)).scalar_one_or_none()


async def held(session: AsyncSession, claim: Claim) -> KeyVersion:
    """Lock and return the claimed version, its key locked before it; `ClaimLost` when the fence has moved."""
    version = await find(session, claim)
    if version is None:
        raise ClaimLost
    await keys.get(session, claim.tenant_id, version.key_id, for_change=True)
    await session.refresh(version, with_for_update=True)
    if version.step_at != claim.until:
        raise ClaimLost
    return version


async def source_of(
    session: AsyncSession, tenant_id: UUID, source_id: UUID | None, *, for_change: bool = False
) -> KeySource | None:
    """Return the key's source, None for keys whose secrets are supplied by hand. `for_change` locks the row."""
    if source_id is None:
        return None
    query = select(KeySource).where(col(KeySource.tenant_id) == tenant_id, col(KeySource.id) == source_id)
    return (await session.execute(query.with_for_update() if for_change else query)).scalar_one_or_none()


async def forget_source(session: AsyncSession, source: KeySource) -> None:
    """Let go of what a source that goes has made: without it nobody can switch these keys off, nor look for them.

    No other source is to be asked for them by a reference that may name another key there.
    """
    made = (col(KeyVersion.tenant_id) == source.tenant_id, col(KeyVersion.source_id) == source.id)
    await session.execute(update(KeyVersion).where(*made).values(provider_ref=None))
    lost = col(KeyVersion.state).in_((VersionState.ORPHANED.value, VersionState.REVOKED.value))
    await session.execute(update(KeyVersion).where(*made, lost).values(step_at=None))


async def need_source(session: AsyncSession, tenant_id: UUID, source_id: UUID | None) -> KeySource | None:
    """Return the source that was named, None for none; `NotFound` when it does not exist."""
    source = await source_of(session, tenant_id, source_id)
    if source_id is not None and source is None:
        raise NotFound("The source does not exist.", hint="List the sources: GET /api/v1/sources.")
    return source


async def refuse_taken_turns(session: AsyncSession, source: KeySource | None, key_ids: Collection[UUID]) -> None:
    """Raise `Conflict` when a source whose two keys take turns would be more than one key's.

    Whichever of them rotated first would overwrite what the other one serves with.
    """
    if source is None or source.driver not in TURNS:
        return
    query = select(col(ProviderKey.name)).where(
        col(ProviderKey.tenant_id) == source.tenant_id,
        col(ProviderKey.source_id) == source.id,
        col(ProviderKey.id).not_in(list(key_ids)),
    )
    taken = (await session.execute(query.limit(1))).scalar_one_or_none()
    if taken is not None or len(key_ids) > 1:
        raise Conflict(
            f"The two keys of {source.name}'s account take turns for one key of yours.",
            hint="Make a source for each key: another account (azure) or another IAM user (aws).",
            debug=f"taken by {taken}",
        )


def current(versions: Sequence[KeyVersion]) -> KeyVersion | None:
    """Return the current version."""
    return next((version for version in versions if version.state == VersionState.CURRENT), None)


def fallback(versions: Sequence[KeyVersion]) -> KeyVersion | None:
    """Return the newest earlier version that can come back: draining first, then disabled; its envelope still there."""
    alive = [version for version in versions if version.envelope is not None]
    for state in (*sorted(USABLE - {VersionState.CURRENT}), VersionState.DISABLED):
        for version in alive:
            if version.state == state:
                return version
    return None
