"""Takes usage rows off the request path: `record` is an append; a task writes batches behind it.

A batch is written as soon as `flush_rows` wait: Postgres may share a core with this process or with a provider, and a
statement of 500 rows keeps it for 5 ms and more. Only while the store is slower than the rows come do batches grow.

While the store is away rows are kept up to a bound and written when it is back; beyond the bound the oldest are dropped
and counted. What a crash can lose is what was buffered: at most `interval_s` of rows while the store is well.

With a spool every row is on disk before `record` returns: a crash loses none, and what leaves the memory at its bound
is read from the disk again. Then only a row that neither the disk nor the memory had room for is lost, and counted; and
a crash takes what is in memory alone while the disk has no room: it is put on disk within seconds of there being some.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

from gateway.metering.event import UsageEvent
from gateway.metering.spool import Segment, UsageSpool
from gateway.metering.store import RowsRefused, UsageStore

logger = logging.getLogger(__name__)

_MAX_BACKOFF_S = 10.0
_SYNC_S = 1.0
_ADOPT_S = 30.0
_SLICE = 250
"""So many rows are looked at before the event loop has its turn: 2 ms when all of them go to the disk."""


class UsageRecorder:
    """Buffers rows of one process and writes them when `flush_rows` wait, or `interval_s` have passed.

    A batch holds what waits, up to `batch_size`.

    `record` never blocks and never raises. `run` is the writing task; `close` ends it after a last flush.
    """

    def __init__(
        self,
        store: UsageStore,
        *,
        interval_s: float = 0.25,
        flush_rows: int = 64,
        batch_size: int = 500,
        max_rows: int = 200_000,
        write_timeout_s: float = 10.0,
        spool: UsageSpool | None = None,
    ) -> None:
        self._store = store
        self._interval_s = interval_s
        self._flush_rows = min(flush_rows, batch_size)
        self._batch_size = batch_size
        self._max_rows = max_rows
        self._write_timeout_s = write_timeout_s
        self._spool = spool
        self._rows: deque[UsageEvent] = deque()
        self._places: deque[Segment | None] = deque()
        """Where each of `_rows` is on disk, None = in memory alone; empty without a spool."""
        self._unplaced = 0
        """How many of `_places` are None."""
        self._left = 0
        """How many rows have left the buffer: a row's number is that and its index."""
        self._full = asyncio.Event()
        self._writing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._under_way = 0
        """How many rows at the front are being written; `_pushed_out` of them left the memory, and not for the disk."""
        self._pushed_out = 0
        self.written = 0
        self.dropped = 0
        self.failures = 0
        self.refused = 0

    @property
    def buffered(self) -> int:
        """How many rows wait to be written."""
        return len(self._rows)

    def record(self, row: UsageEvent) -> None:
        """Take one row; drops the oldest one when the buffer is at its bound."""
        rows = self._rows
        if len(rows) >= self._max_rows:
            self._evict()
        rows.append(row)
        if self._spool is not None:
            place = self._spool.append(row)
            self._places.append(place)
            self._unplaced += place is None
        if len(rows) == self._flush_rows:
            self._full.set()

    def _evict(self) -> None:
        is_written_now = self._under_way > 0
        self._under_way -= is_written_now
        place = self._take_first()
        if self._spool is not None and place is not None:
            self._spool.spill(place)
        elif is_written_now:
            self._pushed_out += 1
        else:
            self.dropped += 1

    def _take_first(self) -> Segment | None:
        """Take the oldest row out of the buffer; returns where it is on disk."""
        self._rows.popleft()
        self._left += 1
        if self._spool is None:
            return None
        place = self._places.popleft()
        self._unplaced -= place is None
        return place

    def start(self) -> None:
        """Start the writing task on the running loop, and with a spool the one that looks after the disk."""
        self._tasks = [asyncio.create_task(self._run(), name="usage-recorder")]
        if self._spool is not None:
            self._tasks.append(asyncio.create_task(self._keep(self._spool), name="usage-spool"))

    async def close(self, *, timeout_s: float = 5.0) -> None:
        """Stop the task and write what is buffered, trying for at most `timeout_s`."""
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._rows and await self.flush():
                    pass
        lost = len(self._rows)
        if self._spool is not None:
            await self.place()
            lost = self._unplaced
            if left := self._spool.close():
                logger.warning("usage rows stay on disk: the store did not take them", extra={"rows": left})
        if lost:
            logger.error("usage rows lost at shutdown: the store did not take them", extra={"rows": lost})

    async def flush(self) -> bool:
        """Write one batch; False if the store refused it, in which case the rows are kept."""
        async with self._writing:
            batch = [self._rows[index] for index in range(min(self._batch_size, len(self._rows)))]
            if not batch:
                return True
            self._under_way, self._pushed_out = len(batch), 0
            try:
                await self._write(batch)
            except Exception as error:  # noqa: BLE001 - a loop's boundary: whatever the store does, rows are kept
                self.failures += 1
                self.dropped += self._pushed_out
                logger.warning(
                    "usage rows kept: the store did not take them",
                    extra={"rows": len(self._rows), "error": type(error).__name__},
                )
                return False
            finally:
                left, self._under_way = self._under_way, 0
            # Rows that went off the front meanwhile belong to the batch that has just been written: they are not lost.
            for _ in range(left):
                place = self._take_first()
                if self._spool is not None and place is not None:
                    self._spool.stored(place)
            return True

    async def place(self) -> None:
        """Put rows that are in memory alone on disk, as far as it has room by now; requests come in between."""
        number = self._left
        while self._spool is not None and self._unplaced and number < self._left + len(self._rows):
            first = max(number - self._left, 0)
            for index, place in enumerate(list(islice(self._places, first, first + _SLICE)), first):
                if place is not None:
                    continue
                segment = self._spool.put(self._rows[index])
                if segment is None:
                    return
                self._places[index] = segment
                self._unplaced -= 1
            number = self._left + first + _SLICE
            await asyncio.sleep(0)

    async def replay(self) -> bool:
        """Write the rows of one segment that are on disk alone; False when there is none or the store refused it."""
        segment = self._spool.backlog() if self._spool is not None else None
        if self._spool is None or segment is None:
            return False
        async with self._writing:
            rows, count = segment.rows(), segment.spilled
            try:
                while batch := list(islice(rows, self._batch_size)):  # read as it is written: requests come in between
                    await self._write(batch)
            except Exception as error:  # noqa: BLE001 - a loop's boundary: the segment is kept
                self.failures += 1
                logger.warning("usage rows stay on disk", extra={"rows": count, "error": type(error).__name__})
                return False
            self._spool.settle(segment)
            logger.info("usage rows recovered from disk", extra={"rows": count})
            return True

    async def _write(self, batch: Sequence[UsageEvent]) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self._store.write(batch)
        except RowsRefused as error:
            if len(batch) == 1:
                self.refused += 1
                logger.error("usage row refused by the store", extra={"row": batch[0].id, "error": repr(error)})
                return
            # One bad row must not hold the others back: halve until it stands alone.
            middle = len(batch) // 2
            await self._write(batch[:middle])
            await self._write(batch[middle:])
        else:
            self.written += len(batch)

    async def _run(self) -> None:
        backoff_s = 0.0
        while True:
            if backoff_s:
                await asyncio.sleep(backoff_s)
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._interval_s):
                        await self._full.wait()
            self._full.clear()
            fine = await self.flush()
            # What has come meanwhile waits for more of its kind.
            while fine and len(self._rows) >= self._flush_rows:
                fine = await self.flush()
            while fine and len(self._rows) < self._flush_rows and await self.replay():
                pass
            backoff_s = 0.0 if fine else min(max(backoff_s * 2, self._interval_s), _MAX_BACKOFF_S)

    async def _keep(self, spool: UsageSpool) -> None:
        """Flush to the disk each second what it has room for; look at times for what processes that are gone left."""
        rounds = 0
        while True:
            try:
                if rounds % round(_ADOPT_S / _SYNC_S) == 0:
                    await asyncio.to_thread(spool.adopt)
                await self.place()
                await asyncio.to_thread(spool.sync)
            except Exception as error:  # a loop's boundary: the disk may be better the next time
                logger.error("usage spool", exc_info=error)
            rounds += 1
            await asyncio.sleep(_SYNC_S)
