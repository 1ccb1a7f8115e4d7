"""A new KEK over data keys, online. Rewrapping touches data keys only: what they sealed stays as it is.

It works in small batches with compare-and-swap, holds no lock while a KMS is asked, and goes on when started again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from auth.errors import NotFound
from auth.principal import PLATFORM_TENANT_ID
from auth.storage import Connections
from tenants.envelope import KEY_BYTES, RandomBytes
from tenants.errors import KekDisabled, KekUnavailable, SealBroken
from tenants.keyring import KeyWrapper, Wrapped
from tenants.shares.layer import PREFIX, wrap_context
from tenants.shares.protocol import Shredded
from tenants.spare import NO_SPARE, SpareKek, wrap_spare

BATCH: Final = 200
AT_ONCE: Final = 16
"""Data keys that are at the KMS at a time: one after the other, 10,000 would take minutes."""


_STALE: Final = (
    "from data_key where id > $2 and (kek_uri <> $1 or ($3::text is not null and spare_uri is distinct from $3) "
    "or ($4 and spare_uri is not null))"
)
_COUNT: Final = f"select count(*) {_STALE}"
_PAGE: Final = f"select id, tenant_id, kek_uri, wrapped, spare_uri, spare_wrapped {_STALE} order by id limit {BATCH}"


_SWAP: Final = """
update data_key d set kek_uri = n.kek_uri, wrapped = n.wrapped, spare_uri = n.spare_uri, spare_wrapped = n.spare_wrapped
from unnest($1::uuid[], $2::bytea[], $3::bytea[], $4::text[], $5::bytea[], $6::text[], $7::bytea[])
  as n (id, was, spare_was, kek_uri, wrapped, spare_uri, spare_wrapped)
