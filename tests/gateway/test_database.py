"""Transactions carry their row-level security context and no other; changes are heard; an absent server is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import text

from auth.principal import PLATFORM_TENANT_ID
from gateway.control.orm import OrmSessions
from gateway.database import EVERYTHING, Change, DatabaseAway, Postgres, parse_change
from gateway.embedded.postgres import UNSAFE_BUT_FAST, EmbeddedPostgres
from gateway.standing_connection import StandingConnection
from tests.conftest import APP_LOGIN, TestDatabase

A, B = UUID(int=0xA), UUID(int=0xB)
INSERT = "insert into tenant (id, slug, name) values ($1, $2, $2)"


@pytest.fixture
async def two_tenants(database: Postgres) -> None:
    async with database.platform() as connection:
        await connection.execute(INSERT, A, "a")
        await connection.execute(INSERT, B, "b")


async def eventually(check: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while True:
            answer = check()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("two_tenants")
class TestRowLevelSecurity:
    async def test_each_context_sees_its_own(self, database: Postgres, sessions: OrmSessions) -> None:
        count = "select count(*) from tenant"
        async with database.tenant(A) as connection:
            assert await connection.fetchval(count) == 1
        async with database.platform() as connection:
            assert await connection.fetchval(count) == 3
        async with sessions.tenant(B) as session:
            assert (await session.execute(text("select slug from tenant"))).scalars().all() == ["b"]
        async with sessions.platform() as session:
            assert (await session.execute(text(count))).scalar_one() == 3

    async def test_no_context_sees_nothing(self, test_database: TestDatabase) -> None:
        connection = await asyncpg.connect(test_database.url)
        assert await connection.fetchval("select count(*) from tenant") == 0
        await connection.close()

    async def test_the_context_ends_with_its_transaction(self, test_database: TestDatabase) -> None:
        postgres = Postgres(test_database.url, max_size=1)
        async with postgres.platform() as connection:
            before = await connection.fetchval("select pg_backend_pid()")
        async with postgres.tenant(uuid4()) as connection:
            assert await connection.fetchval("select pg_backend_pid()") == before
            assert await connection.fetchval("select count(*) from tenant") == 0
        await postgres.close()

    async def test_what_a_session_has_left_set_opens_nothing(self, test_database: TestDatabase) -> None:
        """As behind a pooler that hands on a server connection after a session has set its scope."""
        owner = await asyncpg.connect(test_database.owner_url)
        name = await owner.fetchval("select current_database()")
        await owner.execute(f"alter database {name} set app.scope = 'platform'")
        await owner.close()
        left = await asyncpg.connect(test_database.url)
        assert await left.fetchval("select count(*) from tenant") == 3
        await left.close()
        postgres, sessions = Postgres(test_database.url), OrmSessions(test_database.url)
        async with postgres.tenant(A) as connection:
            assert await connection.fetchval("select count(*) from tenant") == 1
        async with sessions.tenant(B) as session:
            assert (await session.execute(text("select slug from tenant"))).scalars().all() == ["b"]
        await postgres.close()
        await sessions.aclose()

    async def test_writing_another_tenants_row_is_refused(self, database: Postgres) -> None:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with database.tenant(A) as connection:
                await connection.execute(
                    "insert into quota (id, tenant_id, name, provider) values ($1, $2, 'q', 'x')", uuid4(), B
                )
        async with database.tenant(A) as connection:
            assert await connection.execute("update tenant set name = 'stolen' where id = $1", B) == "UPDATE 0"

    @pytest.mark.parametrize(
        "attack",
        [
            "alter table tenant disable row level security",
            "drop policy tenant_fence on tenant",
            "set role llm_proxy_owner",
            "set session authorization llm_proxy_owner",
            "delete from audit_event",
            "update alembic_version set version_num = 'x'",
            "create table mine (i int)",
            "copy tenant to program 'id'",
        ],
    )
    async def test_the_role_cannot_lift_its_fence(self, database: Postgres, attack: str) -> None:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with database.tenant(A) as connection:
                await connection.execute(attack)

    async def test_an_error_rolls_back(self, database: Postgres) -> None:
        async def change_and_fail() -> None:
            async with database.tenant(A) as connection:
                await connection.execute("update tenant set name = 'changed'")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await change_and_fail()
        async with database.tenant(A) as connection:
            assert await connection.fetchval("select name from tenant") == "a"

    async def test_a_callers_own_timeout_is_not_blamed_on_the_database(self, database: Postgres) -> None:
        with pytest.raises(TimeoutError):
            async with database.tenant(A):
                raise TimeoutError
        assert await database.ping()


class TestStoppedInMidTransaction:
    """What a stopped process has locked, or one whose machine is gone, is not locked for ever."""

    ASK = "select current_setting('idle_in_transaction_session_timeout')"

    async def test_the_server_ends_a_transaction_that_nobody_goes_on_with(
        self, database: Postgres, sessions: OrmSessions
    ) -> None:
        async with database.platform() as one, database.tenant(A) as two:
            assert [await one.fetchval(self.ASK), await two.fetchval(self.ASK)] == ["1min", "1min"]
        async with sessions.platform() as three, sessions.tenant(A) as four:
            told = [(await session.execute(text(self.ASK))).scalar_one() for session in (three, four)]
            assert told == ["1min", "1min"]

    async def test_sooner_where_the_operators_say_so(self, test_database: TestDatabase) -> None:
        owner = await asyncpg.connect(test_database.owner_url)
        await owner.execute(f"alter database {test_database.name} set idle_in_transaction_session_timeout = '10s'")
        await owner.close()
        postgres = Postgres(test_database.url)
        async with postgres.platform() as connection:
            assert await connection.fetchval(self.ASK) == "10s"
        await postgres.close()


class TestChanges:
    async def test_commits_are_heard(self, database: Postgres) -> None:
        heard: list[Change] = []
        task = asyncio.create_task(database.listen(heard.append))
        await eventually(lambda: heard == [EVERYTHING])
        async with database.platform() as connection:
            await connection.execute(INSERT, A, "a")
        await eventually(lambda: Change("tenant", A) in heard)
        task.cancel()

    async def test_a_killed_listener_comes_back(self, database: Postgres, test_database: TestDatabase) -> None:
        heard: list[Change] = []
        task = asyncio.create_task(database.listen(heard.append, retry_s=0.01))
        await eventually(lambda: heard == [EVERYTHING])
        admin = await asyncpg.connect(test_database.owner_url)
        await admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )
        await admin.close()
        await eventually(lambda: heard.count(EVERYTHING) == 2)
        async with database.platform() as connection:
            await connection.execute("update tenant set name = 'x' where id = $1", PLATFORM_TENANT_ID)
        await eventually(lambda: Change("tenant", PLATFORM_TENANT_ID) in heard)
        task.cancel()

    @pytest.mark.parametrize("payload", ["", "{", "[]", '{"tenant_id": "x"}', '{"table": "pool", "tenant_id": "x"}'])
    def test_a_notice_that_is_not_understood_means_everything(self, payload: str) -> None:
        assert parse_change(payload) == EVERYTHING


class TestAway:
    async def test_an_absent_server_is_told_and_a_returned_one_used(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="llm-proxy-away-"))
        server = EmbeddedPostgres(directory, settings=UNSAFE_BUT_FAST)
        try:
            address = await asyncio.to_thread(server.start)
            postgres, orm = Postgres(address.url()), OrmSessions(address.url())
            assert await postgres.ping()
            await asyncio.to_thread(server.stop)
            assert not await postgres.ping()
            with pytest.raises(DatabaseAway):
                async with postgres.platform():
                    pass
            with pytest.raises(DatabaseAway):
                async with orm.platform():
                    pass
            await postgres.close()
            await orm.aclose()
        finally:
            await asyncio.to_thread(server.stop)
            shutil.rmtree(directory, ignore_errors=True)


@contextlib.asynccontextmanager
async def led_to_a_standby(test_database: TestDatabase) -> AsyncIterator[None]:
    """Sessions that begin meanwhile take no writes for as long as they live: as those at a standby, in a failover."""
    owner = await asyncpg.connect(test_database.owner_url)
    of = f"alter role {APP_LOGIN} in database {test_database.name}"
    await owner.execute(f"{of} set default_transaction_read_only = on")
    try:
        yield
    finally:
        await owner.execute(f"{of} reset default_transaction_read_only")
        await owner.close()


class TestStandby:
    """A connection that was made to a standby would stay there for good."""

    async def test_the_pool_leaves_it(self, test_database: TestDatabase) -> None:
        postgres = Postgres(test_database.url, max_size=3)

        async def write(slug: str) -> None:
            async with postgres.platform() as connection:
                await connection.execute(INSERT, uuid4(), slug)

        async with led_to_a_standby(test_database):
            async with postgres.platform(), postgres.platform(), postgres.platform():
                pass  # all three are open now
            with pytest.raises(DatabaseAway):
                await write("early")
        for slug in ("a", "b", "c"):
            await write(slug)
        await postgres.close()

    async def test_a_standing_connection_leaves_it(self, test_database: TestDatabase) -> None:
        standing = StandingConnection(Postgres(test_database.url))
        async with led_to_a_standby(test_database):
            with pytest.raises(DatabaseAway):
                await standing.fetch(INSERT, A, "early")
        await standing.fetch(INSERT, A, "a")
        await standing.close()

    async def test_the_control_planes_sessions_leave_it(self, test_database: TestDatabase) -> None:
        sessions = OrmSessions(test_database.url)
        insert = text("insert into tenant (id, slug, name) values (:id, 'a', 'a')")
        async with led_to_a_standby(test_database):
            async with sessions.platform(), sessions.platform():
                pass
            with pytest.raises(DatabaseAway):
                async with sessions.platform() as session:
                    await session.execute(insert, {"id": A})
        async with sessions.platform() as one, sessions.tenant(B):
            await one.execute(insert, {"id": A})
        await sessions.aclose()


async def test_who_is_cancelled_does_not_wait_for_a_server_that_says_nothing(database: Postgres) -> None:
    asked = asyncio.get_running_loop().create_future()

    async def ask() -> None:
        async with database.platform() as connection:
            pid: int = await connection.fetchval("select pg_backend_pid()")
            os.kill(pid, signal.SIGSTOP)
            asked.set_result(pid)
            await connection.fetchval("select 1")

    asking = asyncio.create_task(ask())
    backend = await asked
    try:
        asking.cancel()
        await asyncio.wait({asking}, timeout=3)
        assert asking.cancelled()
    finally:
        os.kill(backend, signal.SIGCONT)
        await asyncio.wait({asking})
    async with database.platform() as connection:
        assert await connection.fetchval("select pg_backend_pid()") != backend
