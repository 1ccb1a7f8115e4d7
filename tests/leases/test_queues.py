"""Whom a process turns away whose part of a quota is small just now: nobody that the quota can serve in time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.leases.queues import PATIENCE_S, QueueingWorld


@asynccontextmanager
async def world(processes: int, rpm: int) -> AsyncIterator[QueueingWorld]:
    made = QueueingWorld(processes, rpm)
    try:
        yield made
    finally:
        await made.close()


async def test_a_pace_from_times_when_others_wanted_it_too_turns_nobody_away() -> None:
    async with world(3, rpm=60) as running:
        # Each had a third of the quota: three seconds a request.
        await running.run(70.0, 1.0, 1.0, 1.0)
        await running.run(40.0)
        one = running.processes[0]
        one.answers.clear()
        assert running.meter.available(running.now) + PATIENCE_S > 30
        await running.run(1.0, 30.0)
        await running.run(PATIENCE_S)
        assert set(one.answers) == {"ok"}


async def test_half_the_limit_in_bursts_to_one_that_was_idle_turns_nobody_away() -> None:
    async with world(2, rpm=240) as running:
        await running.run(20.0, 0.0, 1.0)
        for _ in range(3):
            await running.run(1.0, 30.0, 1.0)
            await running.run(14.0, 0.0, 1.0)
        assert [set(process.answers) for process in running.processes] == [{"ok"}, {"ok"}]
        assert not any(process.asking for process in running.processes)


async def test_who_cannot_be_served_in_time_is_still_told_at_once() -> None:
    async with world(2, rpm=60) as running:
        await running.run(60.0, 0.5, 0.5)
        await running.run(30.0, 3.0, 3.0)
        waiting = [len(process.asking) for process in running.processes]
        # Of what refills each has half: fifteen in half a minute.
        assert max(waiting) <= 30
        for process in running.processes:
            assert process.answers["turned away"] > 20
            assert all(after is not None and after > 20.0 for after in process.retry_after_s)
