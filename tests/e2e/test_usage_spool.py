"""With the spool on no usage row is lost: Postgres away, the process killed, started again, Postgres back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2

from tests.e2e.conftest import free_port, wait_for
from tests.e2e.production import installation
from tests.e2e.provider import run_provider
from tests.e2e.test_postgres_away import chat, eventually_rows, pool_of


async def test_a_kill_while_postgres_is_away_loses_no_row(tmp_path: Path) -> None:
    port, spool = free_port(), tmp_path / "spool"
    config = {"keys": [{"secret": "sk-sim-one-000000000000", "name": "one"}]}
    with run_provider(tmp_path, config) as provider:
        async with installation(tmp_path, port, LLM_PROXY_USAGE_SPOOL=str(spool)) as running:
            process, log = running.spawn("serve", port)
            base_url = f"http://127.0.0.1:{port}"
            await asyncio.to_thread(wait_for, f"{base_url}/readyz", process, log)
            token = await asyncio.to_thread(running.new_tenant, base_url, "acme", pool_of(provider, "one"))
            headers = {"authorization": f"Bearer {token}"}
            async with httpx2.AsyncClient(base_url=base_url, headers=headers) as client:
                statuses = [await chat(client) for _ in range(5)]
                await running.postgres.stop()
                statuses += await asyncio.gather(*(chat(client, stream=n % 2 == 0) for n in range(40)))
                # A row is recorded in the step that sends its answer's last byte: who is answered later finds it there.
                assert (await client.get("/livez")).status_code == 200
            process.kill()
            process.wait()
            assert list(spool.glob("*.usage"))
            await running.postgres.start()
            assert await eventually_rows(running, 1) < len(statuses) - 1
            process, log = running.spawn("serve", port)
            await asyncio.to_thread(wait_for, f"{base_url}/readyz", process, log)
            async with httpx2.AsyncClient(base_url=base_url, headers=headers) as client:
                statuses.append(await chat(client))
            assert set(statuses) == {200}
            assert await eventually_rows(running, len(statuses)) == len(statuses)


async def test_a_spool_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    port, spool = free_port(), tmp_path / "a file"
    spool.write_text("in the way")
    config = {"keys": [{"secret": "sk-sim-one-000000000000", "name": "one"}]}
    with run_provider(tmp_path, config) as provider:
        async with installation(tmp_path, port, LLM_PROXY_USAGE_SPOOL=str(spool)) as running:
            base_url = await running.start("serve", port)
            token = await asyncio.to_thread(running.new_tenant, base_url, "acme", pool_of(provider, "one"))
            headers = {"authorization": f"Bearer {token}"}
            async with httpx2.AsyncClient(base_url=base_url, headers=headers) as client:
                assert {await chat(client) for _ in range(10)} == {200}
                metrics = (await client.get("/metrics")).text
            assert "llm_proxy_usage_unspooled_total 10.0" in metrics
            assert await eventually_rows(running, 10) == 10
