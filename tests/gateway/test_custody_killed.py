"""kill -9 in the middle of rewrapping, re-encrypting and shredding; the next run goes on, and everything opens.

The programs are real processes. They are killed where they wait: for a Vault that hangs, or for a row that is locked.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from click.testing import CliRunner
from uuid_utils.compat import uuid7

from auth.errors import Fault
from gateway.cli.program import program
from gateway.control.orm import OrmSessions
from gateway.database import Postgres
from tenants.custody import key_context
from tenants.datakeys import DataKeys
from tenants.keyring import LocalKeyring
from tenants.sealed_rows import BATCH
from tenants.shares.files import FileShares
from tenants.shares.layer import ShareLayer, wrap_context
from tenants.store import tenants as tenants_store
from tests.conftest import TestDatabase
from tests.e2e.vault import RunningVault, running_vault
from tests.tenants.kms_servers import TOKEN

PROGRAM = str(Path(sys.executable).parent / "llm-proxy")
KEK = bytes(range(32))
AT = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
async def owner(test_database: TestDatabase) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(test_database.owner_url)
    yield connection
    await connection.close()


@pytest.fixture
def vault() -> Iterator[RunningVault]:
    with running_vault() as running:
        yield running


def environment(database: TestDatabase, **variables: str) -> dict[str, str]:
    return {
        **os.environ,
        "DATABASE_URL": database.url,
        "LLM_PROXY_KEK": "env",
        "LLM_PROXY_KEK_KEYS": base64.b64encode(KEK).decode(),
        **variables,
    }


async def finish(*arguments: str, env: dict[str, str]) -> str:
    """Run a command to its end, in this process: starting a program costs more than what it does here."""
    done = await asyncio.to_thread(CliRunner().invoke, program, ["kek", *arguments], env=env)
    assert done.exit_code == 0, done.stderr + repr(done.exception)
    return done.stdout


async def killed(*arguments: str, env: dict[str, str], waits: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """Run a command until `waits` says that it is where it should be killed."""
    process = subprocess.Popen([PROGRAM, "kek", *arguments], env=env, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            assert process.poll() is None, "it ended by itself"
            if await waits():
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError("it never came where it should be killed")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


async def plant_tenants(owner: asyncpg.Connection[asyncpg.Record], count: int) -> list[UUID]:
    keyring = LocalKeyring([KEK])
    tenants = [uuid7() for _ in range(count)]
    rows = []
    for tenant_id in tenants:
        key_id = uuid7()
        wrapped = await keyring.wrap(wrap_context(tenant_id, key_id), os.urandom(32))
        rows.append((key_id, tenant_id, 1, wrapped.kek_uri, wrapped.blob))
    names = [(tenant_id, f"t-{n}", f"t-{n}") for n, tenant_id in enumerate(tenants)]
    await owner.copy_records_to_table("tenant", records=names, columns=["id", "slug", "name"])
    columns = ["id", "tenant_id", "version", "kek_uri", "wrapped"]
    await owner.copy_records_to_table("data_key", records=rows, columns=columns)
    return tenants


async def test_rewrapping(
    test_database: TestDatabase, owner: asyncpg.Connection[asyncpg.Record], vault: RunningVault
) -> None:
    total = BATCH + 40
    await plant_tenants(owner, total)
    env = environment(test_database, LLM_PROXY_KEK=f"{vault.kek},env", VAULT_TOKEN=TOKEN)
    moved = "select count(*) from data_key where kek_uri like 'vault:%'"

    async def in_the_second_batch() -> bool:
        if await owner.fetchval(moved) < BATCH:
            return False
        vault.hang()
        return True

    # Two calls a data key and one for the target: the Vault stops answering in the middle of the second batch.
    vault.hang_after = 2 * BATCH + 11
    await killed("rewrap", env=env, waits=in_the_second_batch)
    assert await owner.fetchval(moved) == BATCH
    vault.hang_after = None
    vault.release()
    assert f"{total} of {total} done" in await finish("verify", env=env), "half way everything opens"
    assert "40 of 40 done" in await finish("rewrap", env=env)
    only_the_new = environment(test_database, LLM_PROXY_KEK=vault.kek, VAULT_TOKEN=TOKEN)
    assert f"{total} of {total} done" in await finish("verify", env=only_the_new)


async def test_re_encrypting(test_database: TestDatabase, owner: asyncpg.Connection[asyncpg.Record]) -> None:
    tenant_id, pool_id, quota_id, key_id = uuid7(), uuid7(), uuid7(), uuid7()
    await owner.execute("insert into tenant (id, slug, name) values ($1, 't', 't')", tenant_id)
    await owner.execute(
        "insert into pool (id, tenant_id, name, strategy) values ($1, $2, 'p', 'x')", pool_id, tenant_id
    )
    await owner.execute(
        "insert into quota (id, tenant_id, name, provider) values ($1, $2, 'q', 'openai')", quota_id, tenant_id
    )
    await owner.execute(
        "insert into provider_key (id, tenant_id, pool_id, quota_id, name, provider) values ($1, $2, $3, $4, 'k', 'x')",
        key_id,
        tenant_id,
        pool_id,
        quota_id,
    )
    postgres = Postgres(test_database.url, max_size=2)
    data_keys = DataKeys(postgres, LocalKeyring([KEK]))
    total = BATCH + 40
    versions = []
    for number in range(1, total + 1):
        sealed = await data_keys.seal(tenant_id, key_context(pool_id, key_id, number, "x"), b"sk-secret")
        versions.append((uuid7(), tenant_id, key_id, number, "disabled", sealed.data_key_id, sealed.blob))
    columns = ["id", "tenant_id", "key_id", "number", "state", "data_key_id", "envelope"]
    await owner.copy_records_to_table("key_version", records=versions, columns=columns)
    old = versions[0][5]
    moved = f"select count(*) from key_version where data_key_id <> '{old}'"
    env = environment(test_database)

    lock = owner.transaction()
    await lock.start()
    await owner.execute("select 1 from key_version where id = $1 for update", versions[-1][0])
    watcher = await asyncpg.connect(test_database.owner_url)

    async def at_the_locked_row() -> bool:
        waiting = (
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        )
        return bool(await watcher.fetchval(waiting))

    await killed("reencrypt", str(tenant_id), env=env, waits=at_the_locked_row)
    assert await watcher.fetchval(moved) == BATCH
    await watcher.close()
    await lock.rollback()
    data_keys_before = await owner.fetchval("select count(*) from data_key")
    assert f"{total + 2} of {total + 2} done" in await finish("verify", env=env), "half way everything opens"
    assert "40 of 40 done" in await finish("reencrypt", str(tenant_id), env=env)
    assert await owner.fetchval("select count(*) from data_key") == data_keys_before == 2, "it went on, not anew"
    assert await owner.fetchval(moved) == total
    assert f"{total + 2} of {total + 2} done" in await finish("verify", env=env)
    await finish("reencrypt", str(tenant_id), env=env)
    assert await owner.fetchval("select count(*) from data_key") == 3, "a finished one is begun anew"
    await postgres.close()


async def test_shredding(
    test_database: TestDatabase, owner: asyncpg.Connection[asyncpg.Record], tmp_path: Path
) -> None:
    shares = FileShares(tmp_path / "shares", create=True)
    postgres, sessions = Postgres(test_database.url, max_size=2), OrmSessions(test_database.url, pool_size=1)
    keys = DataKeys(postgres, ShareLayer(LocalKeyring([KEK]), shares))
    tenants = [uuid7() for _ in range(3)]
    for tenant_id in tenants:
        await owner.execute("insert into tenant (id, slug, name) values ($1, $2, 't')", tenant_id, str(tenant_id))
        await keys.seal(tenant_id, ("x",), b"x")
    for tenant_id in tenants[:2]:
        async with sessions.platform() as session:
            tenant = await tenants_store.get(session, tenant_id, for_change=True)
            await tenants_store.remove(session, tenant, at=AT)
    env = environment(test_database, LLM_PROXY_KEK_SHARES=shares.uri)

    lock = owner.transaction()
    await lock.start()
    await owner.execute("select 1 from tenant_shredding for update")

    async def destroyed_and_not_noted() -> bool:
        return len(await shares.shredded()) > 0

    await killed("shred", env=env, waits=destroyed_and_not_noted)
    await lock.rollback()
    assert len(await shares.shredded()) == 1
    assert await owner.fetchval("select count(*) from tenant_shredding where done_at is not null") == 0
    assert "2 of 2 done" in await finish("shred", env=env)
    assert set(await shares.shredded()) == set(tenants[:2])
    assert await owner.fetchval("select count(*) from audit_event where action = 'tenant.shred'") == 2
    assert await shares.get(tenants[2])
    assert "nothing to do" in await finish("shred", env=env)
    shown = await finish("shredded", env=env)
    assert all(str(tenant_id) in shown for tenant_id in tenants[:2])
    assert "1 of 1 done" in await finish("verify", env=env)
    await sessions.aclose()
    await postgres.close()


async def test_a_tampered_row_is_named(test_database: TestDatabase, owner: asyncpg.Connection[asyncpg.Record]) -> None:
    await plant_tenants(owner, 3)
    row = await owner.fetchval(
        "update data_key set wrapped = set_byte(wrapped, 20, 255 - get_byte(wrapped, 20)) "
        "where id = (select id from data_key order by id limit 1) returning id"
    )
    done = await asyncio.to_thread(CliRunner().invoke, program, ["kek", "verify"], env=environment(test_database))
    assert "2 of 3 done" in done.stdout
    assert f"data_keys:{row}: the wrapped data key was changed or moved to another row" in done.stderr
    assert isinstance(done.exception, Fault)
    assert "1 failed" in done.exception.public
