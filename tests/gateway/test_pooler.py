"""Behind a pooler in transaction mode, as a PgBouncer is: what works there, and what is refused at the start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from sqlalchemy import text

from gateway.control.orm import OrmSessions
from gateway.database import Postgres
from gateway.preflight import database_findings
from gateway.settings import read_settings
from tests.conftest import TestDatabase
from tests.e2e.production import PROGRAM, environment_for
from tests.fakes.transaction_pooler import TransactionPooler


@pytest.fixture
async def pooled_url(test_database: TestDatabase) -> AsyncIterator[str]:
    parts = urlsplit(test_database.url)
    assert parts.port is not None
    pooler = TransactionPooler(parts.port)
    port = await pooler.start()
    yield test_database.url.replace(f":{parts.port}/", f":{port}/")
    await pooler.stop()


async def test_processes_do_not_stumble_over_each_others_statements(
    pooled_url: str, test_database: TestDatabase, tmp_path: Path
) -> None:
    """The first statement of each of them would have the same name in the session that they share."""
    past = {"DATABASE_DIRECT_URL": test_database.url, "LLM_PROXY_STATEMENT_CACHE": "0"}
    environment = environment_for(pooled_url, tmp_path, 8080, **past)
    for words in (("config", "check"), ("bootstrap", "--json"), ("config", "check")):
        process = await asyncio.create_subprocess_exec(
            PROGRAM, *words, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        told, _ = await process.communicate()
        assert process.returncode == 0, told.decode()


async def test_what_lives_with_a_session_wants_a_url_past_it(pooled_url: str, test_database: TestDatabase) -> None:
    for given, named in (
        ({"DATABASE_URL": pooled_url}, "DATABASE_URL leads"),
        ({"DATABASE_URL": test_database.url, "DATABASE_DIRECT_URL": pooled_url}, "DATABASE_DIRECT_URL leads"),
    ):
        (found,) = await database_findings(read_settings(given))
        assert found[0] == "DATABASE_DIRECT_URL"
        assert named in found[1]


async def test_transactions_of_two_processes_go_through_it(pooled_url: str) -> None:
    in_all = 0
    insert, count = "insert into tenant (id, slug, name) values ({}, {}, 'x')", "select count(*) from tenant"
    for slug in ("one", "two"):
        postgres = Postgres(pooled_url, statement_cache_size=0, max_size=1)
        sessions = OrmSessions(pooled_url, pool_size=1, max_overflow=0, statement_cache_size=0)
        async with postgres.platform() as connection:
            await connection.execute(insert.format("$1", "$2"), uuid4(), f"{slug}-a")
        async with sessions.platform() as session:
            await session.execute(text(insert.format(":id", ":slug")), {"id": uuid4(), "slug": f"{slug}-b"})
            in_all = (await session.execute(text(count))).scalar_one()
        await postgres.close()
        await sessions.aclose()
    assert in_all == 5
