"""What chaos happens to: three processes over one database, two of them over one spool, a steady and a wild provider.

`gateway` may be a supervisor with several workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import httpx2

from tests.chaos.line import TOTAL_S
from tests.chaos.management import Managers
from tests.chaos.traffic import Callers
from tests.e2e.conftest import free_port, wait_for
from tests.e2e.production import Installation, InterruptiblePostgres, installation_over
from tests.e2e.standby import REPLICATED
from tests.hostile.provider import Provider

_MAX_WAITING = 999
"""No default, so that it tells whether a process serves by the settings of here."""
_START_S = 300.0
"""How long a start may take on a machine that is busy with other things."""
_SERVES = re.compile(r'"worker serves", .*"pid": (\d+)')
_WRITE_S = 1.0
_END_S = 30.0
"""How long an end may take: docs/faults.md has 20 s beyond the drain, which is 5 s here."""
PATH = b"/pools/main/v1/chat/completions"
_SPOOL_BYTES = 1024 * 1024
SEGMENT_BYTES = 64 * 1024
"""What a spool of `_SPOOL_BYTES` asks the disk for at a time: some 150 rows."""


@dataclass
class Process:
    """One process of the gateway, by its command; it keeps its port when it is started again."""

    command: str
    port: int
    running: subprocess.Popen[bytes]
    log: Path
    workers: int = 1
    callers: list[Callers | Managers] = field(default_factory=list)
    killed_at: list[float] = field(default_factory=list)
    first_mib: float = 0.0
    most_mib: float = 0.0

    def pids(self) -> list[int]:
        """Return what serves: the process itself, or the workers that it has just now."""
        pid = self.running.pid
        if self.workers == 1:
            return [pid]
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return []

    async def serving(self) -> list[int]:
        """Wait until all that serve are ready, and return them: who starts is no sibling that could help yet."""
        if self.workers == 1:
            return self.pids()
        async with asyncio.timeout(_START_S):
            while True:
                ready = {int(pid) for pid in _SERVES.findall(self.log.read_text())}
                found = [pid for pid in self.pids() if pid in ready]
                if len(found) >= self.workers:
                    return found
                await asyncio.sleep(0.1)

    def look(self) -> None:
        """Note how much memory one of them takes at most."""
        for pid in self.pids():
            with contextlib.suppress(OSError):
                found = re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
                self.most_mib = max([self.most_mib, *(int(each) / 1024 for each in found)])


@dataclass
class World:
    """Everything that faults reach for."""

    installation: Installation
    processes: list[Process]
    wild: Provider
    steady: Provider
    token: bytes
    pace_s: float

    @property
    def postgres(self) -> InterruptiblePostgres:
        return self.installation.postgres

    async def end(self, process: Process, how: signal.Signals) -> None:
        """End a process by a signal and wait for it, and for the workers that it leaves behind."""
        process.killed_at.append(time.monotonic())
        served = process.pids()
        process.running.send_signal(how)
        try:
            await asyncio.to_thread(process.running.wait, _END_S)
            async with asyncio.timeout(_END_S):
                while any(Path(f"/proc/{pid}").exists() for pid in served):
                    await asyncio.sleep(0.05)
        except (subprocess.TimeoutExpired, TimeoutError):
            await _tell_where_it_stands([process.running.pid, *served, *process.pids()])
            raise AssertionError(
                f"{process.command} did not end within {_END_S:.0f} s of {how.name}: {process.log.name} has its stacks"
            ) from None

    async def start(self, process: Process) -> None:
        """Start it again at its port, unless another fault's end has done so."""
        if process.running.poll() is None:
            return
        process.running, process.log = self._spawn(process)
        url = f"http://127.0.0.1:{process.port}/readyz"
        await asyncio.to_thread(wait_for, url, process.running, process.log, _START_S)

    def _spawn(self, process: Process) -> tuple[subprocess.Popen[bytes], Path]:
        return spawned(self.installation, process.command, process.port, process.workers)

    async def counted(self, process: Process, name: str) -> float:
        """Return the sum of a metric over what serves of a process, 0 when there is none."""
        async with httpx2.AsyncClient(timeout=10) as client:
            text = (await client.get(f"http://127.0.0.1:{process.port}/metrics")).text
        return sum(float(each) for each in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    async def as_owner(self, *statements: str) -> None:
        """Do something to the database that the gateway's role may not."""
        connection = await asyncpg.connect(self.postgres.owner_url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def pools(self) -> set[str]:
        """Return the names of all pools in the table."""
        connection = await asyncpg.connect(self.postgres.owner_url)
        try:
            return {row["name"] for row in await connection.fetch("select name from pool")}
        finally:
            await connection.close()

    async def rows(self) -> dict[str, int]:
        """Return how often each request id is in the usage table."""
        connection = await asyncpg.connect(self.postgres.owner_url)
        try:
            found = await connection.fetch("select request_id, count(*) as times from usage_event group by 1")
        finally:
            await connection.close()
        return {row["request_id"]: row["times"] for row in found}


async def _tell_where_it_stands(pids: Iterable[int]) -> None:
    """Have processes that should be gone write their stacks to their log, then kill them."""
    left = sorted(set(pids))
    for how in (signal.SIGCONT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGKILL):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
        await asyncio.sleep(_WRITE_S)


def spawned(installation: Installation, command: str, port: int, workers: int) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a process of the installation with so many workers."""
    return installation.spawn(command, port, LLM_PROXY_WORKERS=str(workers))


@asynccontextmanager
async def made(directory: Path, pace_s: float, workers: int) -> AsyncIterator[World]:
    """Set it all up; `gateway` gets so many workers."""
    wild, steady = Provider(), Provider()
    wild.start()
    steady.start()
    port = free_port()
    try:
        settings = {
            "LLM_PROXY_USAGE_SPOOL": str(directory / "spool"),
            "LLM_PROXY_USAGE_SPOOL_SIZE": str(_SPOOL_BYTES),
            "LLM_PROXY_HEADER_TIMEOUT": "3",
            "LLM_PROXY_BODY_TIMEOUT": "3",
            "LLM_PROXY_SEND_TIMEOUT": "3",
            "LLM_PROXY_DRAIN": "5",
            "PYTHONPATH": str(Path(__file__).parent / "witness"),
        }
        postgres = InterruptiblePostgres(directory / "postgres", settings=REPLICATED)
        async with installation_over(postgres, directory, port, **settings) as running:
            processes: list[Process] = []
            token = ""
            for command in ("serve", "gateway", "control"):
                its_port = free_port() if processes else port
                its_workers = workers if command == "gateway" else 1
                process, log = spawned(running, command, its_port, its_workers)
                await asyncio.to_thread(wait_for, f"http://127.0.0.1:{its_port}/readyz", process, log)
                processes.append(Process(command, its_port, process, log, workers=its_workers))
                if command == "serve":
                    token = await asyncio.to_thread(_tenant, running, f"http://127.0.0.1:{port}", wild, steady)
            yield World(running, processes, wild, steady, token.encode(), pace_s)
    finally:
        wild.stop()
        steady.stop()


def _tenant(running: Installation, base_url: str, wild: Provider, steady: Provider) -> str:
    keys = [
        {"name": name, "provider": "simulated", "base_url": provider.base_url, "api_key": f"sk-chaos-{name}-0000000"}
        for name, provider in (("wild-1", wild), ("wild-2", wild), ("steady", steady))
    ]
    token = running.new_tenant(base_url, "chaos", {"name": "main", "strategy": "round_robin", "providers": keys})
    with httpx2.Client(base_url=base_url, headers={"authorization": f"Bearer {token}"}) as client:
        pool = client.get("/api/v1/pools").json()["items"][0]
        deadlines = {"connect_s": 1.0, "first_byte_s": 1.5, "idle_s": 1.5, "total_s": TOTAL_S}
        changed = client.patch(
            f"/api/v1/pools/{pool['id']}",
            json={"settings": {"deadlines": deadlines, "max_waiting": _MAX_WAITING}},
            headers={"if-match": f'"{pool["version"]}"'},
        )
        assert changed.status_code == 200, changed.text
        # Those that start later load it at once; a call that begins before this one knows it has minutes, not seconds.
        give_up = time.monotonic() + _START_S
        while client.get("/pools/main/state").raise_for_status().json()["queue"]["max_waiting"] != _MAX_WAITING:
            assert time.monotonic() < give_up, "serve has not learned of the pool's deadlines"
            time.sleep(0.05)
    return token
