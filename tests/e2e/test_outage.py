"""Postgres is away for longer than memory holds the usage rows: the disk does, and without one the oldest are lost."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from gateway.upstream.connect import DirectConnector
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.message import Deadlines, Origin, UpstreamRequest
from gateway.upstream.pool import ConnectionPool
from tests.e2e.callers import Callers, times_recorded
from tests.e2e.conftest import free_port, wait_for
from tests.e2e.production import installation
from tests.e2e.provider import run_provider
from tests.e2e.test_postgres_away import CHAT, eventually_rows, pool_of, usage_rows
from tests.hostile.provider import Provider

CONFIG = {"keys": [{"secret": "sk-sim-one-000000000000", "name": "one"}]}
LONG_S = float(os.environ.get("OUTAGE_S", "600"))
LONG_ROWS = min(200_000, round(LONG_S * 400))
"""The bound of the rows in memory; the default is reached by the default outage."""
ROW_BYTES = 1024
"""What docs/faults.md says that a row takes in memory, at most."""
SLACK_BYTES = 48 << 20
"""For the rows of one segment of the spool, which are read at once, and what the allocator keeps."""
AT_A_TIME = 32


async def counted(client: httpx2.AsyncClient, *names: str) -> list[int]:
    """Return metrics of usage rows by the ends of their names."""
    text = (await client.get("/metrics")).text
    return [int(float(found)) for name in names for found in re.findall(rf"^llm_proxy_usage_{name} (\S+)$", text, re.M)]


async def test_rows_beyond_memory_and_disk_are_counted_and_the_others_are_there(tmp_path: Path) -> None:
    control_port, port = free_port(), free_port()
    provider = Provider()
    provider.start()
    key = {"name": "one", "provider": "simulated", "base_url": provider.base_url, "api_key": "sk-outage-0000000000"}
    pool = {"name": "main", "providers": [key]}
    try:
        async with installation(tmp_path, control_port, LLM_PROXY_USAGE_ROWS="100") as running:
            spool = {"LLM_PROXY_USAGE_SPOOL": str(tmp_path / "spool"), "LLM_PROXY_USAGE_SPOOL_SIZE": "64KiB"}
            with_disk, log = running.spawn("serve", control_port, **spool)
            url = f"http://127.0.0.1:{control_port}"
            await asyncio.to_thread(wait_for, f"{url}/readyz", with_disk, log)
            token = await asyncio.to_thread(running.new_tenant, url, "acme", pool)
            without_url = await running.start("gateway", port)
            headers = {"authorization": f"Bearer {token}"}
            async with (
                httpx2.AsyncClient(base_url=url, headers=headers, timeout=30) as client,
                httpx2.AsyncClient(base_url=without_url, headers=headers, timeout=30) as other,
            ):
                kept, lost = Callers(client), Callers(other, prefix="other")
                assert {await kept.call(), await lost.call()} == {200}
                assert await eventually_rows(running, 2) == 2
                await running.postgres.stop()

                async def fill_the_disk() -> None:
                    while (await counted(client, "unspooled_total"))[0] < 60:
                        await asyncio.gather(*(kept.call() for _ in range(20)))

                async def one_after_the_other() -> None:
                    for _ in range(120):  # so that their order is known
                        await lost.call()

                await asyncio.gather(fill_the_disk(), one_after_the_other())
                assert await counted(client, "dropped_total", "buffered") == [0, 100]
                assert await counted(other, "dropped_total", "buffered") == [20, 100]
                await running.postgres.start()
                assert set(await times_recorded(running.postgres.owner_url, kept.answered)) == {1}
                assert await counted(client, "recovered_total", "dropped_total") == [len(kept.answered) - 101, 0]
                first, late = lost.answered[:1], lost.answered[21:]
                assert set(await times_recorded(running.postgres.owner_url, first + late)) == {1}
                assert await usage_rows(running) == len(kept.answered) + len(first + late)
            assert (set(kept.statuses), set(lost.statuses)) == ({200}, {200})
    finally:
        provider.stop()


class Load:
    """Requests as fast as they are answered, by the client of `gateway.upstream`: it takes a tenth of httpx's time."""

    def __init__(self, port: int, token: str) -> None:
        self._origin = Origin("http", "127.0.0.1", port)
        body = str(CHAT).replace("'", '"').encode()
        headers = [(b"authorization", b"Bearer " + token.encode()), (b"content-type", b"application/json")]
        self._requests = [
            UpstreamRequest(b"POST", b"/v1/chat/completions", headers, sent)
            for sent in (body, body[:-1] + b', "stream": true}')
        ]
        self.sent = 0

    async def run(self, goes_on: Callable[[], bool]) -> None:
        """Send as long as it goes on; all that was sent is answered whole when this returns."""
        pool = ConnectionPool(DirectConnector(EgressPolicy(allow_private=True)))
        deadlines = Deadlines(connect_s=30, first_byte_s=30, idle_s=30, total_s=30)

        async def call() -> None:
            while goes_on():
                self.sent += 1
                response = await pool.send(self._origin, self._requests[self.sent % 10 == 0], deadlines)
                received = b""
                while data := await response.read():
                    received += data
                assert response.status == 200, received

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(AT_A_TIME):
                    tasks.create_task(call())
        finally:
            await pool.close()


def memory_of(pid: int) -> int:
    """Return the bytes that the process has for itself: the pages of its spool are the kernel's to take back."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_ten_minutes_away_under_load(tmp_path: Path) -> None:
    """`make test-outage` (OUTAGE_S=600): nothing fails, memory grows by its bound of rows, and no row is lost."""
    port = free_port()
    variables = {"LLM_PROXY_USAGE_SPOOL": str(tmp_path / "spool"), "LLM_PROXY_USAGE_ROWS": str(LONG_ROWS)}
    with run_provider(tmp_path, CONFIG) as provider:
        async with installation(tmp_path, port, **variables) as running:
            base_url = await running.start("serve", port)
            pid = running.processes[0].pid
            token = await asyncio.to_thread(running.new_tenant, base_url, "acme", pool_of(provider, "one"))
            load = Load(port, token)
            async with httpx2.AsyncClient(base_url=base_url, timeout=30) as client:
                await load.run(lambda: load.sent < 5_000)
                assert await eventually_rows(running, load.sent) == load.sent
                before, warm = memory_of(pid), load.sent
                await running.postgres.stop()
                until, enough = time.monotonic() + LONG_S, warm + LONG_ROWS * 11 // 10
                begun = time.monotonic()
                await load.run(lambda: time.monotonic() < until or load.sent < enough)
                took_s = time.monotonic() - begun
                assert await counted(client, "buffered", "dropped_total", "unspooled_total") == [LONG_ROWS, 0, 0]
                full = peak = memory_of(pid)
                await running.postgres.start()
                async with asyncio.timeout(600):
                    while await usage_rows(running) < load.sent:
                        peak = max(peak, memory_of(pid))
                        await asyncio.sleep(0.2)
                assert await usage_rows(running) == load.sent
                recovered, dropped = await counted(client, "recovered_total", "dropped_total")
                assert (recovered, dropped) == (load.sent - warm - LONG_ROWS, 0)
            each, most_mib = (full - before) / LONG_ROWS, (peak - before) / 2**20
            print(f"{load.sent - warm} requests in {took_s:.0f} s without a database, as many rows")
            print(
                f"{LONG_ROWS} rows in memory: {each:.0f} bytes each; while they were written, {most_mib:.0f} MiB in all"
            )
            assert peak - before < LONG_ROWS * ROW_BYTES + SLACK_BYTES
