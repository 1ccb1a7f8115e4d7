"""Takes usage rows off the request path: `record` is an append; a task writes batches behind it.

While the store is away rows are kept up to a bound and written when it is back; beyond the bound the oldest are dropped
and counted. What a crash can lose is what was buffered: at most `interval_s` of rows while the store is well.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from gateway.metering.event import UsageEvent
from gateway.metering.store import RowsRefused, UsageStore

logger = logging.getLogger(__name__)

_MAX_BACKOFF_S = 10.0


class UsageRecorder:
    """Buffers rows of one process and writes them in batches of up to `batch_size`, at least every `interval_s`.

    `record` never blocks and never raises. `run` is the writing task; `close` ends it after a last flush.
    """

    def __init__(
        self,
        store: UsageStore,
        *,
        interval_s: float = 0.25,
        batch_size: int = 500,
        max_rows: int = 200_000,
        write_timeout_s: float = 10.0,
    ) -> None:
        self._store = store
        self._interval_s = interval_s
        self._batch_size = batch_size
        self._max_rows = max_rows
        self._write_timeout_s = write_timeout_s
        self._rows: deque[UsageEvent] = deque()
        self._full = asyncio.Event()
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
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
            rows.popleft()
            self.dropped += 1
        rows.append(row)
        if len(rows) == self._batch_size:
            self._full.set()

    def start(self) -> None:
        """Start the writing task on the running loop."""
        self._task = asyncio.create_task(self._run(), name="usage-recorder")

    async def close(self, *, timeout_s: float = 5.0) -> None:
        """Stop the task and write what is buffered, trying for at most `timeout_s`."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._rows and await self.flush():
                    pass
        if self._rows:
            logger.error("usage rows lost at shutdown: the store did not take them", extra={"rows": len(self._rows)})

    async def flush(self) -> bool:
        """Write one batch; False if the store refused it, in which case the rows are kept."""
        async with self._writing:
            batch = [self._rows[index] for index in range(min(self._batch_size, len(self._rows)))]
            if not batch:
                return True
            dropped_before = self.dropped
            try:
                await self._write(batch)
            except Exception as error:  # noqa: BLE001 - a loop's boundary: whatever the store does, rows are kept
                self.failures += 1
                logger.warning(
                    "usage rows kept: the store did not take them",
                    extra={"rows": len(self._rows), "error": type(error).__name__},
                )
                return False
            # Rows dropped off the front meanwhile belong to the batch that has just been written: they are not lost.
            saved = min(self.dropped - dropped_before, len(batch))
            self.dropped -= saved
            for _ in range(len(batch) - saved):
                self._rows.popleft()
            return True

    async def _write(self, batch: Sequence[UsageEvent]) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self._store.write(batch)
        except RowsRefused as error:
            if len(batch) == 1:
                self.refused += 1
                logger.error("usage row refused by the store", extra={"row": str(batch[0].id), "error": repr(error)})
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
            fine = True
            while fine and self._rows:
                fine = await self.flush()
            backoff_s = 0.0 if fine else min(max(backoff_s * 2, self._interval_s), _MAX_BACKOFF_S)
