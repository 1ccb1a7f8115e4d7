"""Row-level security, attacked: what the gateway's role can reach with SQL alone."""

from __future__ import annotations

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from auth.storage import Connections
from tests.tenants.conftest import Plant

TABLES = (
    "tenant",
    "data_key",
    "pool",
    "quota",
    "provider_key",
    "key_version",
    "key_source",
    "idempotency_key",
    "oauth_client",
    "client_secret",
    "signing_key",
    "token_revocation",
    "audit_event",
    "usage_event",
    "request_explanation",
)


async def test_without_a_context_nothing_exists(postgres_url: str, plant: Plant) -> None:
    await plant("acme")
    connection = await asyncpg.connect(postgres_url)
    try:
        for table in TABLES:
            assert await connection.fetchval(f"select count(*) from {table}") == 0, table
            assert (
                await connection.execute(f"delete from {table} where false") == "DELETE 0"
                if table not in ("audit_event",)
                else True
            )
    finally:
        await connection.close()


async def test_one_tenant_cannot_see_or_change_another(database: Connections, plant: Plant) -> None:
    a, b = await plant("a"), await plant("b")
    async with database.tenant(a.tenant_id) as connection:
        for table, column in {name: "id" if name == "tenant" else "tenant_id" for name in TABLES}.items():
            foreign = await connection.fetchval(f"select count(*) from {table} where {column} <> $1", a.tenant_id)
            assert foreign == 0, table
        assert await connection.execute("update provider_key set weight = 9 where id = $1", b.key_id) == "UPDATE 0"
        assert await connection.execute("delete from pool where id = $1", b.pool_id) == "DELETE 0"


FOREIGN_WRITES = (
    "insert into pool (id, tenant_id, name, strategy) values (gen_random_uuid(), $1, 'x', 'weighted')",
    "update pool set tenant_id = $1",
    (
        "insert into audit_event (id, tenant_id, seq, at, actor, action, subject, previous_hash, hash) "
        "values (gen_random_uuid(), $1, 9, now(), 'x', 'x', 'x', '', '')"
    ),
    "insert into token_revocation (jti, tenant_id, expires_at) values ('j', $1, now())",
)


async def test_no_row_is_written_for_another_tenant(database: Connections, plant: Plant) -> None:
    a, b = await plant("a"), await plant("b")
    for attack in FOREIGN_WRITES:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with database.tenant(a.tenant_id) as connection:
                await connection.execute(attack, b.tenant_id)


async def test_a_key_cannot_point_into_another_tenant(database: Connections, plant: Plant) -> None:
    a, b = await plant("a"), await plant("b")
    for column, foreign in (("pool_id", b.pool_id), ("quota_id", b.quota_id)):
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            async with database.tenant(a.tenant_id) as connection:
                await connection.execute(f"update provider_key set name = 'mine', {column} = $1", foreign)


FENCE_BREAKERS = (
    "alter table provider_key disable row level security",
    "alter table provider_key no force row level security",
    "drop policy tenant_fence on provider_key",
    "alter role current_user bypassrls",
    "set role postgres",
    "set session authorization postgres",
    "create policy open on provider_key using (true)",
    "create or replace function app_sees(row_tenant uuid) returns boolean language sql as 'select true'",
    "create table mine (x int)",
    "truncate pool cascade",
    "update audit_event set actor = 'someone else'",
    "delete from audit_event",
    "delete from alembic_version",
    "copy tenant to program 'cat'",
)


async def test_the_role_cannot_open_the_fence(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        for attack in FENCE_BREAKERS:
            with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.InvalidParameterValueError)):
                await connection.execute(attack)
    finally:
        await connection.close()


async def test_the_role_is_an_ordinary_one(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        row = await connection.fetchrow(
            "select rolsuper, rolbypassrls, rolcreaterole, rolcreatedb from pg_roles where rolname = current_user"
        )
        assert row is not None
        assert not any(row.values())
        owned = "select count(*) from pg_tables where schemaname = 'public' and tableowner = current_user"
        assert await connection.fetchval(owned) == 0
        open_tables = (
            "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') "
        )
        rows = await connection.fetch(open_tables + "and not (relrowsecurity and relforcerowsecurity)")
        assert {row["relname"] for row in rows} <= {"alembic_version"}
    finally:
        await connection.close()


async def test_the_context_ends_with_its_transaction(database: Connections, plant: Plant) -> None:
    planted = await plant("acme")
    async with database.tenant(planted.tenant_id) as connection:
        assert await connection.fetchval("select count(*) from pool") == 1
    async with database.tenant(uuid7()) as connection:
        assert await connection.fetchval("select count(*) from pool") == 0
