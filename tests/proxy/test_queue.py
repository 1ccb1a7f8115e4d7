"""The queue, with a clock that the test moves: order, bound, wake-ups, deadlines, leaving."""

from __future__ import annotations

import asyncio

from gateway.proxy.queue import PoolQueue

LINE = ("openai", "m")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_first_come_first_served_within_a_priority() -> None:
    queue, order = PoolQueue(Clock()), list[str]()

    async def stand(name: str, priority: int) -> None:
        place = queue.place(LINE, priority=priority, deadline=1e9)
        assert await place.wait(1e9)
        order.append(name)
        place.leave()

    tasks = []
    for name, priority in (("a", 1), ("b", 1), ("urgent", 0), ("c", 1), ("late", 5)):
        tasks.append(asyncio.create_task(stand(name, priority)))
        await settle()
    assert queue.waiting == 5
    assert queue.is_waited_for(LINE)
    queue.released()
    await settle()
    assert order == ["urgent", "a", "b", "c", "late"], "each that leaves lets the next one try"
    assert queue.waiting == 0
    assert not queue.is_waited_for(LINE)


async def test_only_the_head_tries_and_keeps_its_place_when_it_fails() -> None:
    queue = PoolQueue(Clock())
    tries = list[str]()

    async def stand(name: str, fails: int) -> None:
        place = queue.place(LINE, priority=1, deadline=1e9)
        for _ in range(fails + 1):
            assert await place.wait(1e9)
            tries.append(name)
        place.leave()

    for name, fails in (("a", 2), ("b", 0)):
        asyncio.create_task(stand(name, fails))  # noqa: RUF006 - they end within the test
        await settle()
    for _ in range(3):
        queue.released()
        await settle()
    assert tries == ["a", "a", "a", "b"]


async def test_lines_of_different_models_do_not_hold_each_other_up() -> None:
    queue, done = PoolQueue(Clock()), list[str]()

    async def stand(model: str) -> None:
        place = queue.place(("openai", model), priority=1, deadline=1e9)
        while not (await place.wait(1e9) and model == "free"):
            pass
        done.append(model)
        place.leave()

    tasks = [asyncio.create_task(stand(model)) for model in ("full", "free")]
    await settle()
    queue.released()
    await settle()
    assert done == ["free"]
    tasks[0].cancel()
    await settle()
    assert queue.waiting == 0


async def test_the_queue_is_bounded() -> None:
    queue = PoolQueue(Clock(), max_waiting=1)
    first = asyncio.create_task(queue.place(LINE, priority=1, deadline=1e9).wait(1e9))
    await settle()
    assert await queue.place(LINE, priority=0, deadline=1e9).wait(1e9) is False
    first.cancel()
    await settle()
    assert queue.waiting == 0


async def test_a_passed_deadline_ends_the_wait() -> None:
    clock = Clock()
    queue = PoolQueue(clock)
    place = queue.place(LINE, priority=1, deadline=clock.now)
    assert await place.wait(1e9) is False
    assert queue.waiting == 0


async def test_the_pause_of_the_head_ends_by_itself() -> None:
    clock = Clock()
    queue = PoolQueue(clock)
    place = queue.place(LINE, priority=1, deadline=1e9)
    assert await place.wait(clock.now) is True
    place.leave()


async def test_a_caller_that_leaves_lets_the_next_try() -> None:
    queue = PoolQueue(Clock())
    first = asyncio.create_task(queue.place(LINE, priority=1, deadline=1e9).wait(1e9))
    await settle()
    second = asyncio.create_task(queue.place(LINE, priority=1, deadline=1e9).wait(1e9))
    await settle()
    first.cancel()
    assert await second is True
