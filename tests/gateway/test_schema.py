"""The migrations run up, down and up again, and leave a role that row-level security binds."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from gateway.control.orm import asyncpg_url
from gateway.embedded.postgres import Address
from gateway.schema import check_role, current_revision, downgrade, head_revision, known_revisions, migrate
from tests.conftest import TestDatabase


async def _tables(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("select tablename from pg_tables where schemaname = 'public'")
    finally:
        await connection.close()
    return {row["tablename"] for row in rows}


async def test_migrations_go_up_down_and_up(postgres_server: Address) -> None:
    name = f"m_{secrets.token_hex(4)}"
    admin = await asyncpg.connect(postgres_server.url())
    await admin.execute(f"create database {name}")
    url = postgres_server.url(name)
    try:
        assert await current_revision(url) is None
        await asyncio.to_thread(migrate, url)
        first = await _tables(url)
        assert await current_revision(url) == head_revision()
        await asyncio.to_thread(downgrade, url, "base")
        assert await _tables(url) == {"alembic_version"}
        await asyncio.gather(*(asyncio.to_thread(migrate, url) for _ in range(3)))
        assert await _tables(url) == first
    finally:
        await admin.execute(f"drop database {name} with (force)")
        await admin.close()


async def test_a_schema_of_a_newer_release_is_left_as_it_is(test_database: TestDatabase) -> None:
    """A pod of the former release that starts after an upgrade, or in a rollback, migrates first, too."""
    connection = await asyncpg.connect(test_database.owner_url)
    await connection.execute("update alembic_version set version_num = '9999'")
    command = [str(Path(sys.executable).with_name("llm-proxy")), "migrate"]
    environment = os.environ | {"LLM_PROXY_MIGRATION_URL": test_database.owner_url}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    ran = await asyncio.to_thread(run)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "newer release" in ran.stdout
    assert await connection.fetchval("select version_num from alembic_version") == "9999"
    with pytest.raises(CommandError):
        await asyncio.to_thread(downgrade, test_database.owner_url, "base")
    await connection.close()


async def test_the_gateways_role_is_bound_by_row_level_security(test_database: TestDatabase) -> None:
    app = await check_role(test_database.url)
    owner = await check_role(test_database.owner_url)
    assert app.safe
    assert (app.superuser, app.bypasses_rls, app.owns_tables) == (False, False, False)
    assert not owner.safe


async def test_every_table_with_a_tenant_is_fenced(test_database: TestDatabase) -> None:
    connection = await asyncpg.connect(test_database.owner_url)
    rows = await connection.fetch(
        "select c.relname, c.relrowsecurity and c.relforcerowsecurity as fenced from pg_class c "
        "join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' "
        "where c.relkind in ('r', 'p') and not c.relispartition and c.relnamespace = 'public'::regnamespace"
    )
    await connection.close()
    assert rows
    assert [row["relname"] for row in rows if not row["fenced"]] == []


def test_the_head_is_a_known_revision() -> None:
    assert head_revision() in known_revisions()


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("postgresql://u:p%40@h:5/d", "postgresql+asyncpg://u:p%40@h:5/d"),
        ("postgres://h/d", "postgresql+asyncpg://h/d"),
        ("postgresql://h/d?sslmode=require", "postgresql+asyncpg://h/d?ssl=require"),
        ("postgresql://u@/d?host=/run/pg", "postgresql+asyncpg://u@/d?host=/run/pg"),
    ],
)
def test_libpq_urls_become_sqlalchemys(given: str, made: str) -> None:
    assert asyncpg_url(given).render_as_string(hide_password=False).replace("%2F", "/") == made


def test_revisions_are_those_that_alembic_finds() -> None:
    scripts = ScriptDirectory("alembic")
    assert head_revision() == scripts.get_current_head()
    assert known_revisions() == {script.revision for script in scripts.walk_revisions()}
