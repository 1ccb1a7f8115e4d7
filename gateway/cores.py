"""How many cores this process may use: by the scheduler's affinity, and by the CPU limit of its container.

A limit leaves all cores of the machine in sight. A worker for each of them would share what a few may use.
"""

from __future__ import annotations

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def cores_of(quota: str, period: str) -> int | None:
    """Return how many whole cores a quota (µs a period, "max" or -1: none) is worth, one at least; None: no limit."""
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return max(1, int(quota) // int(period))


def limited_cores(cgroups: Path = CGROUPS) -> int | None:
    """Return what the container's CPU limit comes to, as cgroups version 2 or 1 tell it; None without one."""
    try:
        quota, _, period = (cgroups / "cpu.max").read_text().strip().partition(" ")
        return cores_of(quota, period)
    except OSError:
        pass
    try:
        quota, period = ((cgroups / "cpu" / f"cpu.cfs_{word}_us").read_text().strip() for word in ("quota", "period"))
    except OSError:
        return None
    return cores_of(quota, period)


def usable_cores(cgroups: Path = CGROUPS) -> int:
    """Return how many cores this process may use, one at least."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(seen, limited_cores(cgroups) or seen))
