"""The key management service fails under a running gateway: down, slow, disabled, and back. Requests are the judge."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.e2e.conftest import free_port
from tests.e2e.production import installation
from tests.e2e.provider import SeparateProvider, run_provider
from tests.e2e.test_postgres_away import chat, pool_of
from tests.e2e.vault import running_vault
from tests.tenants.kms_servers import TOKEN


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[SeparateProvider]:
    with run_provider(tmp_path, {"keys": [{"secret": "sk-sim-one-000000000000", "name": "one"}]}) as running:
        yield running


async def until(client: httpx2.AsyncClient, status: int, seconds: float = 20) -> bool:
    """Ask until the answer is `status`; False when the time is up."""
    for _ in range(int(seconds * 10)):
        if await chat(client) == status:
            return True
        await asyncio.sleep(0.1)
    return False


async def ready(base_url: str) -> int:
    async with httpx2.AsyncClient() as client:
        return (await client.get(f"{base_url}/readyz")).status_code


async def test_down_slow_disabled_and_back(tmp_path: Path, provider: SeparateProvider) -> None:
    port = free_port()
    with running_vault() as vault:
        variables = {"LLM_PROXY_KEK": vault.kek, "VAULT_TOKEN": TOKEN, "LLM_PROXY_KEK_POLL": "0.2"}
        async with installation(tmp_path, port, **variables) as running:
            base_url = await running.start("serve", port)
            token = await asyncio.to_thread(running.new_tenant, base_url, "acme", pool_of(provider, "one"))
            async with httpx2.AsyncClient(base_url=base_url, headers={"authorization": f"Bearer {token}"}) as client:
                assert await chat(client) == 200
                for limits in running.limits():
                    assert re.search(r"Max core file size +0 +0 ", limits), "a core file would hold provider keys"

                vault.hang()
                assert [await chat(client) for _ in range(20)] == [200] * 20, "slow"
                vault.stop()
                vault.release()
                assert [await chat(client) for _ in range(20)] == [200] * 20, "down"

                # A process that starts meanwhile must not take the place of one that still serves.
                other = free_port()
                running.spawn("gateway", other)
                late = f"http://127.0.0.1:{other}"
                for _ in range(200):
                    try:
                        if await ready(late) == 503:
                            break
                    except httpx2.TransportError:
                        pass
                    await asyncio.sleep(0.1)
                assert await ready(late) == 503, "down at start: alive, not ready"

                vault.start()
                async with httpx2.AsyncClient(base_url=late, headers=client.headers) as second:
                    for _ in range(200):
                        if await ready(late) == 200:
                            break
                        await asyncio.sleep(0.1)
                    assert await chat(second) == 200, "back again, without a restart"

                    vault.transit.deleted = True
                    assert await until(client, 503)
                    assert await until(second, 503), "disabled: cut off in every process"
                    vault.transit.deleted = False
                    assert await until(client, 200)
                    assert await until(second, 200), "enabled again: back by itself"
