"""Two attempts of one request at a time: runs them, and gives whichever the exchange takes for the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from gateway.balancing.decision import Lease
from gateway.balancing.exchange import Exchange
from gateway.balancing.steps import Answered, Await, Broke, Overdue, Send, Step


class Runner(Protocol):
    """Makes one attempt and holds what came of it."""

    async def attempt(self, lease: Lease) -> Answered | Broke:
        """Send, and say whether there is an answer; the event names `lease`."""

    def drop(self) -> None:
        """Close what it holds."""


R = TypeVar("R", bound=Runner)


async def race(
    exchange: Exchange, lease: Lease, runner: Callable[[Lease], R], *, clock: Callable[[], float]
) -> tuple[Step, R]:
    """Send on `lease`, and on a second key when the exchange says so; return the step that follows and its runner.

    `runner` is called before anything else may happen: what a lease stands for may be gone a turn of the loop later.

    Then no other attempt is under way any more: it was cancelled and its connection closed, or it failed before.
    """
    running: dict[asyncio.Task[Answered | Broke], R] = {}

    def begin(lease: Lease) -> None:
        one = runner(lease)
        running[asyncio.create_task(one.attempt(lease))] = one

    winner: R | None = None
    begin(lease)
    try:
        while True:
            at = exchange.overdue_at
            timeout_s = None if at is None else max(0.0, at - clock())
            done, _ = await asyncio.wait(running, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                step = exchange.step(Overdue(), clock())
                if isinstance(step, Send):
                    begin(step.lease)
                continue
            task = done.pop()
            one = running[task]
            step = exchange.step(task.result(), clock())
            del running[task]
            if not isinstance(step, Await):
                winner = one
                return step, one
            one.drop()
    finally:
        for task in running:
            task.cancel()
        try:
            await asyncio.gather(*running, return_exceptions=True)
        except asyncio.CancelledError:
            # The caller has left just now: nobody else knows of the one that answered.
            if winner is not None:
                winner.drop()
            raise
        finally:
            for one in running.values():
                one.drop()
