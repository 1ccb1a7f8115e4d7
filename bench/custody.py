"""What custody costs: sealing and opening, a new KEK over many data keys, a new data key under many versions.

Run: python bench/custody.py [data keys] [key versions]     (10,000 and 100,000 unless given)

Envelopes: the best of five runs on one core. The jobs run against an embedded Postgres with fsync off, so they show
what the gateway costs, not what a disk does; a remote KMS adds its own round trips to rewrapping, sixteen at a time.
While versions are re-encrypted, a reader opens random ones all the time: its slowest read is shown.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
from uuid_utils.compat import uuid7

from auth.secret import Secret
from gateway.database import Postgres
from gateway.embedded.postgres import UNSAFE_BUT_FAST, EmbeddedPostgres
from gateway.schema import ensure_login, migrate
from tenants.custody import key_context
from tenants.datakeys import DataKeys, wrap_context
from tenants.envelope import Context, open_sealed, seal
from tenants.keyring import LocalKeyring
from tenants.reencryption import reencrypt
from tenants.rewrap import new_data_key, rewrap_data_keys

OLD, NEW = bytes(range(32)), bytes(range(32, 64))
SECRET = b"sk-proj-" + b"x" * 156
VERSIONS_A_KEY = 100


def best_us(run: object, rounds: int) -> float:
    """Return microseconds a call: the best of five runs."""
    assert callable(run)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(rounds):
            run()
        times.append((time.perf_counter() - begin) / rounds * 1e6)
    return min(times)


def envelopes() -> None:
    key, context = os.urandom(32), Context(uuid4(), uuid4(), key_context(uuid4(), uuid4(), 1, "openai"))
    blob = seal(key, context, SECRET, random_bytes=os.urandom)
    print(f"seal {best_us(lambda: seal(key, context, SECRET, random_bytes=os.urandom), 2000):8.1f} µs")
    print(f"open {best_us(lambda: open_sealed(key, context, blob), 2000):8.1f} µs   ({len(SECRET)} bytes)")


async def plant_data_keys(owner: asyncpg.Connection[asyncpg.Record], count: int) -> None:
    keyring = LocalKeyring([OLD])
    tenants, rows = [], []
    for number in range(count):
        tenant_id, key_id = uuid7(), uuid7()
        wrapped = await keyring.wrap(wrap_context(tenant_id, key_id), os.urandom(32))
        tenants.append((tenant_id, f"t-{number}", f"t-{number}"))
        rows.append((key_id, tenant_id, 1, wrapped.kek_uri, wrapped.blob))
    await owner.copy_records_to_table("tenant", records=tenants, columns=["id", "slug", "name"])
    columns = ["id", "tenant_id", "version", "kek_uri", "wrapped"]
    await owner.copy_records_to_table("data_key", records=rows, columns=columns)


async def plant_versions(
    owner: asyncpg.Connection[asyncpg.Record], data_keys: DataKeys, tenant_id: UUID, count: int
) -> list[tuple[UUID, tuple[str, ...]]]:
    pool_id, quota_id = uuid7(), uuid7()
    keys, versions, known = [], [], []
    for place in range(max(count // VERSIONS_A_KEY, 1)):
        key_id = uuid7()
        keys.append((key_id, tenant_id, pool_id, quota_id, f"k-{place}", "openai"))
        for number in range(1, VERSIONS_A_KEY + 1):
            context = key_context(pool_id, key_id, number, "openai")
            sealed = await data_keys.seal(tenant_id, context, SECRET)
            state = "current" if number == VERSIONS_A_KEY else "disabled"
            versions.append((uuid7(), tenant_id, key_id, number, state, sealed.data_key_id, sealed.blob, "", ""))
            known.append((versions[-1][0], context))
    await owner.execute(
        "insert into pool (id, tenant_id, name, strategy) values ($1, $2, 'p', 'weighted')", pool_id, tenant_id
    )
    await owner.execute(
        "insert into quota (id, tenant_id, name, provider) values ($1, $2, 'q', 'openai')", quota_id, tenant_id
    )
    columns = ["id", "tenant_id", "pool_id", "quota_id", "name", "provider"]
    await owner.copy_records_to_table("provider_key", records=keys, columns=columns)
    columns = ["id", "tenant_id", "key_id", "number", "state", "data_key_id", "envelope", "prefix", "fingerprint"]
    # Every row moves the tenant's revision: in one transaction that is quadratic, and is not what is measured here.
    await owner.execute("alter table key_version disable trigger announce")
    await owner.copy_records_to_table("key_version", records=versions, columns=columns)
    await owner.execute("alter table key_version enable trigger announce")
    return known


async def rewrapping(postgres: Postgres, owner: asyncpg.Connection[asyncpg.Record], count: int) -> None:
    await plant_data_keys(owner, count)
    begin = time.perf_counter()
    done = 0
    async for progress in rewrap_data_keys(postgres, LocalKeyring([NEW, OLD])):
        done = progress.done
    took = time.perf_counter() - begin
    print(f"rewrap {done} data keys: {took:.1f} s, {done / took:.0f} a second")


async def reencryption(postgres: Postgres, owner: asyncpg.Connection[asyncpg.Record], count: int) -> None:
    tenant_id = uuid7()
    await owner.execute("insert into tenant (id, slug, name) values ($1, 'big', 'big')", tenant_id)
    data_keys = DataKeys(postgres, LocalKeyring([NEW]))
    known = await plant_versions(owner, data_keys, tenant_id, count)
    await new_data_key(postgres, data_keys.wrapper, tenant_id)
    reads: list[float] = []
    draw, finished = random.Random(1), asyncio.Event()

    async def read() -> None:
        while not finished.is_set():
            version_id, context = draw.choice(known)
            began = time.perf_counter()
            async with postgres.tenant(tenant_id) as connection:
                row = await connection.fetchrow(
                    "select data_key_id, envelope from key_version where id = $1", version_id
                )
            assert row is not None
            assert await data_keys.open(tenant_id, row["data_key_id"], context, bytes(row["envelope"])) == SECRET
            reads.append(time.perf_counter() - began)

    reader = asyncio.create_task(read())
    begin = time.perf_counter()
    done = 0
    async for progress in reencrypt(postgres, data_keys, tenant_id):
        done = progress.done
        assert not progress.failed
    took = time.perf_counter() - begin
    finished.set()
    await reader
    reads.sort()
    print(f"re-encrypt {done} versions: {took:.1f} s, {done / took:.0f} a second")
    middle, worst = reads[len(reads) // 2] * 1e3, reads[-1] * 1e3
    print(f"meanwhile {len(reads)} reads, none failed: median {middle:.1f} ms, slowest {worst:.1f} ms")


async def jobs(url: str, owner_url: str, data_keys: int, versions: int) -> None:
    postgres = Postgres(url, max_size=4)
    owner = await asyncpg.connect(owner_url)
    await rewrapping(postgres, owner, data_keys)
    await reencryption(postgres, owner, versions)
    await owner.close()
    await postgres.close()


def main(data_keys: int, versions: int) -> None:
    envelopes()
    directory = Path(tempfile.mkdtemp(prefix="llm-proxy-bench-"))
    server = EmbeddedPostgres(directory, settings=UNSAFE_BUT_FAST)
    try:
        address = server.start()
        password = Secret(secrets.token_urlsafe(16))
        migrate(address.url())
        asyncio.run(ensure_login(address.url(), "bench", password))
        database = address.url().rpartition("/")[2].partition("?")[0]
        asyncio.run(jobs(address.url(database, "bench", password), address.url(), data_keys, versions))
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:3]]
    main(*(given + [10_000, 100_000][len(given) :]))
