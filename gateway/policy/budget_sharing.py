"""Exchanges this process's spending with the others', about once a second, off the request path."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from gateway.policy.budget_store import BudgetStore
from gateway.policy.budgets import BudgetBook

log = logging.getLogger(__name__)

INTERVAL_S: Final = 1.0
_READ_ALL_S: Final = 600.0
_TIMEOUT_S: Final = 5.0


class BudgetSharing:
    """Keeps `book` in step with `store`; `start` once, `run` as a task, `close` at the end. `clock` is Unix seconds.

    While the store is away this process goes on with the totals it knows and its own spending, and says that later.
    """

    def __init__(self, book: BudgetBook, store: BudgetStore, *, clock: Callable[[], float]) -> None:
        self._book = book
        self._store = store
        self._clock = clock
        self._read_all_at = float("-inf")
        self.exchanges = 0
        self.failures = 0

    async def exchange(self) -> bool:
        """Say what was spent here, learn what was spent elsewhere; tells whether the store answered."""
        now = self._clock()
        everything = not 0.0 <= now - self._read_all_at < _READ_ALL_S
        spends = self._book.hand_out()
        settled = False
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                totals = await self._store.exchange(spends, everything=everything)
            # Together, without a pause between: what is in the totals now is not counted twice.
            self._book.settled(spends)
            self._book.learn(totals)
            settled = True
        except Exception as error:  # noqa: BLE001 - a loop's boundary: whatever the store does, what is known serves
            # One line an outage: the repeats would bury everything else.
            level = logging.DEBUG if self.failures else logging.WARNING
            log.log(level, "budgets not exchanged, using what is known", extra={"reason": type(error).__name__})
            self.failures += 1
            return False
        finally:
            if not settled:
                self._book.kept(spends)
        if everything:
            self._read_all_at = now
            self._book.forget_ended(now)
        self.exchanges, self.failures = self.exchanges + 1, 0
        return True

    async def run(self) -> None:
        """Exchange for ever."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.exchange()

    async def close(self) -> None:
        """Say what is left, once."""
        await self.exchange()
