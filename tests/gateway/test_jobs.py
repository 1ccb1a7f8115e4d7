"""Jobs and notifications outlive a server that refuses for a while; job runs are counted from the start."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import asyncpg
import pytest

from gateway.database import Change, Postgres
from gateway.jobs import Job, Jobs
from gateway.telemetry import Metrics
from tests.conftest import TestDatabase


class Refused(Postgres):
    """Tells when the server has refused a connection."""

    refused: asyncio.Event

    async def connect_directly(self) -> asyncpg.Connection[asyncpg.Record]:
        try:
            return await super().connect_directly()
        except asyncpg.PostgresError:
            self.refused.set()
            raise


@pytest.fixture
async def locked_out(test_database: TestDatabase) -> AsyncIterator[tuple[Refused, asyncpg.Connection[Any], str]]:
    """A role that may not log in, as after a change of `pg_hba.conf` or in a failover; and who may let it."""
    admin = await asyncpg.connect(test_database.owner_url)
    role, word = f"late_{secrets.token_hex(4)}", secrets.token_hex(8)
    await admin.execute(f"create role {role} nologin password '{word}' in role llm_proxy_app")
    place = test_database.owner_url.rsplit("@", 1)[1]
    postgres = Refused(f"postgresql://{role}:{word}@{place}")
    postgres.refused = asyncio.Event()
    yield postgres, admin, role
    await postgres.close()
    await admin.execute(f"drop role {role}")
    await admin.close()


@contextlib.asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_process_leads_once_the_server_takes_it(
    locked_out: tuple[Refused, asyncpg.Connection[Any], str],
) -> None:
    postgres, admin, role = locked_out
    ran = asyncio.Event()

    async def work() -> None:
        ran.set()

    jobs = Jobs(postgres, [Job("test", 60.0, work)], Metrics(), rng=random.Random(1))
    async with running(jobs.run()), asyncio.timeout(20):
        await postgres.refused.wait()
        await admin.execute(f"alter role {role} login")
        await ran.wait()


async def test_notifications_come_once_the_server_takes_the_process(
    locked_out: tuple[Refused, asyncpg.Connection[Any], str],
) -> None:
    postgres, admin, role = locked_out
    heard = asyncio.Event()

    def hear(_: Change) -> None:
        heard.set()

    async with running(postgres.listen(hear, retry_s=0.05)), asyncio.timeout(20):
        await postgres.refused.wait()
        await admin.execute(f"alter role {role} login")
        await heard.wait()


ANOTHER = """
import asyncio, logging, random, sys
from gateway.database import Postgres
from gateway.jobs import Job, Jobs
from gateway.telemetry import Metrics

async def work():
    pass

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
jobs = Jobs(Postgres(sys.argv[1]), [Job("test", 60.0, work)], Metrics(), rng=random.Random(1), silent_s=5.0)
asyncio.run(jobs.run())
"""


async def test_a_leader_that_is_stopped_is_replaced_and_notices_when_it_wakes(test_database: TestDatabase) -> None:
    ran = asyncio.Event()

    async def work() -> None:
        ran.set()

    postgres = Postgres(test_database.url)
    jobs = Jobs(postgres, [Job("test", 60.0, work)], Metrics(), rng=random.Random(2))
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ANOTHER, test_database.url, stdout=asyncio.subprocess.PIPE
    )
    assert other.stdout is not None
    try:
        async with asyncio.timeout(60):
            while b"this process leads" not in await other.stdout.readline():
                pass
            other.send_signal(signal.SIGSTOP)
            async with running(jobs.run()):
                await ran.wait()
                other.send_signal(signal.SIGCONT)
                while b"leads no more" not in await other.stdout.readline():
                    pass
    finally:
        other.kill()
        await other.wait()
        await postgres.close()


def test_a_job_that_never_ran_is_counted_too() -> None:
    async def work() -> None:
        """Do nothing."""

    metrics = Metrics()
    Jobs(Postgres("postgresql://nowhere/x"), [Job("hourly", 3600.0, work)], metrics, rng=random.Random(1))

    told = metrics.render().decode()

    assert 'llm_proxy_job_runs_total{result="failed",task="hourly"} 0.0' in told
