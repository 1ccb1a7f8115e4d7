"""What still opens: every wrapped data key, its spare wrap, every envelope; and whether history was put back.

For after a restore, before a KEK is thrown away, and now and then. Nothing is changed. Data keys are unwrapped from
their rows, not taken from memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

import asyncpg

from auth.storage import Connections
from tenants.datakeys import DataKeys
from tenants.errors import KekDisabled, KekUnavailable, SealBroken
from tenants.history import contradictions
from tenants.keyring import KeyWrapper, Wrapped
from tenants.rewrap import AT_ONCE, Progress
from tenants.sealed_rows import BATCH, count_rows, page_query, shelves_after
from tenants.shares.layer import wrap_context
from tenants.shares.protocol import Shredded

DATA_KEYS: Final = "data_keys"
SPARES: Final = "spares"

_REFUSALS = (SealBroken, KekDisabled, KekUnavailable)


async def verify_everything(
    connections: Connections, data_keys: DataKeys, *, cursor: str = "", spare: KeyWrapper | None = None
) -> AsyncIterator[Progress]:
    """Open it all; yields after each batch, `failed` names what does not open, and why.

    `spare` opens spare wraps, and each that it does not open has failed; without it the configured one does if it can:
    of a key pair whose private half lies in a safe they are counted as `unchecked`. A shredded tenant's rows are
    neither done nor failed. Resumable at `cursor`.
    """
    progress = Progress()
    name, _, identity = cursor.partition(":")
    if not cursor or name == DATA_KEYS:
        after = UUID(identity) if identity else UUID(int=0)
        async with connections.platform() as connection:
            progress.total = await connection.fetchval("select count(*) from data_key where id > $1", after)
            for shelf, first in shelves_after(""):
                progress.total += await count_rows(connection, shelf, "", first)
        async for _ in _data_keys(connections, data_keys, spare, after, progress):
            yield progress
        cursor = ""
    else:
        async with connections.platform() as connection:
            for shelf, after_id in shelves_after(cursor):
                progress.total += await count_rows(connection, shelf, "", after_id)
    for shelf, first in shelves_after(cursor):
        last = first
        while True:
            async with connections.platform() as connection:
                rows = await connection.fetch(page_query(shelf, ""), last)
            if not rows:
                break
            for row in rows:
                last = row["id"]
                try:
                    await data_keys.open(row["tenant_id"], row["data_key_id"], shelf.context(row), bytes(row["blob"]))
                except Shredded as error:
                    progress.shredded[str(row["tenant_id"])] = str(error)
                    progress.total -= 1
                    continue
                except _REFUSALS as error:
                    progress.failed[f"{shelf.name}:{last}"] = str(error)
                    continue
                progress.done += 1
            progress.cursor = f"{shelf.name}:{last}"
            yield progress
    progress.failed |= await contradictions(connections)
    progress.cursor = ""
    yield progress


async def _data_keys(
    connections: Connections, data_keys: DataKeys, named: KeyWrapper | None, after: UUID, progress: Progress
) -> AsyncIterator[None]:
    spare = named or data_keys.spare.wrapper
    gate = asyncio.Semaphore(AT_ONCE)

    async def check(row: asyncpg.Record) -> None:
        context = wrap_context(row["tenant_id"], row["id"])
        async with gate:
            plain = None
            try:
                plain = await data_keys.wrapper.unwrap(context, Wrapped(row["kek_uri"], bytes(row["wrapped"])))
            except Shredded as error:
                progress.shredded[str(row["tenant_id"])] = str(error)
                progress.total -= 1
                return
            except _REFUSALS as error:
                progress.failed[f"{DATA_KEYS}:{row['id']}"] = str(error)
            progress.done += plain is not None
            if row["spare_uri"] is None:
                return
            if spare is None or not spare.opens(row["spare_uri"]):
                if named is None:
                    progress.unchecked += 1
                else:
                    progress.failed[f"{SPARES}:{row['id']}"] = (
                        f"the key that was named does not open {row['spare_uri']}"
                    )
                return
            try:
                second = await spare.unwrap(context, Wrapped(row["spare_uri"], bytes(row["spare_wrapped"])))
                if plain is not None and second != plain:
                    raise SealBroken("the spare wrap holds another key")
            except _REFUSALS as error:
                progress.failed[f"{SPARES}:{row['id']}"] = str(error)

    while True:
        async with connections.platform() as connection:
            rows = await connection.fetch(
                "select id, tenant_id, kek_uri, wrapped, spare_uri, spare_wrapped from data_key "
                "where id > $1 order by id limit $2",
                after,
                BATCH,
            )
        if not rows:
            return
        after = rows[-1]["id"]
        await asyncio.gather(*map(check, rows))
        progress.cursor = f"{DATA_KEYS}:{after}"
        yield
