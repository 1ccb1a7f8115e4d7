"""What a machine runs out of: disk, file descriptors, connections."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

from tests.chaos.scene import Scene
from tests.chaos.world import SEGMENT_BYTES, Process

_TAKES_S = 30.0
_AT_ONCE = 8
_ENOUGH = 100
"""Connections until one meets the process that has no room: the others are its siblings'."""
IDLE = 300


@contextmanager
def _limited(limits: dict[int, int], what: int) -> Iterator[None]:
    """Lower a limit of processes: pid → what each may have."""
    before: list[tuple[int, tuple[int, int]]] = []
    for pid, soft in limits.items():
        with suppress(ProcessLookupError):
            had = resource.prlimit(pid, what)
            resource.prlimit(pid, what, (soft, had[1]))
            before.append((pid, had))
    try:
        yield
    finally:
        for pid, had in before:
            with suppress(ProcessLookupError):
                resource.prlimit(pid, what, had)


@asynccontextmanager
async def disk_full(scene: Scene) -> AsyncIterator[None]:
    """The spool gets no new segment while Postgres is away: rows wait in memory, and no request does.

    It lasts until callers have filled the segment that the process had.
    """
    world, process = scene.world, scene.process
    before = await world.counted(process, "llm_proxy_usage_unspooled_total")
    await world.postgres.stop()
    with _limited(dict.fromkeys(process.pids(), SEGMENT_BYTES - 1), resource.RLIMIT_FSIZE):
        give_up = time.monotonic() + _TAKES_S
        while not scene.strike.took and time.monotonic() < give_up:
            await asyncio.gather(*(process.callers[0].call() for _ in range(_AT_ONCE)))
            scene.took(await world.counted(process, "llm_proxy_usage_unspooled_total") > before)
        yield
    await world.postgres.start()


@asynccontextmanager
async def descriptors_gone(scene: Scene) -> AsyncIterator[None]:
    """No connection can be accepted or opened: no number is free, and those below the limit are held."""
    pid = scene.rng.choice(await scene.process.serving())
    used = {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}
    lowest = min(set(range(len(used) + 1)) - used)
    async with AsyncExitStack() as held:
        with _limited({pid: lowest}, resource.RLIMIT_NOFILE):
            for _ in range(_ENOUGH):
                if not await _answers(scene.process, held):
                    scene.took()
                    break
            yield


async def _answers(process: Process, held: AsyncExitStack) -> bool:
    with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
            held.callback(_abort, writer)  # the writer itself: without one the connection would be closed
            writer.write(b"GET /livez HTTP/1.1\r\nhost: g\r\n\r\n")
            return (await reader.readexactly(12)) == b"HTTP/1.1 200"
    return False


def _abort(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


@asynccontextmanager
async def idle_flood(scene: Scene) -> AsyncIterator[None]:
    opened = await asyncio.gather(
        *(asyncio.open_connection("127.0.0.1", scene.process.port) for _ in range(IDLE)), return_exceptions=True
    )
    connections = [each for each in opened if not isinstance(each, BaseException)]
    scene.took(len(connections) == IDLE)
    yield
    for _, writer in connections:
        _abort(writer)
