"""A new data key under a tenant's envelopes, online.

It walks over every shelf of `tenants.sealed_rows` in batches. A row that changes meanwhile keeps its change and is
left to the next run; nothing is locked while data keys are unwrapped.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

from auth.storage import Connections
from tenants.datakeys import DataKeys
from tenants.errors import KekDisabled, SealBroken
from tenants.rewrap import Progress
from tenants.sealed_rows import count_rows, page_query, shelves_after


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
        for shelf, after in shelves_after(cursor):
            progress.total += await count_rows(connection, shelf, stale, after, active)
    for shelf, after in shelves_after(cursor):
        last = after
        while True:
            async with connections.tenant(tenant_id) as connection:
                rows = await connection.fetch(page_query(shelf, stale), last, active)
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


async def is_unfinished(connections: Connections, tenant_id: UUID) -> bool:
    """Tell whether a tenant has something sealed under a data key that a newer one has followed."""
    async with connections.tenant(tenant_id) as connection:
        active = await connection.fetchval("select id from data_key where state = 'active'")
        for shelf, first in shelves_after(""):
            if await count_rows(connection, shelf, " and s.data_key_id <> $2", first, active):
                return True
    return False
