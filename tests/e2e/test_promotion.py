"""Postgres fails over: the primary is killed under load, its standby is promoted, and the gateway goes on with that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import asyncpg
import httpx2

from gateway.jobs import LEADER_LOCK
from tests.e2e.conftest import free_port
from tests.e2e.production import Installation, InterruptiblePostgres, installation_over
from tests.e2e.provider import run_provider
from tests.e2e.standby import REPLICATED
from tests.e2e.test_postgres_away import chat, eventually_rows, pool_of, usage_rows

CONFIG = {"keys": [{"secret": "sk-sim-one-000000000000", "name": "one"}]}
CALLERS = 8


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


async def manages(client: httpx2.AsyncClient, name: str) -> None:
    """Wait until the management API has taken a write; until then it says that the database is away."""
    async with asyncio.timeout(60):
        while (made := await client.post("/api/v1/pools", json={"name": name})).status_code != 201:
            assert made.status_code == 503, made.text
            await asyncio.sleep(0.05)


async def leases(running: Installation) -> int:
    connection = await asyncpg.connect(running.postgres.owner_url)
    try:
        return int(await connection.fetchval("select count(*) from quota_lease"))
    finally:
        await connection.close()


async def leaders(running: Installation) -> int:
    """Count who holds the jobs' lock at the server that the fixed port leads to."""
    connection = await asyncpg.connect(running.postgres.owner_url)
    try:
        return int(
            await connection.fetchval(
                "select count(*) from pg_locks where locktype = 'advisory' and granted and classid = $1 and objid = $2",
                LEADER_LOCK >> 32,
                LEADER_LOCK & 0xFFFFFFFF,
            )
        )
    finally:
        await connection.close()


async def test_a_promoted_synchronous_standby_has_every_row_and_no_request_fails(tmp_path: Path) -> None:
    port = free_port()
    postgres = InterruptiblePostgres(tmp_path / "postgres", settings=REPLICATED)
    with run_provider(tmp_path, CONFIG) as provider:
        async with (
            installation_over(postgres, tmp_path, port, LLM_PROXY_USAGE_SPOOL=str(tmp_path / "spool")) as running,
            postgres.standby() as standby,
        ):
            await standby.wait_for_it()
            base_url = await running.start("serve", port)
            token = await asyncio.to_thread(running.new_tenant, base_url, "acme", pool_of(provider, "one"))
            headers = {"authorization": f"Bearer {token}"}
            statuses: list[int] = []
            stop = asyncio.Event()
            async with httpx2.AsyncClient(base_url=base_url, headers=headers, timeout=30) as client:

                async def call(*, stream: bool) -> None:
                    while not stop.is_set():
                        statuses.append(await chat(client, stream=stream))

                async def more(count: int = 200) -> None:
                    goal = len(statuses) + count
                    await until(lambda: len(statuses) >= goal)

                calling = [asyncio.create_task(call(stream=n % 2 == 0)) for n in range(CALLERS)]
                await more()
                await manages(client, "before")
                await postgres.kill()
                await more()
                await postgres.fail_over(standby)
                await more()
                await manages(client, "after")
                stop.set()
                await asyncio.gather(*calling)
                assert await standby.timeline() == 2
                assert set(statuses) == {200}
                assert await eventually_rows(running, len(statuses)) == len(statuses)
                pools = (await client.get("/api/v1/pools")).json()["items"]
                assert {each["name"] for each in pools} == {"main", "before", "after"}
                # A standby does not get this table's rows: they were made anew, of what the process holds.
                async with asyncio.timeout(30):
                    while not await leases(running):
                        await asyncio.sleep(0.05)


async def test_what_an_asynchronous_standby_has_not_got_is_lost_with_its_primary(tmp_path: Path) -> None:
    """No bug to mend: it is what such a standby means, and why docs/faults.md asks for a synchronous one."""
    port = free_port()
    postgres = InterruptiblePostgres(tmp_path / "postgres", settings=REPLICATED)
    with run_provider(tmp_path, CONFIG) as provider:
        async with (
            installation_over(postgres, tmp_path, port, LLM_PROXY_USAGE_SPOOL=str(tmp_path / "spool")) as running,
            postgres.standby() as standby,
        ):
            base_url = await running.start("serve", port)
            token = await asyncio.to_thread(running.new_tenant, base_url, "acme", pool_of(provider, "one"))
            headers = {"authorization": f"Bearer {token}"}
            async with httpx2.AsyncClient(base_url=base_url, headers=headers, timeout=30) as client:

                async def twenty() -> None:
                    answered = await asyncio.gather(*(chat(client, stream=n % 2 == 0) for n in range(20)))
                    assert set(answered) == {200}

                await twenty()
                assert await eventually_rows(running, 20) == 20
                await manages(client, "sent")
                await standby.has_caught_up()
                await standby.cut()
                await twenty()
                assert await eventually_rows(running, 40) == 40
                await manages(client, "not-sent")
                await postgres.kill()
                await twenty()
                await postgres.fail_over(standby)
                assert await eventually_rows(running, 40) == 40
                await twenty()
                assert await eventually_rows(running, 60) == 60
                await manages(client, "after")
                pools = (await client.get("/api/v1/pools")).json()["items"]
                assert {each["name"] for each in pools} == {"main", "sent", "after"}
            assert await usage_rows(running) == 60


async def test_connections_that_were_led_to_a_standby_do_not_stay_there(tmp_path: Path) -> None:
    """The address is a moment early or late in a failover; what connected meanwhile finds back to the primary."""
    port = free_port()
    postgres = InterruptiblePostgres(tmp_path / "postgres", settings=REPLICATED)
    with run_provider(tmp_path, CONFIG) as provider:
        async with installation_over(postgres, tmp_path, port) as running, postgres.standby() as standby:
            base_url = await running.start("serve", port)
            token = await asyncio.to_thread(running.new_tenant, base_url, "acme", pool_of(provider, "one"))
            headers = {"authorization": f"Bearer {token}"}
            async with httpx2.AsyncClient(base_url=base_url, headers=headers, timeout=30) as client:
                await standby.has_caught_up()
                statuses = [await chat(client)]
                async with postgres.astray(standby):
                    statuses += [await chat(client, stream=n % 2 == 0) for n in range(20)]
                    refused = await client.post("/api/v1/pools", json={"name": "meanwhile"})
                    assert refused.status_code == 503, refused.text
                    log = running.directory / f"serve-{port}.log"
                    await until(lambda: b"usage rows kept" in log.read_bytes())
                    await until(lambda: b"leases not renewed" in log.read_bytes())
                statuses += [await chat(client, stream=n % 2 == 0) for n in range(20)]
                assert set(statuses) == {200}
                assert await eventually_rows(running, len(statuses)) == len(statuses)
                await manages(client, "after")
                await until(lambda: b"leases renewed again" in log.read_bytes())
                async with asyncio.timeout(60):
                    while await leaders(running) != 1:
                        await asyncio.sleep(0.05)
