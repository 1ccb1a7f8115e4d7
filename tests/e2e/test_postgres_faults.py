"""Postgres in every kind of trouble, under load: requests go on, and every usage row is there in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import asyncpg
import httpx2

from tests.e2e.conftest import free_port, wait_for
from tests.e2e.production import Installation, installation
from tests.e2e.provider import run_provider
from tests.e2e.test_postgres_away import chat, eventually_rows, pool_of

CONFIG = {"keys": [{"secret": "sk-sim-one-000000000000", "name": "one"}]}


async def as_owner(running: Installation, *statements: str) -> None:
    connection = await asyncpg.connect(running.postgres.owner_url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def stalled(running: Installation) -> AsyncIterator[None]:
    """It accepts, and then says nothing."""
    running.postgres.flowing.clear()
    yield
    running.postgres.flowing.set()


@asynccontextmanager
async def slow(running: Installation) -> AsyncIterator[None]:
    """Each packet takes a third of a second."""
    running.postgres.delay_s = 0.3
    yield
    running.postgres.delay_s = 0.0


_THROW_OUT = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'gateway'"


@asynccontextmanager
async def out_of_connections(running: Installation) -> AsyncIterator[None]:
    """It refuses every connection of the gateway's role, after those it had are gone."""
    await as_owner(running, "alter role gateway connection limit 0", _THROW_OUT)
    yield
    await as_owner(running, "alter role gateway connection limit -1")


@asynccontextmanager
async def read_only(running: Installation) -> AsyncIterator[None]:
    """It is a standby that has not been promoted yet: it answers, and refuses to write."""
    await as_owner(
        running, "alter system set default_transaction_read_only = on", "select pg_reload_conf()", _THROW_OUT
    )
    yield
    undone = ("set default_transaction_read_only = off", "alter system reset default_transaction_read_only")
    await as_owner(running, *undone, "select pg_reload_conf()", _THROW_OUT)


@asynccontextmanager
async def restarted(running: Installation) -> AsyncIterator[None]:
    """Every connection breaks, nobody listens for a while, then it is back (a real failover: test_promotion.py)."""
    before = running.postgres.server_port
    await running.postgres.stop()
    yield
    await running.postgres.start()
    assert running.postgres.server_port != before, "another server process, at another port of its own"


Trouble = Callable[[Installation], AbstractAsyncContextManager[None]]
TROUBLES: tuple[Trouble, ...] = (stalled, slow, out_of_connections, read_only, restarted)


async def test_requests_go_on_through_each_trouble_and_no_row_is_lost(tmp_path: Path) -> None:
    port = free_port()
    with run_provider(tmp_path, CONFIG) as provider:
        async with installation(tmp_path, port) as running:
            base_url = await running.start("serve", port)
            token = await asyncio.to_thread(running.new_tenant, base_url, "acme", pool_of(provider, "one"))
            statuses: list[int] = []
            headers = {"authorization": f"Bearer {token}"}
            async with httpx2.AsyncClient(base_url=base_url, headers=headers, timeout=10) as client:
                statuses.append(await chat(client))
                for trouble in TROUBLES:
                    async with trouble(running):
                        statuses += await asyncio.gather(*(chat(client, stream=n % 2 == 0) for n in range(20)))
                        assert (await client.get("/readyz")).status_code == 200, trouble.__name__
                    statuses.append(await chat(client))
                    assert await eventually_rows(running, len(statuses)) == len(statuses), trouble.__name__
            assert set(statuses) == {200}


async def test_down_at_the_start_the_program_says_so_and_serves_when_it_is_back(tmp_path: Path) -> None:
    port = free_port()
    with run_provider(tmp_path, CONFIG) as provider:
        async with installation(tmp_path, port) as running:
            base_url = await running.start("serve", port)
            token = await asyncio.to_thread(running.new_tenant, base_url, "acme", pool_of(provider, "one"))
            running.stop_all()
            await running.postgres.stop()
            process, log = running.spawn("serve", port)
            for _ in range(200):
                if b"Postgres" in log.read_bytes() or process.poll() is not None:
                    break
                await asyncio.sleep(0.05)
            assert process.poll() is None, "it waits for its database"
            await running.postgres.start()
            await asyncio.to_thread(wait_for, f"{base_url}/readyz", process, log)
            async with httpx2.AsyncClient(base_url=base_url, headers={"authorization": f"Bearer {token}"}) as client:
                assert await chat(client) == 200
