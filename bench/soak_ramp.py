"""Which rate uses a given share of a core? A short ramp and a line through it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
STEPS = (200.0, 800.0)
"""Rates of the ramp, in requests a second."""
STEP_S = 12.0


def cpu_s(pids: Iterable[int]) -> float:
    """Return the user and system time that processes have used so far (Linux's /proc)."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(after_name[11]) + int(after_name[12])
    return ticks / _TICKS_PER_S


async def find_rate(
    share: float, used_s: Callable[[], float], offer: Callable[[float, float], Awaitable[None]]
) -> tuple[float, str]:
    """Return the rate at which the process uses `share` of a core, and what was seen on the way.

    CPU time and not the rate at saturation tells it: on a machine that has other work, too, the latter is chance.
    `offer(rate, seconds)` offers a load; `used_s()` is what the process has used. The cost of a request falls with
    the rate, so the rate of the first line is offered as well, for a line without so long a way beyond its ends.
    """
    await offer(STEPS[0], 3.0)
    seen = [await _used(rate, used_s, offer) for rate in STEPS]
    seen.append(await _used(rate_at(share, seen[0], seen[1]), used_s, offer))
    rate = rate_at(share, seen[0], seen[2])
    return rate, ", ".join(f"{at:.0f} rps {used:.0%}" for at, used in seen) + f" of a core; {share:.0%}: {rate:.0f} rps"


def rate_at(share: float, before: tuple[float, float], after: tuple[float, float]) -> float:
    """Return the rate for `share` on the line through two points of (rate, share); at most thrice the last."""
    (rate, used), (later, more) = before, after
    if more <= used or later == rate:
        return later
    return min(max(later + (share - more) * (later - rate) / (more - used), STEPS[0] / 2), 3 * later)


async def _used(
    rate: float, used_s: Callable[[], float], offer: Callable[[float, float], Awaitable[None]]
) -> tuple[float, float]:
    begun, before = time.monotonic(), used_s()
    await offer(rate, STEP_S)
    return rate, (used_s() - before) / (time.monotonic() - begun)
