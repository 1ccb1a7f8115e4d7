"""After SIGTERM a process ends within a bound, whatever keeps it: a stopped worker, a Postgres that says nothing.

docs/faults.md has the bound; here a process gets that, and what a busy machine may take more.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import free_port, wait_for
from tests.e2e.isolated import can_isolate
from tests.e2e.production import Installation, installation
from tests.e2e.supervised import children, running, until

_BOUND_S = 25.0
_TERSE = {"LLM_PROXY_LOG_FORMAT": "json", "LLM_PROXY_DRAIN": "1"}


@asynccontextmanager
async def supervised(directory: Path) -> AsyncIterator[tuple[Installation, subprocess.Popen[bytes], Path]]:
    """Run two workers that serve."""
    port = free_port()
    async with installation(directory, port, LLM_PROXY_WORKERS="2", **_TERSE) as installed:
        process, log = installed.spawn("serve", port)
        try:
            await until("worker serves", log, times=2)
            yield installed, process, log
        finally:
            installed.postgres.flowing.set()


async def ends(process: subprocess.Popen[bytes], log: Path, workers: list[int]) -> None:
    try:
        assert await asyncio.to_thread(process.wait, _BOUND_S) == 0
    except subprocess.TimeoutExpired:
        pytest.fail(f"it still runs:\n{log.read_text()}")
    assert running(workers) == []


async def test_a_worker_that_is_stopped_does_not_hold_the_supervisor(tmp_path: Path) -> None:
    async with supervised(tmp_path) as (_, process, log):
        workers = children(process.pid)
        os.kill(workers[0], signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        await ends(process, log, workers)


async def test_a_worker_that_waits_for_postgres_does_not_hold_the_supervisor(tmp_path: Path) -> None:
    async with supervised(tmp_path) as (installed, process, log):
        installed.postgres.flowing.clear()
        os.kill(children(process.pid)[0], signal.SIGKILL)
        await until("Waiting for application startup", log, times=3)
        workers = children(process.pid)
        process.send_signal(signal.SIGTERM)
        await ends(process, log, workers)


async def test_a_worker_that_dies_while_it_is_replaced_leaves_nobody_behind(tmp_path: Path) -> None:
    """Its place is taken once, by the new one: a second one, started for the dead, would be told nothing at the end."""
    async with supervised(tmp_path) as (_, process, log):
        before = children(process.pid)
        process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(60):
            while len(children(process.pid)) < 3:
                await asyncio.sleep(0.01)
        os.kill(before[0], signal.SIGKILL)
        await until("all workers are replaced", log)
        workers = children(process.pid)
        process.send_signal(signal.SIGTERM)
        await ends(process, log, workers)


async def test_workers_end_that_start_when_their_supervisor_is_told_to(tmp_path: Path) -> None:
    port = free_port()
    async with installation(tmp_path, port, LLM_PROXY_WORKERS="2", **_TERSE) as installed:
        process, log = installed.spawn("serve", port)
        async with asyncio.timeout(60):
            while len(workers := children(process.pid)) < 2:
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        await ends(process, log, workers)
        assert "Traceback" not in log.read_text()


async def test_a_worker_without_a_supervisor_ends_while_it_waits_for_postgres(tmp_path: Path) -> None:
    async with supervised(tmp_path) as (installed, process, log):
        installed.postgres.flowing.clear()
        os.kill(children(process.pid)[0], signal.SIGKILL)
        await until("Waiting for application startup", log, times=3)
        workers = children(process.pid)
        process.kill()
        process.wait()
        async with asyncio.timeout(_BOUND_S):
            while running(workers):
                await asyncio.sleep(0.05)


async def test_a_lone_process_ends_while_postgres_says_nothing(tmp_path: Path) -> None:
    port = free_port()
    async with installation(tmp_path, port, **_TERSE) as installed:
        process, log = installed.spawn("serve", port)
        await asyncio.to_thread(wait_for, f"http://127.0.0.1:{port}/readyz", process, log)
        installed.postgres.flowing.clear()
        try:
            process.send_signal(signal.SIGTERM)
            await ends(process, log, [])
        finally:
            installed.postgres.flowing.set()


@pytest.mark.skipif(not can_isolate(), reason="needs root")
async def test_the_first_process_of_a_container_ends_while_it_waits_for_postgres(tmp_path: Path) -> None:
    """Number 1 of a namespace is not ended by a signal that it has not asked for."""
    port = free_port()
    async with installation(tmp_path, port, **_TERSE) as installed:
        await installed.postgres.stop()
        try:
            unshare, log = installed.spawn("serve", port, within=("unshare", "--pid", "--fork", "--kill-child"))
            await until("waiting for the database", log)
            (first,) = children(unshare.pid)
            os.kill(first, signal.SIGTERM)
            await ends(unshare, log, [first])
        finally:
            unshare.kill()
            await installed.postgres.start()
