"""A worker accepts callers when it is ready: nobody notices one that starts while Postgres is away."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tests.e2e.conftest import free_port
from tests.e2e.production import Installation, installation
from tests.e2e.provider import run_provider
from tests.e2e.supervised import children, until

SECRET = "sk-sim-workers-000000000000000"
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello!"}]}


@dataclass(frozen=True)
class Two:
    """Two workers that serve a tenant."""

    installed: Installation
    pid: int
    log: Path
    url: str
    token: str

    async def get(self, path: str) -> int:
        async with httpx2.AsyncClient(base_url=self.url, timeout=10) as client:
            return (await client.get(path)).status_code

    async def chat(self) -> int:
        """Send a request over a connection of its own."""
        headers = {"authorization": f"Bearer {self.token}", "connection": "close"}
        async with httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=10) as client:
            return (await client.post("/v1/chat/completions", json=CHAT)).status_code

    async def both_serve(self) -> None:
        """Send requests until each of the two has answered some."""
        served = set[str]()
        async with asyncio.timeout(60):
            while served != {"0", "1"}:
                assert await self.chat() == 200
                text = (await asyncio.to_thread(httpx2.get, f"{self.url}/metrics")).text
                served = set(re.findall(r'^llm_proxy_requests_total\{worker="(\d)"', text, re.MULTILINE))


@asynccontextmanager
async def two(directory: Path) -> AsyncIterator[Two]:
    port = free_port()
    with run_provider(directory, {"keys": [{"secret": SECRET, "name": "only"}]}) as provider:
        keys = [{"name": "only", "provider": "simulated", "base_url": provider.base_url, "api_key": SECRET}]
        async with installation(directory, port, LLM_PROXY_WORKERS="2", LLM_PROXY_LOG_FORMAT="json") as installed:
            process, log = installed.spawn("serve", port)
            await until("worker serves", log, times=2)
            url = f"http://127.0.0.1:{port}"
            pool = {"name": "main", "providers": keys}
            token = await asyncio.to_thread(installed.new_tenant, url, "acme", pool)
            made = Two(installed, process.pid, log, url, token)
            await made.both_serve()
            yield made


async def test_a_worker_that_starts_while_postgres_is_away_turns_nobody_away(tmp_path: Path) -> None:
    async with two(tmp_path) as made:
        await made.installed.postgres.stop()
        os.kill(children(made.pid)[0], signal.SIGKILL)
        answers: list[int] = []
        outage_ends = asyncio.Event()

        async def ask() -> None:
            while not outage_ends.is_set():
                answers.append(await made.chat())

        asking = asyncio.create_task(ask())
        await until("Application startup complete", made.log, times=3)
        so_far = len(answers)
        async with asyncio.timeout(60):
            while len(answers) < so_far + 100:
                await asyncio.sleep(0.05)
        await made.installed.postgres.start()
        await until("worker serves", made.log, times=3)
        outage_ends.set()
        await asking
        assert set(answers) == {200}
        await made.both_serve()


async def test_probes_are_answered_while_no_worker_is_ready(tmp_path: Path) -> None:
    async with two(tmp_path) as made:
        await made.installed.postgres.stop()
        for pid in children(made.pid):
            os.kill(pid, signal.SIGKILL)
        await until("none being ready", made.log)
        assert [await made.get("/livez") for _ in range(10)] == [200] * 10
        assert [await made.get("/readyz") for _ in range(10)] == [503] * 10
        await made.installed.postgres.start()
        await until("worker serves", made.log, times=4)
        await made.both_serve()


async def test_a_roll_waits_for_the_new_worker_to_be_ready(tmp_path: Path) -> None:
    async with two(tmp_path) as made:
        await made.installed.postgres.stop()
        os.kill(made.pid, signal.SIGHUP)
        await until("Application startup complete", made.log, times=3)
        assert {await made.chat() for _ in range(50)} == {200}
        assert "Shutting down" not in made.log.read_text()
        await made.installed.postgres.start()
        await until("all workers are replaced", made.log)
        await made.both_serve()
