"""A new KEK over data keys, online. Rewrapping touches data keys only: what they sealed stays as it is.

It works in small batches with compare-and-swap, holds no lock while a KMS is asked, and goes on when started again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from auth.storage import Connections
from tenants.datakeys import wrap_context
from tenants.envelope import KEY_BYTES, RandomBytes
from tenants.errors import KekDisabled, KekUnavailable, SealBroken
from tenants.keyring import KeyWrapper, Wrapped

BATCH: Final = 200
AT_ONCE: Final = 16
"""Data keys that are at the KMS at a time: one after the other, 10,000 would take minutes."""


@dataclass(slots=True)
class Progress:
    """How far a job is; `failed` maps ids to reasons, and a second run tries those again.

    `cursor` is where a later run may go on, "" when nothing is left.
    """

    done: int = 0
    total: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    cursor: str = ""


async def rewrap_data_keys(
    connections: Connections, wrapper: KeyWrapper, *, cursor: str = ""
) -> AsyncIterator[Progress]:
    """Wrap every data key under the wrapper's current KEK; yields after each batch; run it until nothing failed."""
    probe = await wrapper.wrap(("kek-probe",), b"\0" * KEY_BYTES)  # tells the URI that new wraps carry
    target = probe.kek_uri
    after = UUID(cursor) if cursor else UUID(int=0)
    async with connections.platform() as connection:
        total = await connection.fetchval(
            "select count(*) from data_key where kek_uri <> $1 and id > $2", target, after
        )
    progress = Progress(total=total)
    gate = asyncio.Semaphore(AT_ONCE)

    async def again(row: asyncpg.Record) -> tuple[UUID, str, str, bytes] | None:
        context = wrap_context(row["tenant_id"], row["id"])
        async with gate:
            try:
                plain = await wrapper.unwrap(context, Wrapped(row["kek_uri"], bytes(row["wrapped"])))
                new = await wrapper.wrap(context, plain)
                if await wrapper.unwrap(context, new) != plain:
                    raise SealBroken("the new wrap does not open")
            except (SealBroken, KekDisabled, KekUnavailable) as error:
                progress.failed[str(row["id"])] = str(error)
                return None
        return row["id"], row["kek_uri"], new.kek_uri, new.blob

    while True:
        async with connections.platform() as connection:
            rows = await connection.fetch(
                "select id, tenant_id, kek_uri, wrapped from data_key where kek_uri <> $1 and id > $2 "
                "order by id limit $3",
                target,
                after,
                BATCH,
            )
        if not rows:
            progress.cursor = ""
            yield progress
            return
        after = rows[-1]["id"]
        fresh = [each for each in await asyncio.gather(*map(again, rows)) if each is not None]
        async with connections.platform() as connection:
            await connection.executemany(
                "update data_key set kek_uri = $3, wrapped = $4 where id = $1 and kek_uri = $2", fresh
            )
        progress.done += len(fresh)
        progress.cursor = str(after)
        yield progress


async def kek_references(connections: Connections) -> dict[str, int]:
    """Return how many data keys each KEK still wraps: one may be retired at zero only."""
    async with connections.platform() as connection:
        rows = await connection.fetch("select kek_uri, count(*) as n from data_key group by kek_uri order by kek_uri")
    return {row["kek_uri"]: row["n"] for row in rows}


async def new_data_key(
    connections: Connections, wrapper: KeyWrapper, tenant_id: UUID, *, random_bytes: RandomBytes = os.urandom
) -> UUID:
    """Give a tenant a new active data key; the old one goes on opening what it sealed."""
    key_id = uuid7()
    wrapped = await wrapper.wrap(wrap_context(tenant_id, key_id), random_bytes(KEY_BYTES))
    async with connections.tenant(tenant_id) as connection:
        await connection.execute("select 1 from tenant where id = $1 for no key update", tenant_id)
        version = await connection.fetchval("select coalesce(max(version), 0) + 1 from data_key")
        await connection.execute("update data_key set state = 'retired' where state = 'active'")
        await connection.execute(
            "insert into data_key (id, tenant_id, version, kek_uri, wrapped) values ($1, $2, $3, $4, $5)",
            key_id,
            tenant_id,
            version,
            wrapped.kek_uri,
            wrapped.blob,
        )
    return key_id
