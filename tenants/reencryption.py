"""A new data key under a tenant's envelopes, online, and a check of what still opens.

Both walk over every shelf of `tenants.sealed_rows` in batches. A row that changes meanwhile keeps its change and is
left to the next run; nothing is locked while data keys are unwrapped.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

import asyncpg

from auth.storage import Connections
from tenants.datakeys import DataKeys
from tenants.errors import KekDisabled, KekUnavailable, SealBroken
from tenants.rewrap import Progress
from tenants.sealed_rows import SHELVES, Shelf

BATCH: Final = 200


async def reencrypt(
    connections: Connections, data_keys: DataKeys, tenant_id: UUID, *, cursor: str = ""
) -> AsyncIterator[Progress]:
    """Move all that a tenant has sealed to its active data key; yields after each batch."""
    async with connections.tenant(tenant_id) as connection:
        active = await connection.fetchval("select id from data_key where state = 'active'")
    if active is None:
        yield Progress()
        return
    stale = " and s.data_key_id <> $2"
    progress = Progress()
    async with connections.tenant(tenant_id) as connection:
        for shelf, after in _from(cursor):
            progress.total += await _count(connection, shelf, stale, after, active)
    for shelf, after in _from(cursor):
        last = after
        while True:
            async with connections.tenant(tenant_id) as connection:
                rows = await connection.fetch(_page(shelf, stale), last, active)
            if not rows:
                break
            fresh = []
            for row in rows:
                last = row["id"]
                context = shelf.context(row)
                try:
                    plain = await data_keys.open(tenant_id, row["data_key_id"], context, bytes(row["blob"]))
                except (SealBroken, KekDisabled) as error:
                    progress.failed[f"{shelf.name}:{last}"] = str(error)
                    continue
                sealed = await data_keys.seal_under(tenant_id, active, context, plain)
                fresh.append((last, bytes(row["blob"]), sealed.data_key_id, sealed.blob))
            async with connections.tenant(tenant_id) as connection:
                await connection.executemany(shelf.swap, fresh)
            progress.done += len(fresh)
            progress.cursor = f"{shelf.name}:{last}"
            yield progress
    progress.cursor = ""
    yield progress


async def verify_envelopes(
    connections: Connections, data_keys: DataKeys, *, cursor: str = ""
) -> AsyncIterator[Progress]:
    """Open every envelope of every tenant; yields after each batch, `failed` names what does not open, and why."""
    progress = Progress()
    async with connections.platform() as connection:
        for shelf, after in _from(cursor):
            progress.total += await _count(connection, shelf, "", after)
    for shelf, after in _from(cursor):
        last = after
        while True:
            async with connections.platform() as connection:
                rows = await connection.fetch(_page(shelf, ""), last)
            if not rows:
                break
            for row in rows:
                last = row["id"]
                try:
                    await data_keys.open(row["tenant_id"], row["data_key_id"], shelf.context(row), bytes(row["blob"]))
                except (SealBroken, KekDisabled, KekUnavailable) as error:
                    progress.failed[f"{shelf.name}:{last}"] = str(error)
                progress.done += 1
            progress.cursor = f"{shelf.name}:{last}"
            yield progress
    progress.cursor = ""
    yield progress


def _from(cursor: str) -> list[tuple[Shelf, object]]:
    """Return the shelves that are left, each with the id to go on after; `ValueError` for a malformed cursor."""
    if not cursor:
        return [(shelf, shelf.first) for shelf in SHELVES]
    name, _, identity = cursor.partition(":")
    names = [shelf.name for shelf in SHELVES]
    place = names.index(name)
    rest = [(shelf, shelf.first) for shelf in SHELVES[place + 1 :]]
    return [(SHELVES[place], SHELVES[place].read_cursor(identity)), *rest]


def _page(shelf: Shelf, condition: str) -> str:
    key = "kid" if shelf.name == "signing_keys" else "id"
    return f"{shelf.rows}{condition} order by s.{key} limit {BATCH}"


async def _count(
    connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record], shelf: Shelf, condition: str, *arguments: object
) -> int:
    query = f"select count(*) from ({shelf.rows}{condition}) as sealed"  # noqa: S608 - made of this package's own text
    found: int = await connection.fetchval(query, *arguments)
    return found
