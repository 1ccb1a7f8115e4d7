"""The end of an application and of a process: in order, and over in time whatever hangs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from gateway.teardown import Teardown, stop


def noting(done: list[str], name: str) -> Callable[[], Coroutine[Any, Any, None]]:
    async def step() -> None:
        done.append(name)

    return step


async def test_what_was_made_last_is_undone_first_and_once() -> None:
    done: list[str] = []
    teardown = Teardown()
    for name in ("first", "second", "third"):
        teardown.add(name, noting(done, name))
    await teardown.run()
    await teardown.run()
    assert done == ["third", "second", "first"]


async def test_a_step_that_fails_is_logged_and_the_next_has_its_turn(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []

    async def fails() -> None:
        raise ValueError("broken")

    teardown = Teardown()
    teardown.add("first", noting(done, "first"))
    teardown.add("the one that fails", fails)
    await teardown.run()
    assert done == ["first"]
    assert [record.step for record in caplog.records] == ["the one that fails"]  # type: ignore[attr-defined]


async def test_a_step_that_hangs_is_cancelled_and_one_that_does_not_notice_is_left() -> None:
    done: list[str] = []
    released = asyncio.Event()

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            done.append("cancelled")

    async def is_stubborn() -> None:
        while not released.is_set():
            with suppress(asyncio.CancelledError):
                await released.wait()
        done.append("released")

    teardown = Teardown()
    teardown.add("first", noting(done, "first"))
    teardown.add("stubborn", is_stubborn, within_s=0.01)
    teardown.add("hangs", hangs, within_s=0.01)
    await teardown.run()
    assert done == ["cancelled", "first"]
    released.set()
    while "released" not in done:
        await asyncio.sleep(0)


async def test_when_the_time_is_up_the_rest_has_its_moment_still() -> None:
    done: list[str] = []

    async def hangs() -> None:
        await asyncio.Event().wait()

    teardown = Teardown()
    teardown.add("first", noting(done, "first"))
    teardown.add("hangs", hangs, within_s=60.0)
    await teardown.run(within_s=0.01)
    assert done == ["first"]


async def test_tasks_are_cancelled_all_at_once() -> None:
    told: list[str] = []
    both = asyncio.Event()

    async def work(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            told.append(name)
            if len(told) == 2:
                both.set()
            await both.wait()  # one by one the first would wait for ever

    tasks = [asyncio.create_task(work(name)) for name in ("a", "b")]
    await asyncio.sleep(0)
    await stop(tasks, 10.0)
    assert all(task.done() for task in tasks)
    assert told == ["a", "b"]


def test_a_process_that_does_not_end_is_ended_and_says_where_it_stood() -> None:
    program = """
import time
from gateway.last_resort import BEYOND_S, end_within
def stuck():
    time.sleep(1000)
end_within(0.1 - BEYOND_S)
stuck()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "in stuck" in done.stderr
