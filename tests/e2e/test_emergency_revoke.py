"""A leaked secret is revoked: within a second no process of the installation sends it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from tests.e2e.conftest import free_port
from tests.e2e.production import installation
from tests.e2e.provider import run_provider

SECRET = "sk-sim-leaked-0000001"
WITHIN_S = 1.0
ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}


async def test_a_revoked_secret_is_out_of_use_in_every_process_within_a_second(tmp_path: Path) -> None:
    port = free_port()
    config = {"keys": [{"secret": SECRET, "name": "leaked"}]}
    with run_provider(tmp_path, config) as provider:
        async with installation(tmp_path, port) as running:
            serve = await running.start("serve", port)
            bases = [serve, *[await running.start("gateway") for _ in range(2)]]
            entry = {"name": "only", "provider": "simulated", "api_key": SECRET, "base_url": provider.base_url}
            pool = {"providers": [entry], "strategy": "round_robin"}
            token = await asyncio.to_thread(running.new_tenant, serve, "acme", pool)
            headers = {"authorization": f"Bearer {token}"}
            stop = asyncio.Event()
            statuses: dict[str, list[int]] = {base: [] for base in bases}
            async with httpx2.AsyncClient(headers=headers, timeout=30) as client, asyncio.TaskGroup() as group:
                await asyncio.gather(*(served(client, base) for base in bases))
                for base in bases:
                    group.create_task(keep_asking(client, base, statuses[base], stop))
                (found,) = (await client.get(f"{serve}/api/v1/pools")).json()["items"]
                (key,) = (await client.get(f"{serve}/api/v1/pools/{found['id']}/keys")).json()["items"]
                revoke = f"{serve}/api/v1/keys/{key['id']}/versions/1/revoke"
                await until(lambda: all(statuses.values()))
                assert set().union(*statuses.values()) == {200}
                assert (await client.post(revoke, json={"force": True})).status_code == 200
                await asyncio.sleep(WITHIN_S)
                count = (await asyncio.to_thread(provider.counts))["leaked"]["requests"]
                before = {base: len(answers) for base, answers in statuses.items()}
                await until(lambda: all(len(statuses[base]) > before[base] + 5 for base in bases))
                stop.set()
            assert (await asyncio.to_thread(provider.counts))["leaked"]["requests"] == count
            for base, answers in statuses.items():
                assert set(answers[before[base] + 1 :]) == {503}, base


async def served(client: httpx2.AsyncClient, base: str) -> None:
    """Return when a process knows the tenant and serves it."""
    async with asyncio.timeout(20):
        while (await client.post(f"{base}/v1/chat/completions", json=ASKED)).status_code != 200:
            await asyncio.sleep(0.1)


async def keep_asking(client: httpx2.AsyncClient, base: str, answers: list[int], stop: asyncio.Event) -> None:
    while not stop.is_set():
        answer = await client.post(f"{base}/v1/chat/completions", json=ASKED)
        answers.append(answer.status_code)
        await asyncio.sleep(0.02)


async def until(holds: Callable[[], bool]) -> Any:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.02)
