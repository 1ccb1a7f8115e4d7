"""The recorder against a store that works, fails, refuses and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway.metering.event import UsageEvent
from gateway.metering.recorder import UsageRecorder
from gateway.metering.store import InMemoryUsageStore
from tests.metering.rows import usage_row


async def test_rows_are_written_in_batches_behind_the_caller() -> None:
    store = InMemoryUsageStore()
    recorder = UsageRecorder(store, interval_s=3600, batch_size=10)
    recorder.start()
    rows = [usage_row() for _ in range(25)]
    for row in rows:
        recorder.record(row)
    assert recorder.buffered == 25, "record only appends"
    for _ in range(20):
        await asyncio.sleep(0)
    assert (recorder.written, recorder.buffered) == (20, 5), "what is no whole batch waits for more, or for its time"
    assert store.writes == 2
    await recorder.close()
    assert set(store.rows) == {row.id for row in rows}


async def test_batches_are_small_while_the_store_keeps_up_and_large_while_it_does_not() -> None:
    class Slow(InMemoryUsageStore):
        async def write(self, batch: Sequence[UsageEvent]) -> None:
            sizes.append(len(batch))
            for _ in range(arriving.pop() if arriving else 0):
                recorder.record(usage_row())
            await super().write(batch)

    sizes: list[int] = []
    arriving = [0, 3, 20, 4, 1]
    store = Slow()
    recorder = UsageRecorder(store, interval_s=3600, flush_rows=4, batch_size=15)
    recorder.start()
    for _ in range(4):
        recorder.record(usage_row())
    for _ in range(30):
        await asyncio.sleep(0)
    assert sizes == [4], "one has come meanwhile: it waits"
    for _ in range(3):
        recorder.record(usage_row())
    for _ in range(30):
        await asyncio.sleep(0)
    assert sizes == [4, 4, 4, 15, 8]
    assert recorder.buffered == 0
    await recorder.close()


async def test_close_flushes_what_is_buffered() -> None:
    store = InMemoryUsageStore()
    recorder = UsageRecorder(store, interval_s=3600)
    recorder.start()
    recorder.record(usage_row())
    await recorder.close()
    assert len(store.rows) == 1


async def test_rows_survive_an_absent_store_and_are_written_once_it_is_back() -> None:
    store = InMemoryUsageStore()
    recorder = UsageRecorder(store, batch_size=4)
    for _ in range(10):
        recorder.record(usage_row())
    store.broken = ConnectionError("gone")
    assert await recorder.flush() is False
    assert (recorder.buffered, recorder.failures, recorder.dropped) == (10, 1, 0)
    store.broken = None
    while recorder.buffered:
        assert await recorder.flush()
    assert len(store.rows) == 10


async def test_beyond_the_bound_the_oldest_rows_go_and_are_counted() -> None:
    store = InMemoryUsageStore()
    recorder = UsageRecorder(store, max_rows=5)
    rows = [usage_row() for _ in range(8)]
    for row in rows:
        recorder.record(row)
    assert (recorder.buffered, recorder.dropped) == (5, 3)
    assert await recorder.flush()
    assert set(store.rows) == {row.id for row in rows[3:]}


async def test_rows_pushed_out_while_being_written_are_not_counted_as_lost() -> None:
    class Slow(InMemoryUsageStore):
        async def write(self, batch: object) -> None:
            for row in late:
                recorder.record(row)
            seen.append(recorder.dropped)
            await super().write(batch)  # type: ignore[arg-type]

    early, late = [usage_row() for _ in range(4)], [usage_row() for _ in range(3)]
    seen: list[int] = []
    store = Slow()
    recorder = UsageRecorder(store, max_rows=4)
    for row in early:
        recorder.record(row)
    assert await recorder.flush()
    assert recorder.dropped == 0
    assert seen == [0], "a count that a scrape has seen is never taken back"
    late_ids = {row.id for row in late}
    late = []
    assert await recorder.flush()
    assert set(store.rows) == {row.id for row in early} | late_ids


async def test_rows_pushed_out_of_a_batch_that_is_not_written_are_lost() -> None:
    class Failing(InMemoryUsageStore):
        async def write(self, batch: object) -> None:
            for _ in range(6):
                recorder.record(usage_row())
            raise ConnectionError

    recorder = UsageRecorder(Failing(), max_rows=4)
    for _ in range(4):
        recorder.record(usage_row())
    assert await recorder.flush() is False
    assert (recorder.dropped, recorder.buffered) == (6, 4)


async def test_one_row_that_cannot_be_stored_does_not_hold_the_others_back() -> None:
    store = InMemoryUsageStore()
    recorder = UsageRecorder(store)
    good = [usage_row() for _ in range(7)]
    for row in [*good[:3], usage_row(model="a\0b"), *good[3:]]:
        recorder.record(row)
    assert await recorder.flush()
    assert (recorder.refused, recorder.buffered, recorder.written) == (1, 0, 7)
    assert set(store.rows) == {row.id for row in good}


async def test_a_store_that_hangs_does_not_hold_shutdown() -> None:
    class Hanging(InMemoryUsageStore):
        async def write(self, batch: object) -> None:
            await asyncio.Event().wait()

    recorder = UsageRecorder(Hanging())
    recorder.record(usage_row())
    await recorder.close(timeout_s=0.01)
    assert recorder.buffered == 1
