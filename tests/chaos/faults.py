"""The faults: each begins, lasts for a while, and is mended. What is being done is said by its name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from tests.chaos.world import Process, World
from tests.hostile.provider import Seen, Wire, good_answer
from tests.hostile.upstreams import UPSTREAMS

Fault = Callable[[World, random.Random], AbstractAsyncContextManager[None]]
_WITHOUT_IDENTITY = {"a second answer a moment later"}
"""Answers that name no request: callers could not tell them from somebody else's."""
_HARMLESS = [case.script for case in UPSTREAMS if case.name not in _WITHOUT_IDENTITY]


@asynccontextmanager
async def postgres_down(world: World, rng: random.Random) -> AsyncIterator[None]:
    await world.postgres.stop()
    yield
    await world.postgres.start()


@asynccontextmanager
async def postgres_stalled(world: World, rng: random.Random) -> AsyncIterator[None]:
    world.postgres.flowing.clear()
    yield
    world.postgres.flowing.set()


@asynccontextmanager
async def postgres_restarted(world: World, rng: random.Random) -> AsyncIterator[None]:
    await world.postgres.stop()
    await world.postgres.start()
    yield


def _ended(end: Callable[[World, Process], Awaitable[None]]) -> Fault:
    @asynccontextmanager
    async def fault(world: World, rng: random.Random) -> AsyncIterator[None]:
        process = rng.choice(world.processes)
        await end(world, process)
        yield
        await world.start(process)

    return fault


async def _kill(world: World, process: Process) -> None:
    await world.end(process, signal.SIGKILL)


@asynccontextmanager
async def worker_killed(world: World, rng: random.Random) -> AsyncIterator[None]:
    process = max(world.processes, key=lambda each: each.workers)
    pids = process.pids() if process.workers > 1 else []
    for pid in pids[: rng.randrange(1, 3)]:
        process.killed_at = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    yield  # its supervisor starts another


async def _terminate(world: World, process: Process) -> None:
    await world.end(process, signal.SIGTERM)


@asynccontextmanager
async def paused(world: World, rng: random.Random) -> AsyncIterator[None]:
    process = rng.choice(world.processes)
    pids = process.pids()
    process.freeze(frozen=True)
    with contextlib.suppress(ProcessLookupError, IndexError):
        pid = rng.choice(pids)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(min(2.0, world.pace_s))
        os.kill(pid, signal.SIGCONT)
    yield
    process.freeze(frozen=False)


@asynccontextmanager
async def hung_up(world: World, rng: random.Random) -> AsyncIterator[None]:
    for process in world.processes:
        process.running.send_signal(signal.SIGHUP)
    yield


@asynccontextmanager
async def provider_wild(world: World, rng: random.Random) -> AsyncIterator[None]:
    async def mood(wire: Wire, seen: Seen) -> None:
        await (rng.choice(_HARMLESS) if rng.random() < 0.5 else good_answer)(wire, seen)

    world.wild.mood = mood
    yield
    world.wild.mood = good_answer


@asynccontextmanager
async def provider_gone(world: World, rng: random.Random) -> AsyncIterator[None]:
    async def mood(wire: Wire, seen: Seen) -> None:
        wire.reset()

    world.wild.mood = mood
    yield
    world.wild.mood = good_answer


@asynccontextmanager
async def provider_hangs(world: World, rng: random.Random) -> AsyncIterator[None]:
    async def mood(wire: Wire, seen: Seen) -> None:
        await wire.gone.wait()

    world.wild.mood = mood
    yield
    world.wild.mood = good_answer


@asynccontextmanager
async def _limited(world: World, rng: random.Random, what: int, room: Callable[[int], int]) -> AsyncIterator[None]:
    pid, before = 0, None
    # Another fault may have ended it just now.
    with contextlib.suppress(ProcessLookupError, FileNotFoundError, IndexError):
        pid = rng.choice(rng.choice(world.processes).pids())
        before = resource.prlimit(pid, what)
        resource.prlimit(pid, what, (room(pid), before[1]))
    yield
    if before is not None:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, what, before)


def disk_full(world: World, rng: random.Random) -> AbstractAsyncContextManager[None]:
    """The spool gets no new segment."""
    return _limited(world, rng, resource.RLIMIT_FSIZE, lambda _: 1000)


def descriptors_gone(world: World, rng: random.Random) -> AbstractAsyncContextManager[None]:
    """No connection can be accepted or opened."""
    return _limited(world, rng, resource.RLIMIT_NOFILE, lambda pid: len(list(Path(f"/proc/{pid}/fd").iterdir())))


@asynccontextmanager
async def idle_flood(world: World, rng: random.Random) -> AsyncIterator[None]:
    process = rng.choice(world.processes)
    opened = await asyncio.gather(
        *(asyncio.open_connection("127.0.0.1", process.port) for _ in range(300)), return_exceptions=True
    )
    yield
    for each in opened:
        if not isinstance(each, BaseException):
            each[1].transport.abort()


FAULTS: dict[str, Fault] = {
    "Postgres down": postgres_down,
    "Postgres stalled": postgres_stalled,
    "Postgres restarted": postgres_restarted,
    "kill -9": _ended(_kill),
    "kill -9 of one worker": worker_killed,
    "SIGTERM": _ended(_terminate),
    "SIGHUP": hung_up,
    "SIGSTOP and SIGCONT": paused,
    "a provider does all it should not": provider_wild,
    "a provider resets": provider_gone,
    "a provider hangs": provider_hangs,
    "disk full": disk_full,
    "out of file descriptors": descriptors_gone,
    "300 idle connections": idle_flood,
}
