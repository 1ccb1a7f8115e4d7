"""The data path never waits for Postgres: take it away under traffic, nothing fails, and no usage row is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import httpx2
import pytest

from tests.e2e.conftest import free_port
from tests.e2e.production import Installation, installation
from tests.e2e.provider import SeparateProvider, run_provider

KEYS = ("one", "two")
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello!"}]}


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[SeparateProvider]:
    config = {"keys": [{"secret": f"sk-sim-{name}-000000000000", "name": name} for name in KEYS]}
    with run_provider(tmp_path, config) as running:
        yield running


def pool_of(provider: SeparateProvider, *names: str) -> dict[str, object]:
    return {
        "name": "main",
        "strategy": "round_robin",
        "providers": [
            {
                "name": name,
                "provider": "simulated",
                "base_url": provider.base_url,
                "api_key": f"sk-sim-{name}-000000000000",
            }
            for name in names
        ],
    }


async def chat(client: httpx2.AsyncClient, *, stream: bool = False) -> int:
    """Return the status; an error's text goes to the test's output."""
    answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    if answer.status_code != 200:
        print(answer.status_code, answer.text)
    return answer.status_code


async def usage_rows(running: Installation) -> int:
    connection = await asyncpg.connect(running.postgres.owner_url)
    try:
        return int(await connection.fetchval("select count(*) from usage_event"))
    finally:
        await connection.close()


async def eventually_rows(running: Installation, expected: int) -> int:
    """Rows come in batches: read until the count is there, or half a minute is over."""
    found, give_up = 0, time.monotonic() + 30
    while time.monotonic() < give_up:
        with_luck = await asyncio.gather(usage_rows(running), return_exceptions=True)
        if isinstance(with_luck[0], int) and (found := with_luck[0]) >= expected:
            break
        await asyncio.sleep(0.1)
    return found


async def test_requests_go_on_and_usage_is_written_later(tmp_path: Path, provider: SeparateProvider) -> None:
    port = free_port()
    async with installation(tmp_path, port) as running:
        base_url = await running.start("serve", port)
        token = await asyncio.to_thread(running.new_tenant, base_url, "acme", pool_of(provider, *KEYS))
        async with httpx2.AsyncClient(base_url=base_url, headers={"authorization": f"Bearer {token}"}) as client:
            statuses = [await chat(client) for _ in range(20)]
            await running.postgres.stop()
            statuses += await asyncio.gather(*(chat(client, stream=n % 2 == 0) for n in range(100)))
            assert (await client.get("/livez")).status_code == 200
            refused = await client.get("/api/v1/pools")
            assert refused.status_code == 503
            assert refused.headers["content-type"].startswith("application/problem+json")
            await running.postgres.start()
            statuses += await asyncio.gather(*(chat(client) for _ in range(20)))
        assert set(statuses) == {200}
        assert await eventually_rows(running, len(statuses)) == len(statuses)


async def test_a_change_reaches_another_process_within_a_second(tmp_path: Path, provider: SeparateProvider) -> None:
    port = free_port()
    async with installation(tmp_path, port) as running:
        control = await running.start("control", port)
        token = await asyncio.to_thread(running.new_tenant, control, "acme", pool_of(provider, "one"))
        data_path = await running.start("gateway")
        headers = {"authorization": f"Bearer {token}"}
        async with (
            httpx2.AsyncClient(base_url=data_path, headers=headers) as client,
            httpx2.AsyncClient(base_url=control, headers=headers) as management,
        ):
            assert await chat(client) == 200
            pool = (await management.get("/api/v1/pools")).json()["items"][0]
            key = (await management.get(f"/api/v1/pools/{pool['id']}/keys")).json()["items"][0]
            etag = (await management.get(f"/api/v1/keys/{key['id']}")).headers["etag"]
            for enabled, expected in ((False, 503), (True, 200)):
                patched = await management.patch(
                    f"/api/v1/keys/{key['id']}", json={"enabled": enabled}, headers={"if-match": etag}
                )
                assert patched.status_code == 200, patched.text
                etag = patched.headers["etag"]
                async with asyncio.timeout(1):
                    while await chat(client) != expected:
                        await asyncio.sleep(0.01)
            stale = await management.patch(f"/api/v1/keys/{key['id']}", json={"weight": 5}, headers={"if-match": '"1"'})
            assert stale.status_code == 412
