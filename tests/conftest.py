"""Fixtures shared by every package: one embedded Postgres a test session, a fresh database a test that asks for one."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import hypothesis
import pytest

from auth.secret import Secret
from gateway.control.orm import OrmSessions
from gateway.database import Postgres
from gateway.embedded.postgres import UNSAFE_BUT_FAST, Address, EmbeddedPostgres
from gateway.schema import ensure_login, migrate

# Time is never asserted. In CI the same examples every time, so that a commit is green or not by itself; new ones are
# looked for elsewhere.
hypothesis.settings.register_profile("ours", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "ours")

APP_LOGIN = "llm_proxy_test"
TEMPLATE = "migrated"


@dataclass(frozen=True, slots=True)
class TestDatabase:
    """One database of its own: `owner_url` is the superuser's, `url` the role's that row-level security binds."""

    __test__ = False

    name: str
    url: str
    owner_url: str


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Address]:
    """An empty server that lives as long as the session (each xdist worker has its own)."""
    directory = Path(tempfile.mkdtemp(prefix="llm-proxy-tests-"))
    server = EmbeddedPostgres(directory, settings=UNSAFE_BUT_FAST)
    try:
        yield server.start()
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def migrated_server(postgres_server: Address) -> tuple[Address, Secret]:
    """The server with a migrated template database, and the password of the gateway's role."""
    password = Secret(secrets.token_urlsafe(16))

    async def prepare() -> None:
        await _execute(postgres_server.url(), f"create database {TEMPLATE}")

    with ThreadPoolExecutor(1) as executor:  # a loop of its own, whatever loop the test runner holds
        executor.submit(lambda: asyncio.run(prepare())).result()
        migrate(postgres_server.url(TEMPLATE))
        executor.submit(lambda: asyncio.run(ensure_login(postgres_server.url(TEMPLATE), APP_LOGIN, password))).result()
    return postgres_server, password


@pytest.fixture
async def test_database(migrated_server: tuple[Address, Secret]) -> AsyncIterator[TestDatabase]:
    """A fresh migrated database, dropped afterwards."""
    server, password = migrated_server
    name = f"t_{secrets.token_hex(6)}"
    await _execute(server.url(), f"create database {name} template {TEMPLATE}")
    yield TestDatabase(name, server.url(name, APP_LOGIN, password), server.url(name))
    await _execute(server.url(), f"drop database {name} with (force)")


@pytest.fixture
def postgres_url(test_database: TestDatabase) -> str:
    """The URL of a fresh migrated database for the gateway's own role."""
    return test_database.url


@pytest.fixture
async def database(test_database: TestDatabase) -> AsyncIterator[Postgres]:
    """asyncpg transactions (`auth.storage.Connections`) on a fresh migrated database."""
    postgres = Postgres(test_database.url, max_size=4)
    yield postgres
    await postgres.close()


@pytest.fixture
async def sessions(test_database: TestDatabase) -> AsyncIterator[OrmSessions]:
    """ORM transactions (`auth.storage.Sessions`) on the same fresh database as `database`."""
    orm = OrmSessions(test_database.url, pool_size=2)
    yield orm
    await orm.aclose()


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
