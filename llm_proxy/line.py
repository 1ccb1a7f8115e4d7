"""Where calls wait while every key is full: first come first served for each model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

LineKey: TypeAlias = tuple[str, str]
"""(dialect, model): what is full for one may be free for another."""


class Place:
    """One call's place, taken with the first `wait` and given up by `leave`. Only the first in line tries again."""

    __slots__ = ("_key", "_lines", "waiter")

    def __init__(self, lines: Lines, key: LineKey) -> None:
        self._lines = lines
        self._key = key
        self.waiter: asyncio.Future[None] | None = None

    async def wait(self, until: float, deadline: float) -> bool:
        """Wait until it is worth trying: at `until`, or earlier when capacity was freed; False at the deadline.

        Cancelling gives up the place.
        """
        lines, loop = self._lines, asyncio.get_running_loop()
        line = lines.waiting.setdefault(self._key, deque())
        if self not in line:
            line.append(self)
        self.waiter = waiter = loop.create_future()
        # Behind others there is nothing to try before they have gone.
        wake_at = min(until, deadline) if line[0] is self else deadline
        timer = loop.call_later(max(0.0, wake_at - lines.clock()), self.wake)
        try:
            await waiter
        except BaseException:
            self.leave()
            raise
        finally:
            timer.cancel()
            self.waiter = None
        return lines.clock() < deadline

    def wake(self) -> None:
        """Let it try now."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def leave(self) -> None:
        """Give up the place; the next in line tries."""
        line = self._lines.waiting.get(self._key)
        if line is None or self not in line:
            return
        was_first = line[0] is self
        line.remove(self)
        if not line:
            del self._lines.waiting[self._key]
        elif was_first:
            line[0].wake()


class Lines:
    """All lines of one balancer; `clock` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.waiting: dict[LineKey, deque[Place]] = {}

    @property
    def size(self) -> int:
        """How many calls wait."""
        return sum(len(line) for line in self.waiting.values())

    def freed(self) -> None:
        """Tell that capacity may have come free: the first of each line tries."""
        for line in self.waiting.values():
            line[0].wake()
