"""Changing keys under stored data, online: new KEK over data keys, new data key under envelopes, and what still opens.

Rewrapping touches data keys only. Re-encrypting gives a tenant a new data key and moves every envelope to it. Both work
in small batches with compare-and-swap, hold no lock while a KMS is asked, and simply go on when they are started again.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from auth.storage import Connections
from tenants.custody import key_context
from tenants.datakeys import DataKeys, wrap_context
from tenants.envelope import KEY_BYTES, RandomBytes
from tenants.errors import KekDisabled, KekUnavailable, SealBroken
from tenants.keyring import KeyWrapper, Wrapped

BATCH: Final = 200


@dataclass(slots=True)
class Progress:
    """How far a job is; `failed` maps ids to reasons, and a second run tries those again."""

    done: int = 0
    total: int = 0
    failed: dict[UUID, str] = field(default_factory=dict)


async def rewrap_data_keys(connections: Connections, wrapper: KeyWrapper) -> AsyncIterator[Progress]:
    """Wrap every data key under the wrapper's current KEK; yields after each batch; run it until nothing failed."""
    probe = await wrapper.wrap(("kek-probe",), b"\0" * KEY_BYTES)  # tells the URI that new wraps carry
    target = probe.kek_uri
    async with connections.platform() as connection:
        total = await connection.fetchval("select count(*) from data_key where kek_uri <> $1", target)
    progress = Progress(total=total)
    after = UUID(int=0)
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
            yield progress
            return
        fresh = []
        for row in rows:
            after = row["id"]
            context = wrap_context(row["tenant_id"], row["id"])
            try:
                plain = await wrapper.unwrap(context, Wrapped(row["kek_uri"], bytes(row["wrapped"])))
                new = await wrapper.wrap(context, plain)
                if await wrapper.unwrap(context, new) != plain:
                    raise SealBroken("the new wrap does not open")
            except (SealBroken, KekDisabled, KekUnavailable) as error:
                progress.failed[row["id"]] = str(error)
                continue
            fresh.append((row["id"], row["kek_uri"], new.kek_uri, new.blob))
        async with connections.platform() as connection:
            await connection.executemany(
                "update data_key set kek_uri = $3, wrapped = $4 where id = $1 and kek_uri = $2", fresh
            )
        progress.done += len(fresh)
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


_ENVELOPES: Final = """
select v.id, v.tenant_id, v.number, v.data_key_id, v.envelope, k.id as key_id, k.pool_id, k.provider
from key_version v join provider_key k on k.tenant_id = v.tenant_id and k.id = v.key_id
where v.envelope is not null
"""


async def reencrypt(connections: Connections, data_keys: DataKeys, tenant_id: UUID) -> AsyncIterator[Progress]:
    """Move a tenant's key versions to its active data key; yields after each batch.

    A version that changes meanwhile is left to the next run. Sources and signing keys keep the retired data key.
    """
    async with connections.tenant(tenant_id) as connection:
        active = await connection.fetchval("select id from data_key where state = 'active'")
        total = await connection.fetchval(
            "select count(*) from key_version where envelope is not null and data_key_id <> $1", active
        )
    progress = Progress(total=total or 0)
    after = UUID(int=0)
    while active is not None:
        async with connections.tenant(tenant_id) as connection:
            rows = await connection.fetch(
                _ENVELOPES + "and v.data_key_id <> $1 and v.id > $2 order by v.id limit $3", active, after, BATCH
            )
        if not rows:
            break
        fresh = []
        for row in rows:
            after = row["id"]
            context = _context(row)
            try:
                plain = await data_keys.open(tenant_id, row["data_key_id"], context, bytes(row["envelope"]))
            except (SealBroken, KekDisabled) as error:
                progress.failed[row["id"]] = str(error)
                continue
            sealed = await data_keys.seal(tenant_id, context, plain)
            fresh.append((row["id"], bytes(row["envelope"]), sealed.data_key_id, sealed.blob))
        async with connections.tenant(tenant_id) as connection:
            await connection.executemany(
                "update key_version set data_key_id = $3, envelope = $4 where id = $1 and envelope = $2", fresh
            )
        progress.done += len(fresh)
        yield progress
    yield progress


async def verify_envelopes(connections: Connections, data_keys: DataKeys) -> AsyncIterator[Progress]:
    """Open every key version's envelope of every tenant; yields after each batch, `failed` names what does not open."""
    async with connections.platform() as connection:
        total = await connection.fetchval("select count(*) from key_version where envelope is not null")
    progress = Progress(total=total)
    after = UUID(int=0)
    while True:
        async with connections.platform() as connection:
            rows = await connection.fetch(_ENVELOPES + "and v.id > $1 order by v.id limit $2", after, BATCH)
        if not rows:
            yield progress
            return
        for row in rows:
            after = row["id"]
            try:
                await data_keys.open(row["tenant_id"], row["data_key_id"], _context(row), bytes(row["envelope"]))
            except (SealBroken, KekDisabled, KekUnavailable) as error:
                progress.failed[row["id"]] = str(error)
            progress.done += 1
        yield progress


def _context(row: asyncpg.Record) -> tuple[str, ...]:
    return key_context(row["pool_id"], row["key_id"], row["number"], row["provider"])
