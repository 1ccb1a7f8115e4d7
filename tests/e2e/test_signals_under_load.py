"""Signals to each kind of process under load: who is not that process notices nothing, and what was answered holds."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx2
import pytest

from gateway.workers import Orders
from tests.e2e.callers import Callers, times_recorded
from tests.e2e.conftest import free_port, wait_for
from tests.e2e.production import Installation, installation
from tests.e2e.supervised import children, until
from tests.e2e.supervised import running as there
from tests.hostile.provider import Provider, Seen, Wire, good_answer

SECRET = "sk-signals-000000000000000"
WORKERS = {"LLM_PROXY_WORKERS": "2", "LLM_PROXY_LOG_FORMAT": "json"}


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    made.start()
    yield made
    made.stop()


def pool_of(provider: Provider) -> dict[str, object]:
    key = {"name": "only", "provider": "simulated", "base_url": provider.base_url, "api_key": SECRET}
    return {"name": "main", "providers": [key]}


def client_of(base_url: str, token: str) -> httpx2.AsyncClient:
    """Return a client with a connection of its own for each request: none is idle when its process ends."""
    headers = {"authorization": f"Bearer {token}", "connection": "close"}
    return httpx2.AsyncClient(base_url=base_url, headers=headers, timeout=60)


class Management:
    """Somebody who writes without pause."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client
        self._sent = 0
        self.made: list[str] = []

    async def write(self) -> None:
        self._sent += 1
        name = f"pool-{self._sent}"
        try:
            answer = await self._client.post("/api/v1/pools", json={"name": name})
        except httpx2.TransportError:
            await asyncio.sleep(0.02)
            return
        assert answer.status_code == 201, answer.text
        self.made.append(name)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        stop = asyncio.Event()

        async def run() -> None:
            while not stop.is_set():
                await self.write()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run())
            try:
                yield
            finally:
                stop.set()

    async def more(self, count: int = 5) -> None:
        goal = len(self.made) + count
        async with asyncio.timeout(60):
            while len(self.made) < goal:
                await asyncio.sleep(0.01)


async def pools(owner_url: str) -> set[str]:
    connection = await asyncpg.connect(owner_url)
    try:
        return {row["name"] for row in await connection.fetch("select name from pool")}
    finally:
        await connection.close()


@pytest.mark.timeout(240)
async def test_callers_of_a_gateway_notice_nothing_of_what_happens_to_control(
    tmp_path: Path, provider: Provider
) -> None:
    port = free_port()
    async with installation(tmp_path, port) as running:
        control, log = running.spawn("control", port)
        control_url = f"http://127.0.0.1:{port}"
        await asyncio.to_thread(wait_for, f"{control_url}/readyz", control, log)
        token = await asyncio.to_thread(running.new_tenant, control_url, "acme", pool_of(provider))
        gateway_url = await running.start("gateway")
        async with client_of(gateway_url, token) as asking, client_of(control_url, token) as writing:
            callers, management = Callers(asking), Management(writing)
            async with callers.running(2), management.running():
                for how, code in ((signal.SIGHUP, None), (signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
                    await management.more()
                    control.send_signal(how)
                    if code is not None:
                        assert await asyncio.to_thread(control.wait, 60) == code
                        await callers.more(50)
                        control, log = running.spawn("control", port)
                        await asyncio.to_thread(wait_for, f"{control_url}/readyz", control, log)
                    await management.more()
                    await callers.more(50)
            assert control.poll() is None
            assert (set(callers.statuses), callers.broken) == ({200}, {})
            assert set(management.made) <= await pools(running.postgres.owner_url)
            assert set(await times_recorded(running.postgres.owner_url, callers.answered)) == {1}


@asynccontextmanager
async def two_workers(
    tmp_path: Path, provider: Provider, port: int
) -> AsyncIterator[tuple[Installation, subprocess.Popen[bytes], Path, httpx2.AsyncClient]]:
    """Run a supervisor with two workers that serve, with its log and a client of a tenant."""
    url = f"http://127.0.0.1:{port}"
    async with installation(tmp_path, port, LLM_PROXY_USAGE_SPOOL=str(tmp_path / "spool"), **WORKERS) as running:
        process, log = running.spawn("serve", port)
        await asyncio.to_thread(wait_for, f"{url}/readyz", process, log)
        await until("worker serves", log, times=2)
        token = await asyncio.to_thread(running.new_tenant, url, "acme", pool_of(provider))
        async with client_of(url, token) as client:
            yield running, process, log, client


@pytest.mark.timeout(240)
async def test_a_supervisor_is_rolled_killed_and_ended_under_load(tmp_path: Path, provider: Provider) -> None:
    async with two_workers(tmp_path, provider, port := free_port()) as (running, process, log, client):
        callers = Callers(client)
        async with callers.running(2):
            await callers.more(50)
            process.send_signal(signal.SIGHUP)
            await until("all workers are replaced", log)
            await callers.more(50)
            assert (set(callers.statuses), callers.broken) == ({200}, {})

            left = children(process.pid)
            assert len(left) == 2
            process.kill()
            process.wait()
            async with asyncio.timeout(60):
                while there(left):
                    await asyncio.sleep(0.05)
            successor, its_log = running.spawn("serve", port)
            await asyncio.to_thread(wait_for, f"http://127.0.0.1:{port}/readyz", successor, its_log)
            await callers.more(50)

            left = children(successor.pid)
            successor.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(successor.wait, 60) == 0
            assert not there(left)
        # A request was answered whole by 200, or found nobody: none got another answer, or somebody else's.
        assert set(callers.statuses) == {200}
        assert set(await times_recorded(running.postgres.owner_url, callers.answered)) == {1}
        assert "Traceback" not in its_log.read_text()


async def test_a_killed_worker_breaks_only_the_requests_that_it_has(tmp_path: Path, provider: Provider) -> None:
    released = threading.Event()

    async def hold(wire: Wire, seen: Seen) -> None:
        while not released.is_set():
            await asyncio.sleep(0.01)
        await good_answer(wire, seen)

    provider.mood = hold
    async with two_workers(tmp_path, provider, free_port()) as (running, process, log, client):

        async def in_flight() -> dict[int, int]:
            metrics = (await client.get("/metrics")).text
            found = re.findall(r'^llm_proxy_in_flight\{worker="(\d)"\} (\S+)$', metrics, re.MULTILINE)
            return {int(worker): int(float(count)) for worker, count in found}

        callers = Callers(client)
        calls: list[asyncio.Task[int]] = []
        holding: dict[int, int] = {}
        try:
            async with asyncio.timeout(60):
                while len(calls) < 12 or min(holding.values()) == 0:
                    calls += [asyncio.create_task(callers.call()) for _ in range(4)]
                    while len(provider.seen) < len(calls):
                        await asyncio.sleep(0.01)
                    holding = await in_flight()
            assert sum(holding.values()) == len(calls)
            victim = children(process.pid)[0]
            orders = Path(f"/proc/{victim}/cmdline").read_bytes().split(b"\0")[-2].decode()
            lost = holding[Orders.decode(orders).index]
            started = log.read_text().count("worker serves")
            os.kill(victim, signal.SIGKILL)
            await until("worker serves", log, times=started + 1)
            assert callers.broken.total() == lost
            assert not callers.statuses
        finally:
            released.set()
        assert sorted(await asyncio.gather(*calls)) == [0] * lost + [200] * (len(calls) - lost)
        assert await callers.call() == 200
        assert set(await times_recorded(running.postgres.owner_url, callers.answered)) == {1}
