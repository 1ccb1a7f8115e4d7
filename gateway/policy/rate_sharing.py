"""Exchanges this process's use of tokens' rates with the others', off the request path."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final
from uuid import uuid4

from gateway.policy.rate_store import KEPT_S, LOOK_BACK_S, RateStore
from gateway.policy.rates import Learn, RateLog

log = logging.getLogger(__name__)

BUSY_S: Final = 0.25
"""Between exchanges while there is something to tell or to ask for."""

IDLE_BEATS: Final = 4
"""Otherwise every so many of these: who says nothing is not counted among the processes."""

_TIMEOUT_S: Final = 5.0


class RateSharing:
    """Keeps the windows of this process in step with the others'; `run` as a task. `clock` is Unix seconds.

    `learn` counts what others told. While the store is away each process counts for itself; what it admitted is told
    when the store is back, if it still counts.
    """

    def __init__(self, rates: RateLog, store: RateStore, learn: Learn, *, clock: Callable[[], float]) -> None:
        self._rates = rates
        self._store = store
        self._learn = learn
        self._clock = clock
        self._me = uuid4()
        self._known: OrderedDict[int, float] = OrderedDict()
        self._first = True
        self.failures = 0

    async def exchange(self) -> bool:
        """Tell and learn once; tells whether the store answered."""
        now = self._clock()
        uses = self._rates.hand_out()
        told = None
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                told = await self._store.exchange(self._me, uses, everything=self._first)
        except Exception as error:  # noqa: BLE001 - a loop's boundary: whatever the store does, what is known holds
            # One line an outage: the repeats would bury everything else.
            level = logging.DEBUG if self.failures else logging.WARNING
            log.log(level, "rates not exchanged, counting alone", extra={"reason": type(error).__name__})
            self.failures += 1
            self._rates.exchanged(1)
            return False
        finally:
            if told is None:
                self._rates.kept(uses, since=int(now) - KEPT_S)
        for each in told:
            if each.id not in self._known:
                self._known[each.id] = now
                if each.process != self._me:
                    self._learn(each.uses)
        while self._known and next(iter(self._known.values())) < now - KEPT_S - LOOK_BACK_S:
            self._known.popitem(last=False)
        self._rates.exchanged(len({each.process for each in told}))
        self._first, self.failures = False, 0
        return True

    async def run(self) -> None:
        """Exchange for ever."""
        idle = 0
        while True:
            await asyncio.sleep(BUSY_S)
            idle += 1
            if self._rates.is_busy or idle >= IDLE_BEATS:
                idle = 0
                await self.exchange()
