"""What a process undoes at its end: last made, first undone, and all of it within one bound, whatever hangs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final

log = logging.getLogger(__name__)

CLOSE_S: Final = 10.0
"""How long the end of an application may take."""
STEPS_S: Final = 7.5
"""How long its steps may take together; the rest is for what has to be cancelled."""
_LEAST_S: Final = 0.2
"""What a step gets when the time is up: most need no more. So long, too, one that is cancelled has to notice."""


class Teardown:
    """Steps to be run at the end, each with the time that it may take alone."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], Coroutine[Any, Any, None]], float]] = []

    def add(self, name: str, step: Callable[[], Coroutine[Any, Any, None]], within_s: float = 2.0) -> None:
        """Add a step; it runs before those that were added earlier."""
        self._steps.append((name, step, within_s))

    async def run(self, within_s: float = STEPS_S) -> None:
        """Run the steps, once; one that takes too long is cancelled, one that fails is logged, the next has its turn.

        Takes at most `within_s` and twice `_LEAST_S` a step, as long as the event loop turns.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        while self._steps:
            name, step, step_s = self._steps.pop()
            await finish([asyncio.create_task(step(), name=name)], max(_LEAST_S, min(step_s, until - loop.time())))


async def finish(tasks: Collection[asyncio.Task[None]], within_s: float) -> None:
    """Wait for tasks to end; cancel those that take longer than `within_s`, and give them up if they do not notice."""
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=within_s)
    for task in late:
        log.warning("given up at the end: it takes too long", extra={"step": task.get_name()})
    await stop(late, _LEAST_S)
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            log.error("failed at the end", extra={"step": task.get_name()}, exc_info=error)


async def stop(tasks: Collection[asyncio.Task[None]], within_s: float) -> None:
    """Cancel tasks, all at once, and wait for their ends, at most `within_s`."""
    for task in tasks:
        task.cancel()
    late = (await asyncio.wait(tasks, timeout=within_s))[1] if tasks else ()
    for task in late:
        # What it does about its cancellation waits for something, too: not any longer.
        log.warning("does not leave off", extra={"step": task.get_name()})
        task.cancel()
