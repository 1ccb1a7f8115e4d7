"""What is seen of a supervisor and its workers from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that still run, first the oldest."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pids: Iterable[int]) -> list[int]:
    """Return those of the processes that are there."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


async def until(found: str, log: Path, *, times: int = 1) -> None:
    """Wait until a line was logged so often."""
    async with asyncio.timeout(60):
        while (await asyncio.to_thread(log.read_text)).count(found) < times:
            await asyncio.sleep(0.1)
