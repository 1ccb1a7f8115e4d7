"""Crypto-shredding: a deleted tenant's share is destroyed, so that copies of its ciphertexts stay closed for good.

What is to be shredded is noted in the transaction that deletes the tenant and done after its commit: a tenant that is
still there never loses its share, and a process that is killed in between leaves a note that the next run works off.
Destroying is idempotent, so two processes may do it at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from auth.principal import PLATFORM_TENANT_ID
from auth.storage import Connections, Sessions
from tenants import audit
from tenants.audit import Actor
from tenants.errors import KekUnavailable
from tenants.rewrap import Progress
from tenants.shares.layer import PREFIX
from tenants.shares.protocol import ShareStore

BATCH: Final = 100
ENGINE: Final = Actor("llm-proxy")


async def note_shredding(session: AsyncSession, tenant_id: UUID, slug: str, *, at: datetime) -> None:
    """Note in the deleting transaction, before the data keys go, that the tenant's share is to be destroyed."""
    await session.execute(
        text(
            "insert into tenant_shredding (tenant_id, slug, requested_at, shared) select :tenant_id, :slug, :at, "
            "coalesce(bool_and(kek_uri like :shared), true) from data_key where tenant_id = :tenant_id "
            "on conflict (tenant_id) do update set requested_at = excluded.requested_at, done_at = null, error = null"
        ),
        {"tenant_id": tenant_id, "slug": slug, "at": at, "shared": f"{PREFIX}%"},
    )


async def shred_noted(
    sessions: Sessions, shares: ShareStore, now: Callable[[], datetime], *, only: UUID | None = None
) -> AsyncIterator[Progress]:
    """Destroy the shares that are noted and not done, oldest first; yields after each, `failed` says why not."""
    pending = text(
        "select tenant_id, slug from tenant_shredding where done_at is null "
        "and (cast(:only as uuid) is null or tenant_id = :only) order by requested_at, tenant_id"
    )
    async with sessions.platform() as session:
        rows = (await session.execute(pending, {"only": only})).all()
    progress = Progress(total=len(rows))
    for tenant_id, slug in rows:
        at = now()
        try:
            await shares.destroy(tenant_id, at=at)
        except KekUnavailable as error:
            progress.failed[str(tenant_id)] = str(error)
            async with sessions.platform() as session:
                await session.execute(
                    text("update tenant_shredding set attempts = attempts + 1, error = :error where tenant_id = :id"),
                    {"id": tenant_id, "error": str(error)[:500]},
                )
        else:
            async with sessions.platform() as session:
                done = await session.execute(
                    text(
                        "update tenant_shredding set done_at = :at, error = null, attempts = attempts + 1 "
                        "where tenant_id = :id and done_at is null returning tenant_id"
                    ),
                    {"id": tenant_id, "at": at},
                )
                if done.first() is not None:  # another process may have been quicker: one event is enough
                    await audit.record(
                        session,
                        PLATFORM_TENANT_ID,
                        ENGINE,
                        "tenant.shred",
                        f"tenant:{tenant_id}",
                        at=at,
                        detail={"slug": slug},
                    )
            progress.done += 1
        yield progress


@dataclass(frozen=True, slots=True)
class Shredding:
    """One deleted tenant. `done_at` None: its share is still to be destroyed, `error` says why that failed last.

    `shared`: all its data keys lay under the share when it was deleted. `back`: its row is there again, from a backup.
    """

    tenant_id: UUID
    slug: str
    requested_at: datetime | None
    done_at: datetime | None
    shared: bool
    back: bool
    error: str | None = None

    @property
    def covers_backups(self) -> bool:
        """Whether backups of the database are shredded with it."""
        return self.shared and self.done_at is not None


async def shreddings(connections: Connections, shares: ShareStore | None) -> list[Shredding]:
    """Return every deleted tenant that the database or the store of shares knows of, the oldest first.

    The store outlives a restore of the database: what was shredded since the backup is known from there.
    """
    notes = {} if shares is None else dict(await shares.shredded())
    async with connections.platform() as connection:
        rows = await connection.fetch(
            "select s.tenant_id, s.slug, s.requested_at, s.done_at, s.shared, s.error, t.id is not null as back "
            "from tenant_shredding s left join tenant t on t.id = s.tenant_id order by s.requested_at, s.tenant_id"
        )
        known = {row["tenant_id"] for row in rows}
        others = [tenant_id for tenant_id in notes if tenant_id not in known]
        back = await connection.fetch("select id, slug from tenant where id = any($1::uuid[])", others)
    slugs = {row["id"]: row["slug"] for row in back}
    found = [
        Shredding(
            row["tenant_id"],
            row["slug"],
            row["requested_at"],
            # With a store its word is the proof: a database says what it was told.
            row["done_at"] if shares is None else notes.get(row["tenant_id"]),
            row["shared"],
            row["back"],
            row["error"],
        )
        for row in rows
    ]
    found += [Shredding(each, slugs.get(each, ""), None, notes[each], True, each in slugs) for each in others]
    return found
