"""The disk of the usage spool has no room left: requests go on, and what was recorded on it outlives the process."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.e2e.conftest import free_port, wait_for
from tests.e2e.full_disk import Disk, can_mount, file_limit, small_file_system
from tests.e2e.production import Installation, installation
from tests.e2e.provider import SeparateProvider, run_provider
from tests.e2e.test_postgres_away import chat, eventually_rows, pool_of


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with (small_file_system if can_mount() else file_limit)(tmp_path / "disk") as made:
        yield made


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[SeparateProvider]:
    with run_provider(tmp_path, {"keys": [{"secret": "sk-sim-one-000000000000", "name": "one"}]}) as running:
        yield running


class Serving:
    """The one process of an installation that keeps its spool and its sealed state on `disk`."""

    def __init__(self, running: Installation, port: int, disk: Disk) -> None:
        self._running = running
        self._port = port
        self._disk = disk
        self.url = f"http://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> int:
        self.process, log = self._running.spawn("serve", self._port, within=self._disk.within)
        await asyncio.to_thread(wait_for, f"{self.url}/readyz", self.process, log)
        return self.process.pid

    async def end(self, how: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        await asyncio.to_thread(self.process.wait, 60)


async def counted(client: httpx2.AsyncClient, name: str) -> int:
    found = re.search(rf"^llm_proxy_usage_{name} (\S+)$", (await client.get("/metrics")).text, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


async def ask(client: httpx2.AsyncClient, count: int) -> int:
    """Send requests, twenty at a time, each of which must be answered; returns how many."""
    for _ in range(count // 20):
        assert set(await asyncio.gather(*(chat(client, stream=n % 2 == 0) for n in range(20)))) == {200}
    return count


async def test_it_fills_up_under_load_and_a_kill_loses_no_row(
    tmp_path: Path, disk: Disk, provider: SeparateProvider
) -> None:
    port, state = free_port(), disk.seen / "state"
    on_disk = {
        "LLM_PROXY_USAGE_SPOOL": str(disk.directory / "spool"),
        "LLM_PROXY_STATE_PATH": str(disk.directory / "state"),
    }
    async with installation(tmp_path, port, **on_disk) as running:
        serving = Serving(running, port, disk)
        await serving.start()
        token = await asyncio.to_thread(running.new_tenant, serving.url, "acme", pool_of(provider, "one"))
        headers = {"authorization": f"Bearer {token}"}
        # The state that the next one writes knows the tenant, whenever this one has last written it.
        await serving.end(signal.SIGTERM)
        state.unlink(missing_ok=True)
        pid = await serving.start()
        async with httpx2.AsyncClient(base_url=serving.url, headers=headers, timeout=20) as client:
            sent = await ask(client, 20)
            async with asyncio.timeout(60):
                while not state.exists():
                    await asyncio.sleep(0.05)
            disk.fill(pid)
            await running.postgres.stop()
            sent += await ask(client, 100)
            assert await counted(client, "unspooled_total") == 0, "the segment had its room before"
            assert (await client.get("/readyz")).status_code == 200
        await serving.end(signal.SIGKILL)
        assert list((disk.seen / "spool").glob("*.usage"))

        # The disk is as full as it was, and what there is to start from is the state on it.
        await serving.start()
        async with httpx2.AsyncClient(base_url=serving.url, headers=headers, timeout=20) as client:
            sent += await ask(client, 40)
            assert await counted(client, "unspooled_total") == 40, "no room for a second segment: in memory alone"
            await running.postgres.start()
            assert await eventually_rows(running, sent) == sent
            assert await counted(client, "recovered_total") >= 100
            assert await counted(client, "dropped_total") == 0


async def test_room_that_is_made_is_used(tmp_path: Path, disk: Disk, provider: SeparateProvider) -> None:
    port = free_port()
    disk.fill()
    async with installation(tmp_path, port, LLM_PROXY_USAGE_SPOOL=str(disk.directory / "spool")) as running:
        serving = Serving(running, port, disk)
        pid = await serving.start()
        token = await asyncio.to_thread(running.new_tenant, serving.url, "acme", pool_of(provider, "one"))
        headers = {"authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(base_url=serving.url, headers=headers, timeout=20) as client:
            sent = await ask(client, 40)
            assert await counted(client, "unspooled_total") == sent
            disk.make_room(pid)
            async with asyncio.timeout(60):  # it asks for a segment again five seconds after a refusal
                while await counted(client, "spool_bytes") == 0:
                    sent += await ask(client, 20)
            kept = await counted(client, "unspooled_total")
            sent += await ask(client, 60)
            assert await counted(client, "unspooled_total") == kept
            assert await eventually_rows(running, sent) == sent
