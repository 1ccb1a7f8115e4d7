"""Signals to the processes: each is seen to have ended, or to stand still, or to go on."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

from tests.chaos.scene import Scene

_NOTICED_S = 5.0
_STARTS_S = 4.0
"""What a worker needs to start, about: so long Postgres stays away from one that is new."""


def ended(how: signal.Signals) -> Callable[[Scene], AbstractAsyncContextManager[None]]:
    """End a whole process (a supervisor with all of its workers); it is started again, and is ready, at the end."""

    @asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        await scene.world.end(scene.process, how)
        scene.took(scene.process.running.poll() is not None)
        yield
        await scene.world.start(scene.process)

    return fault


@asynccontextmanager
async def worker_killed(scene: Scene) -> AsyncIterator[None]:
    """Only what was under way feels it: the sibling and the kernel's queue take what comes next."""
    pid = scene.rng.choice(await scene.process.serving())
    scene.process.killed_at.append(time.monotonic())
    os.kill(pid, signal.SIGKILL)
    scene.took(await _comes(lambda: pid not in scene.process.pids()))
    scene.over()
    yield  # its supervisor starts another


@asynccontextmanager
async def worker_replaced_alone(scene: Scene) -> AsyncIterator[None]:
    """A worker is killed while Postgres is down, and its successor starts: until it is ready it takes nothing."""
    before = set(await scene.process.serving())
    await scene.world.postgres.stop()
    async with worker_killed(scene):
        if await _comes(lambda: bool(set(scene.process.pids()) - before)):
            await asyncio.sleep(_STARTS_S)
            scene.took()
        yield
    await scene.world.postgres.start()


@asynccontextmanager
async def paused(scene: Scene) -> AsyncIterator[None]:
    """Nothing of it runs for a while; its connections stay."""
    pid = scene.rng.choice(scene.process.pids())
    os.kill(pid, signal.SIGSTOP)
    scene.took(await _comes(lambda: re.search(r"\) [Tt] ", Path(f"/proc/{pid}/stat").read_text()) is not None))
    await asyncio.sleep(min(2.0, scene.world.pace_s))
    with suppress(ProcessLookupError):  # a roll may have ended it
        os.kill(pid, signal.SIGCONT)
    yield


@asynccontextmanager
async def hung_up(scene: Scene) -> AsyncIterator[None]:
    """Certificates are read again; a supervisor renews its workers one by one."""
    process = scene.process
    rolls = "workers are replaced one by one"
    process.running.send_signal(signal.SIGHUP)
    if process.workers > 1:
        scene.took(await _comes(lambda: rolls in process.log.read_text()))
    yield
    if process.workers == 1:
        scene.took(process.running.poll() is None)


async def _comes(seen: Callable[[], bool]) -> bool:
    give_up = time.monotonic() + _NOTICED_S
    while not seen():
        if time.monotonic() > give_up:
            return False
        await asyncio.sleep(0.02)
    return True
