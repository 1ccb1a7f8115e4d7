"""A gateway that starts while Postgres is away serves from its sealed state, and says so; a forged one it refuses."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.e2e.conftest import free_port
from tests.e2e.production import Installation, installation
from tests.e2e.provider import SeparateProvider, run_provider
from tests.e2e.test_postgres_away import chat, eventually_rows, pool_of


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[SeparateProvider]:
    config = {"keys": [{"secret": "sk-sim-one-000000000000", "name": "one"}]}
    with run_provider(tmp_path, config) as running:
        yield running


async def written(file: Path, *, since: float = 0.0) -> None:
    async with asyncio.timeout(20):
        while not file.exists() or file.stat().st_mtime <= since:
            await asyncio.sleep(0.05)


async def kill_gateway(running: Installation) -> None:
    process = running.processes[-1]
    process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(process.wait)


async def test_start_without_postgres(tmp_path: Path, provider: SeparateProvider) -> None:
    port, file = free_port(), tmp_path / "state"
    async with installation(tmp_path, port, LLM_PROXY_STATE_PATH=str(file)) as running:
        control = await running.start("control", port)
        token = await asyncio.to_thread(running.new_tenant, control, "acme", pool_of(provider, "one"))
        assert not file.exists(), "only the data path keeps it"
        headers = {"authorization": f"Bearer {token}"}
        gateway = await running.start("gateway")
        async with httpx2.AsyncClient(base_url=gateway, headers=headers) as client:
            assert await chat(client) == 200
        await written(file)
        assert file.stat().st_mode & 0o777 == 0o600
        assert b"sk-sim-one" not in file.read_bytes()

        await running.postgres.stop()
        await kill_gateway(running)
        gateway = await running.start("gateway")
        async with httpx2.AsyncClient(base_url=gateway, headers=headers) as client:
            assert [await chat(client, stream=n % 2 == 0) for n in range(10)] == [200] * 10
            conditions = (await client.get("/readyz")).json()["conditions"]
            assert "Postgres is away" in conditions["sealed state"]
            assert "llm_proxy_serving_from_state 1.0" in (await client.get("/metrics")).text
            forged = await client.post("/v1/chat/completions", headers={"authorization": "Bearer x.y.z"})
            assert forged.status_code == 401

            await running.postgres.start()
            async with asyncio.timeout(20):
                while (await client.get("/readyz")).json()["conditions"]:
                    await asyncio.sleep(0.1)
            assert await chat(client) == 200
        assert await eventually_rows(running, 11) >= 11, "usage was written once Postgres was back"


async def test_a_changed_state_or_none_is_no_start(tmp_path: Path, provider: SeparateProvider) -> None:
    port, file = free_port(), tmp_path / "state"
    async with installation(tmp_path, port, LLM_PROXY_STATE_PATH=str(file)) as running:
        control = await running.start("control", port)
        token = await asyncio.to_thread(running.new_tenant, control, "acme", pool_of(provider, "one"))
        await running.start("gateway")
        await written(file)
        await running.postgres.stop()
        await kill_gateway(running)

        changed = bytearray(file.read_bytes())
        changed[-1] ^= 1
        file.write_bytes(changed)
        process, log = running.spawn("gateway", other := free_port())
        async with asyncio.timeout(20), httpx2.AsyncClient(base_url=f"http://127.0.0.1:{other}") as client:
            while "the sealed state cannot be used" not in log.read_text():
                await asyncio.sleep(0.05)
            while True:
                try:
                    assert (await client.get("/readyz")).status_code == 503
                    break
                except httpx2.TransportError:
                    await asyncio.sleep(0.05)
            answer = await client.post("/v1/chat/completions", headers={"authorization": f"Bearer {token}"})
            assert answer.status_code in (401, 503), "nothing that it holds is believed"
        process.kill()

        file.unlink()
        process, log = running.spawn("gateway", free_port())
        async with asyncio.timeout(20):
            while "waiting for the database" not in log.read_text():
                await asyncio.sleep(0.05)
        process.kill()
        assert "starting from the sealed state" not in log.read_text()
