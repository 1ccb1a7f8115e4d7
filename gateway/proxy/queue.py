"""Where requests wait while every key is full: short lines, first come first served within a priority.

One line for each model (what is full for one may be free for another). Only the head of a line tries again: when its
pause ends, or earlier when a request of the pool has ended. Whoever gets a key leaves, and the next in line tries at
once. New requests for a model that is waited for stand at the end, so nobody is overtaken within a priority.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import TypeAlias

LineKey: TypeAlias = tuple[str, str]
"""(dialect, model)"""


class Place:
    """One request's place in a line; made by `PoolQueue.place`, good for many waits, given up by `leave`."""

    __slots__ = ("_deadline", "_line", "_queue", "_rank", "_waiter")

    def __init__(self, queue: PoolQueue, line: LineKey, rank: tuple[int, int], deadline: float) -> None:
        self._queue = queue
        self._line = line
        self._rank = rank
        self._deadline = deadline
        self._waiter: asyncio.Future[None] | None = None

    def __lt__(self, other: Place) -> bool:
        return self._rank < other._rank

    async def wait(self, until: float) -> bool:
        """Wait until it is worth trying: at `until` (queue's clock, seconds), or earlier, at the head of the line.

        False: there was no room in the queue, or the request's deadline has passed. Cancelling gives up the place.
        """
        queue = self._queue
        if not queue._stand(self, self._line):
            return False
        try:
            await self._wait(until)
        except BaseException:
            self.leave()
            raise
        if queue.clock() >= self._deadline:
            self.leave()
            return False
        return True

    async def _wait(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        at_head = self._queue._head(self._line) is self
        # Behind others there is nothing to try before they have gone; the head's pause ends by itself.
        wake_at = min(until, self._deadline) if at_head else self._deadline
        timer = loop.call_later(max(0.0, min(wake_at - self._queue.clock(), 3600.0)), self.wake)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def wake(self) -> None:
        """Let it try now."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def leave(self) -> None:
        """Give up the place: a key was got, or waiting is over. The next in line tries."""
        self._queue._leave(self, self._line)


class PoolQueue:
    """The lines of one pool; at most `max_waiting` requests stand in all of them together.

    `clock` is monotonic seconds, the one that deadlines and pauses are given in.
    """

    def __init__(self, clock: Callable[[], float], *, max_waiting: int = 1000) -> None:
        self.clock = clock
        self.max_waiting = max_waiting
        self._lines: dict[LineKey, list[Place]] = {}
        self._size = 0
        self._tickets = 0

    @property
    def waiting(self) -> int:
        """How many requests stand in line."""
        return self._size

    def is_waited_for(self, line: LineKey) -> bool:
        """Tell whether somebody waits for this model already."""
        return line in self._lines

    def place(self, line: LineKey, *, priority: int, deadline: float) -> Place:
        """Take a number; standing in line begins with the first `wait`. A smaller `priority` goes first."""
        self._tickets += 1
        return Place(self, line, (priority, self._tickets), deadline)

    def released(self) -> None:
        """Tell that capacity may have come free: the head of each line tries."""
        if self._lines:
            for line in self._lines.values():
                line[0].wake()

    def _head(self, line: LineKey) -> Place | None:
        places = self._lines.get(line)
        return places[0] if places else None

    def _stand(self, place: Place, line: LineKey) -> bool:
        places = self._lines.get(line)
        if places is not None and place in places:
            return True
        if self._size >= self.max_waiting:
            return False
        heapq.heappush(self._lines.setdefault(line, []), place)
        self._size += 1
        return True

    def _leave(self, place: Place, line: LineKey) -> None:
        places = self._lines.get(line)
        if places is None or place not in places:
            return
        was_head = places[0] is place
        places.remove(place)
        self._size -= 1
        if not places:
            del self._lines[line]
            return
        heapq.heapify(places)
        if was_head:
            places[0].wake()
