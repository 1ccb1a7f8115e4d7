"""Loaded by every process of chaos at its start (its directory is on PYTHONPATH): tells where one stands that hangs.

SIGUSR1 writes the stacks of all threads to stderr, also while the interpreter is stuck; SIGUSR2 those of all asyncio
tasks, down to what each awaits.
"""

from __future__ import annotations

import asyncio
import faulthandler
import linecache
import signal
import sys
from types import FrameType
from typing import Any


def _awaited(task: asyncio.Task[Any]) -> list[str]:
    """Return a task's lines from the outermost to what it waits for: its own stack holds the outermost frame alone."""
    lines: list[str] = []
    waits: Any = task.get_coro()
    while waits is not None:
        frame = getattr(waits, "cr_frame", None) or getattr(waits, "gi_frame", None) or getattr(waits, "ag_frame", None)
        if frame is None:
            lines.append(f"  {waits!r}")
            break
        code = frame.f_code
        line = linecache.getline(code.co_filename, frame.f_lineno).strip()
        lines.append(f"  {code.co_filename}:{frame.f_lineno} {code.co_qualname}: {line}")
        waits = (
            getattr(waits, "cr_await", None) or getattr(waits, "gi_yieldfrom", None) or getattr(waits, "ag_await", None)
        )
    return lines


def _tell(number: int, frame: FrameType | None) -> None:
    del number, frame
    for task in list(asyncio.tasks._all_tasks):  # type: ignore[attr-defined]  # no loop runs where a handler is called
        if not task.done():
            print(f"task {task.get_name()}", *_awaited(task), sep="\n", file=sys.stderr, flush=True)


faulthandler.register(signal.SIGUSR1)
signal.signal(signal.SIGUSR2, _tell)