where d.id = n.id and d.wrapped = n.was and d.spare_wrapped is not distinct from n.spare_was
returning d.id
"""
"""A row that changed meanwhile keeps its change, and is not counted: a run that goes on finds it again."""


@dataclass(slots=True)
class Progress:
    """How far a job is; `failed` maps ids to reasons, and a second run tries those again.

    `cursor` is where a later run may go on, "" when nothing is left. `shredded` maps tenants whose share was destroyed
    to what was found of them: their rows are back from a backup, and neither done nor failed. `unchecked` counts spare
    wraps that nothing configured can open.
    """

    done: int = 0
    total: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    cursor: str = ""
    shredded: dict[str, str] = field(default_factory=dict)
    unchecked: int = 0


async def rewrap_data_keys(
    connections: Connections, wrapper: KeyWrapper, *, spare: SpareKek = NO_SPARE, cursor: str = ""
) -> AsyncIterator[Progress]:
    """Wrap every data key under the wrapper's current KEK, and its spare under the spare's.

    Yields after each batch; run it until nothing failed. A tenant whose share was destroyed is counted as shredded.
    """
    async for progress in _rewrap(connections, wrapper, spare, cursor=cursor, opener=None):
        yield progress


async def recover_data_keys(
    connections: Connections, wrapper: KeyWrapper, opener: KeyWrapper, *, spare: SpareKek = NO_SPARE, cursor: str = ""
) -> AsyncIterator[Progress]:
    """Wrap every data key under the wrapper's current KEK out of its spare wrap: when the KEK before is lost.

    `opener` unwraps spares; data keys without one that it opens fail. Resumable as `rewrap_data_keys` is.
    """
    async for progress in _rewrap(connections, wrapper, spare, cursor=cursor, opener=opener):
        yield progress


async def _rewrap(
    connections: Connections, wrapper: KeyWrapper, spare: SpareKek, *, cursor: str, opener: KeyWrapper | None
) -> AsyncIterator[Progress]:
    target = await _target(wrapper)
    spare_target = None if spare.wrapper is None else await _target(spare.wrapper)
    after = UUID(cursor) if cursor else UUID(int=0)
    wanted = (None, False) if opener is not None else (spare_target, spare.clear)
    async with connections.platform() as connection:
        total = await connection.fetchval(_COUNT, target, after, *wanted)
    progress = Progress(total=total)
    gate = asyncio.Semaphore(AT_ONCE)

    async def again(
        row: asyncpg.Record,
    ) -> tuple[UUID, bytes, bytes | None, str, bytes, str | None, bytes | None] | None:
        context = wrap_context(row["tenant_id"], row["id"])
        async with gate:
            try:
                if opener is None:
                    plain = await wrapper.unwrap(context, Wrapped(row["kek_uri"], bytes(row["wrapped"])))
                elif row["spare_uri"] is None:
                    raise SealBroken("there is no spare wrap")
                else:
                    plain = await opener.unwrap(context, Wrapped(row["spare_uri"], bytes(row["spare_wrapped"])))
                new = Wrapped(row["kek_uri"], bytes(row["wrapped"]))
                if new.kek_uri != target:
                    new = await wrapper.wrap(context, plain)
                    if await wrapper.unwrap(context, new) != plain:
                        raise SealBroken("the new wrap does not open")
                second = (row["spare_uri"], row["spare_wrapped"])
                if spare.clear:
                    second = (None, None)
                elif spare.wrapper is not None and row["spare_uri"] != spare_target:
                    made = await spare.wrapper.wrap(context, plain)
                    second = (made.kek_uri, made.blob)
            except Shredded as error:
                progress.shredded.setdefault(str(row["tenant_id"]), str(error))
                return None
            except (SealBroken, KekDisabled, KekUnavailable) as error:
                progress.failed[str(row["id"])] = str(error)
                return None
        return row["id"], bytes(row["wrapped"]), row["spare_wrapped"], new.kek_uri, new.blob, *second

    while True:
        async with connections.platform() as connection:
            rows = await connection.fetch(_PAGE, target, after, *wanted)
        if not rows:
            progress.cursor = ""
            yield progress
            return
        after = rows[-1]["id"]
        fresh = [each for each in await asyncio.gather(*map(again, rows)) if each is not None]
        async with connections.platform() as connection:
            swapped = await connection.fetch(_SWAP, *zip(*fresh, strict=True)) if fresh else []
        progress.done += len(swapped)
        progress.cursor = str(after)
        yield progress


async def _target(wrapper: KeyWrapper) -> str:
    """Return the URI that new wraps carry: a KMS with versions tells it only with a wrap."""
    probe = await wrapper.wrap(wrap_context(PLATFORM_TENANT_ID, UUID(int=0)), b"\0" * KEY_BYTES)
    return probe.kek_uri


async def new_data_key(
    connections: Connections,
    wrapper: KeyWrapper,
    tenant_id: UUID,
    *,
    spare: SpareKek = NO_SPARE,
    random_bytes: RandomBytes = os.urandom,
) -> UUID:
    """Give a tenant a new active data key; the old one goes on opening what it sealed.

    A tenant that has a share must still have it: `ShareMissing` when the wrong store is configured, which would give
    it a second one.
    """
    key_id, key = uuid7(), random_bytes(KEY_BYTES)
    async with connections.tenant(tenant_id) as connection:
        shared = await connection.fetchrow(
            "select id, kek_uri, wrapped from data_key where kek_uri like $1 order by version desc limit 1",
            f"{PREFIX}%",
        )
    if shared is not None:
        before = Wrapped(shared["kek_uri"], bytes(shared["wrapped"]))
        with suppress(KekDisabled, SealBroken):  # reasons for a new data key; a missing share is none
            await wrapper.unwrap(wrap_context(tenant_id, shared["id"]), before)
    wrapped = await wrapper.wrap(wrap_context(tenant_id, key_id), key)
    second = await wrap_spare(spare, tenant_id, key_id, key)
    async with connections.tenant(tenant_id) as connection:
        if await connection.fetchval("select 1 from tenant where id = $1 for no key update", tenant_id) is None:
            raise NotFound("The tenant does not exist.", hint="`llm-proxy tenant list` shows ids.")
        version = await connection.fetchval("select coalesce(max(version), 0) + 1 from data_key")
        await connection.execute("update data_key set state = 'retired' where state = 'active'")
        await connection.execute(
            "insert into data_key (id, tenant_id, version, kek_uri, wrapped, spare_uri, spare_wrapped) "
            "values ($1, $2, $3, $4, $5, $6, $7)",
            key_id,
            tenant_id,
            version,
            wrapped.kek_uri,
            wrapped.blob,
            None if second is None else second.kek_uri,
            None if second is None else second.blob,
        )
    return key_id
