"""Processes as they run (`LeaseDriver.run`), on an event loop whose time is virtual, over a store that takes time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Sequence
from random import Random
from typing import Any, TypeVar

from gateway.leases.store import InMemoryLeaseStore, Key, Stored, Swap
from tests.leases.pools import UNIX, Process

TAKES_S = 0.01
"""What one statement takes."""
STEP_S = 0.005
Found = TypeVar("Found")


class _Jumping(selectors.DefaultSelector):
    """Waits for nothing: time jumps to when the next timer is due."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0.0:
            self.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Nobody may wait in it for what happens outside."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


class TimedStore(InMemoryLeaseStore):
    """The twin, each statement of which takes time; notices take as long again. `rows_put` counts rows."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.rows_put = 0
        self.is_silent = False
        """Whether notices get lost."""

    async def read(self, keys: Sequence[Key]) -> tuple[float, dict[Key, Stored]]:
        await asyncio.sleep(TAKES_S)
        return await super().read(keys)

    async def swap(self, swaps: Sequence[Swap]) -> set[Key]:
        await asyncio.sleep(TAKES_S)
        self.rows_put += len(swaps)
        return await super().swap(swaps)

    async def announce(self, notices: Sequence[str]) -> None:
        await asyncio.sleep(TAKES_S)
        if not self.is_silent:
            await super().announce(notices)


class VirtualWorld:
    """`processes` over the same keys; each begins at a moment of its own, and goes at its own pace."""

    def __init__(self, seed: int, processes: int = 4, *, max_in_flight: int | None = None) -> None:
        self.rng = Random(seed)
        self.store = TimedStore(lambda: self.now + UNIX)
        self.processes = [Process(self, f"{seed}/{number}", max_in_flight=max_in_flight) for number in range(processes)]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._begin(process)) for process in self.processes]

    async def _begin(self, process: Process) -> None:
        await asyncio.sleep(self.rng.random())
        await process.driver.run()

    async def until(self, holds: Callable[[], bool], at_most_s: float = 10.0) -> float:
        """Give after how many seconds it holds."""
        began = self.now
        while not holds() and self.now - began < at_most_s:
            await asyncio.sleep(STEP_S)
        return self.now - began

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def run(work: Coroutine[Any, Any, Found]) -> Found:
    """Run `work` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
