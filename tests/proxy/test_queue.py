"""The queue, with a clock that the test moves: turns, bound, wake-ups, deadlines, displacement, leaving."""

from __future__ import annotations

import asyncio

import pytest

from gateway.proxy.queue import Place, PoolQueue

LINE = "m"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


class Room:
    """A queue and the names of those who were served, in order; `free` is how many more can be."""

    def __init__(self, *, max_waiting: int = 1000) -> None:
        self.clock = Clock()
        self.queue = PoolQueue(self.clock, max_waiting=max_waiting)
        self.order: list[str] = []
        self.tries: list[str] = []
        self.free = 0
        self.places: dict[str, Place] = {}

    async def stand(
        self, name: str, *, client: str = "app", priority: int = 1, line: str = LINE, late_s: float | None = None
    ) -> bool:
        place = self.places[name] = self.queue.place(
            line, client_id=client, priority=priority, deadline=1e9, late_s=late_s
        )
        while await place.wait(1e8):
            self.tries.append(name)
            if self.free:
                self.free -= 1
                self.order.append(name)
                place.leave(served=True)
                return True
        return False

    async def join(self, name: str, **more: object) -> asyncio.Task[bool]:
        task = asyncio.create_task(self.stand(name, **more))  # type: ignore[arg-type]
        await settle()
        return task

    async def release(self, free: int) -> None:
        self.free = free
        self.queue.released()
        await settle()


async def test_by_priority_then_first_come_first_served() -> None:
    room = Room()
    for name, priority in (("a", 1), ("b", 1), ("urgent", 0), ("c", 1), ("late", 5)):
        await room.join(name, priority=priority)
    assert room.queue.waiting == 5
    assert room.queue.is_waited_for(LINE)
    assert room.queue.view().by_priority == {1: 3, 0: 1, 5: 1}
    await room.release(9)
    assert room.order == ["urgent", "a", "b", "c", "late"], "each that leaves lets the next one try"
    assert room.queue.waiting == 0
    assert not room.queue.is_waited_for(LINE)


async def test_clients_take_turns() -> None:
    room = Room()
    for number in range(6):
        await room.join(f"greedy {number}", client="greedy")
    for number in range(2):
        await room.join(f"modest {number}", client="modest")
    await room.release(4)
    assert sorted(room.order) == ["greedy 0", "greedy 1", "modest 0", "modest 1"]


async def test_one_of_a_line_tries_and_keeps_its_place_when_it_fails() -> None:
    room = Room()
    for name in "ab":
        await room.join(name)
    for free in (0, 0, 1):
        await room.release(free)
    assert room.tries == ["a", "a", "a", "b"]
    assert room.order == ["a"]


async def test_lines_do_not_hold_each_other_up() -> None:
    room = Room()
    for line in ("x", "y"):
        await room.join(line, line=line)
    await room.release(0)
    assert sorted(room.tries) == ["x", "y"]


async def test_the_queue_is_bounded() -> None:
    room = Room(max_waiting=2)
    for name in "ab":
        await room.join(name)
    assert await room.stand("c") is False
    assert room.queue.waiting == 2
    room.queue.configure(max_waiting=3)
    await room.join("d")
    assert room.queue.waiting == 3


async def test_who_has_more_right_displaces_the_last_of_those_with_least() -> None:
    room = Room(max_waiting=2)
    kept, displaced = await room.join("a"), await room.join("b")
    await room.join("urgent", priority=0)
    assert displaced.done()
    assert displaced.result() is False
    assert room.places["b"].retry_after_s is not None
    assert not kept.done()
    await room.release(2)
    assert room.order == ["urgent", "a"]


async def test_a_wait_that_cannot_end_in_time_does_not_begin() -> None:
    room = Room()
    place = room.queue.place(LINE, client_id="app", priority=1, deadline=room.clock.now + 5)
    assert await place.wait(room.clock.now + 20) is False
    assert place.retry_after_s == pytest.approx(20)
    assert room.queue.waiting == 0


async def test_a_passed_deadline_ends_the_wait() -> None:
    room = Room()
    place = room.queue.place(LINE, client_id="app", priority=1, deadline=room.clock.now + 0.01)
    task = asyncio.create_task(place.wait(None))
    await settle()
    assert task.done(), "nobody else waits and nothing is known: it tries at once"
    again = asyncio.create_task(place.wait(room.clock.now + 0.005))
    await settle()
    room.clock.now += 1
    room.queue.released()
    assert await again is False
    assert room.queue.waiting == 0


async def test_the_pause_of_a_line_ends_by_itself() -> None:
    room = Room()
    place = room.queue.place(LINE, client_id="app", priority=1, deadline=1e9)
    waiting = asyncio.create_task(place.wait(room.clock.now + 0.001))
    await settle()
    assert not waiting.done()
    room.clock.now += 0.001
    assert await waiting is True
    place.leave()


async def test_a_caller_that_leaves_lets_the_next_try() -> None:
    room = Room()
    first = await room.join("a")
    await room.join("b")
    first.cancel()
    await settle()
    assert room.queue.waiting == 1
    await room.release(1)
    assert room.order == ["b"]


async def test_a_caller_that_leaves_at_its_turn_passes_it_on() -> None:
    room = Room()
    first = await room.join("a")
    await room.join("b")
    room.free = 1
    room.queue.released()
    first.cancel()
    await settle()
    assert room.order == ["b"]
    assert room.queue.waiting == 0


async def test_who_is_late_steps_behind_the_punctual_until_the_lane_is_closed() -> None:
    room = Room()
    room.queue.configure(max_waiting=10, late_lane=True)
    await room.join("late", late_s=1.0)
    room.clock.now += 2
    await room.join("punctual", late_s=5.0)
    assert room.places["punctual"].ahead == 1
    await room.release(1)
    assert room.order == ["punctual"]
    room.queue.configure(max_waiting=10)
    await room.join("next", late_s=0.5)
    room.clock.now += 1
    await room.release(2)
    assert sorted(room.order[1:]) == ["late", "next"]
