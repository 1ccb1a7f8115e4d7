"""Exchanges this process's leases with the store, about once a second, and at once when a request waits for a grant.

Between these it tells and hears what cannot wait for the second, see `news`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import inf
from random import Random
from uuid import UUID

import msgspec

from gateway.leases import notices
from gateway.leases.desk import Desk
from gateway.leases.row import LEASE_S, Answer, Report, Row, exchange, later, listen
from gateway.leases.store import Key, LeaseStore, Swap
from gateway.leases.tenant_word import TENANT_ROW
from gateway.unhurried import unhurried

log = logging.getLogger(__name__)

PERIOD_S = 1.0
GAP_S = 0.02
"""Exchanges that are asked for at once come no closer: what is asked for meanwhile goes together."""
TIMEOUT_S = 1.5
"""An exchange that takes longer has failed: what was to be given back is not spent meanwhile."""
MAX_SPAN_S = 3.0
"""While the store is away the own share is taken for the time since it was taken last, at most this."""
TRIES = 8
_KNOWN_BOUND = 200_000
_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Row)


class LeaseDriver:
    """Drives a `Desk` over a `LeaseStore`; `run` as a task, cancel it to stop, then `close` gives everything back.

    `on_granted` is told of tenants for whose requests there may be more. `clock` is the desk's monotonic clock. What
    others announce goes to `heard`.
    """

    def __init__(
        self,
        store: LeaseStore,
        *,
        lessee: str,
        clock: Callable[[], float],
        unix_offset_s: float,
        rng: Random,
        on_granted: Callable[[set[UUID]], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._rng = rng
        self._on_granted = on_granted
        self._wake = asyncio.Event()
        self._is_needed = False
        self._rows: dict[Key, bytes] = {}
        self.desk = Desk(lessee, unix_offset_s=unix_offset_s, on_need=self._need)
        self._tag = notices.tag(lessee)
        self.exchanges = 0
        self.conflicts = 0
        self.failures = self.unannounced = 0
        self.is_away = False
        self._tried_at = self._alone_at = -inf

    @property
    def is_waited_for(self) -> bool:
        """Tell whether something is to be exchanged before the period is over."""
        return self._is_needed or self._clock() >= self.desk.early_at()

    def _need(self) -> None:
        self._is_needed = True
        self._wake.set()

    def heard(self, payload: str) -> None:
        """Take in a notice of another process, or of this one."""
        notice = notices.parse(payload)
        if notice is not None and notice.by != self._tag:
            self.desk.announced(notice.tenant_id, notice.rows, self._clock())
            self._wake.set()

    async def run(self) -> None:
        """Exchange for ever."""
        due = self._clock()
        while True:
            # The first ones of a quiet process wait no longer than the gap; while the store is away, a period.
            await asyncio.sleep(max(GAP_S, PERIOD_S - (self._clock() - self._tried_at)) if self.is_away else GAP_S)
            while not (self.is_away or self.is_waited_for):
                self._wake.clear()
                delay_s = min(due, self.desk.early_at()) - self._clock()
                if delay_s <= 0.0:
                    break
                with suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._wake.wait()
            now = self._clock()
            everything = now >= due or self.is_away
            if everything:
                # Spread, so that processes do not come in step.
                due = now + PERIOD_S * (0.9 + 0.2 * self._rng.random())
            await self.exchange(everything=everything, due=due)

    async def exchange(self, *, everything: bool = True, due: float | None = None) -> None:
        """Exchange once what is due; never raises for a store that is away."""
        self._is_needed = False
        batches = self.desk.batches(self._clock()) if everything else [None]
        while batches:
            sent_at = self._clock()
            reports = self.desk.collect(sent_at, everything=everything, batch=batches.pop(0))
            if reports and not await self._exchange(reports, sent_at, due, batches):
                return

    async def _exchange(
        self, reports: dict[Key, Report], sent_at: float, due: float | None, rest: Iterable[list[Key] | None]
    ) -> bool:
        """Exchange these; False: the store is away, for the `rest` as well."""
        pending, woken, told = dict(reports), set[UUID](), list[Key]()
        self._tried_at = sent_at
        try:
            async with asyncio.timeout(TIMEOUT_S):
                for attempt in range(TRIES):
                    if attempt:
                        await asyncio.sleep(self._rng.random() * 0.002 * 2**attempt)
                    answers = await self._try(pending)
                    async for key, answer in unhurried(answers.items()):
                        report = pending.pop(key)
                        now = self._clock()
                        if report.only_listens:
                            more = self.desk.heard(key, answer, now)
                        else:
                            retry_at = sent_at + PERIOD_S if due is None else due
                            more = self.desk.granted(key, answer, sent_at=sent_at, now=now, retry_at=retry_at)
                        if more:
                            woken.add(key[0])
                        if report.is_news and (answer.others or key[1] == TENANT_ROW):
                            told.append(key)
                    if not pending:
                        break
                    self.conflicts += len(pending)
            self.exchanges += 1
            self._back()
            self.desk.conflicted(pending)
        except Exception as error:  # noqa: BLE001 - a loop boundary: a process never ends up with nothing
            self._lost(error)
            now = self._clock()
            if now - sent_at < LEASE_S:
                span_s = min(MAX_SPAN_S, max(PERIOD_S, now - max(self._alone_at, sent_at - PERIOD_S)))
                self._alone_at = now
                lost = [key for key, report in pending.items() if not report.listening]
                for batch in rest:
                    lost += self.desk.collect(now, everything=True, batch=batch)
                self.desk.away(lost, now, span_s=span_s)
                woken |= {key[0] for key in lost}
            # Else this process itself stood still, and so may have been given up by the others: it asks first.
        if woken:
            self._on_granted(woken)
        if told and self.desk.news.may_announce(sent_at):
            await self._announce(told)
        return not self.is_away

    async def _announce(self, keys: list[Key]) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._store.announce(notices.encode(keys, self._tag))
        except Exception as error:  # noqa: BLE001 - a loop boundary: the others read it with their next exchange
            self.unannounced += 1
            log.warning("news of shared quotas not announced", extra={"reason": repr(error)})

    async def _try(self, reports: dict[Key, Report]) -> dict[Key, Answer]:
        clock, stored = await self._store.read(list(reports))
        swaps: list[Swap] = []
        answers: dict[Key, Answer] = {}
        heard: dict[Key, Answer] = {}
        async for key, report in unhurried(reports.items()):
            found = stored.get(key)
            row = later(_decode(found.state) if found else None, _decode(self._rows.get(key)))
            if report.only_listens:
                heard[key] = listen(row, report, clock)
                continue
            answers[key] = exchange(row, report, clock)
            row.version = max(row.version, (found.version if found else 0) + 1)
            swaps.append(Swap(key, found.version if found else 0, row.version, _ENCODER.encode(row)))
        done = await self._store.swap(swaps) if swaps else set[Key]()
        for swap in swaps:
            if swap.key in done:
                self._rows[swap.key] = swap.state
        if len(self._rows) > _KNOWN_BOUND:
            self._rows.clear()
        return heard | {key: answer for key, answer in answers.items() if key in done}

    def _lost(self, error: BaseException) -> None:
        self.failures += 1
        if not self.is_away:
            log.warning("leases not renewed, living on the last share", extra={"reason": repr(error)})
        self.is_away = True

    def _back(self) -> None:
        if self.is_away:
            log.info("leases renewed again")
        self.is_away = False

    async def close(self) -> None:
        """Give everything back, if the store can be reached."""
        self.desk.leave()
        await self.exchange()
        await self._store.close()


def _decode(state: bytes | None) -> Row | None:
    """Read a row; one that a later version wrote in a way that is not understood counts as none."""
    if state is None:
        return None
    try:
        return _DECODER.decode(state)
    except msgspec.MsgspecError:
        log.warning("a shared quota's row is not understood and is made anew")
        return None
