"""What more workers behind one port cost and bring: CPU a request, and requests a second where there are cores.

On one core workers only get in each other's way: their CPU for a request, beside that of one worker, is what they cost.
They share nothing but the listening socket, the database and, once a second, their parts of the quotas. On cores of
their own they add up as far as provider and load (on the last core, shared with one worker where there are only two)
leave them time. *Cores used* is what the gateway took of them; *at rest* its CPU in a second without requests, just
after there were some, which is what each worker costs by itself.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

from installation import Installation
from load import Round
from processes import MEASURED_CORE, Running

REST_S = 3.0
Load = Callable[[str, Running, int], Round]
"""Loads a gateway with a case, and gives what came of it."""

HEAD = (
    "| workers | on cores | small CPU ms | x one worker | small rps | cores used | at rest, ms/s | MiB |\n"
    "|---|---|---|---|---|---|---|---|"
)


def plans() -> list[tuple[int, str]]:
    """Give the (workers, cores) to be measured on this machine."""
    found = [(workers, str(MEASURED_CORE)) for workers in (1, 2, 4)]
    count = os.cpu_count() or 1
    return found + [(workers, f"0-{workers - 1}") for workers in (2, 4, 8) if workers <= count]


def report_workers(installation: Installation, load: Load, rounds: int) -> list[str]:
    """Give the table's rows: medians of `rounds` interleaved rounds, the first one not counted."""
    running = {plan: installation.start_gateway(core=plan[1], LLM_PROXY_WORKERS=str(plan[0])) for plan in plans()}
    found: dict[tuple[int, str], list[Round]] = {plan: [] for plan in running}
    for number in range(rounds + 1):
        for plan, (gateway, port) in running.items():
            one = load("small", gateway, port)
            if number:
                found[plan].append(one)
    at_rest = {plan: _at_rest(gateway) for plan, (gateway, _) in running.items()}
    for gateway, _ in running.values():
        gateway.stop()
    alone = statistics.median(each.cpu_ms for each in found[1, str(MEASURED_CORE)])
    rows = []
    for (workers, cores), each in found.items():
        cpu_ms = statistics.median(one.cpu_ms for one in each)
        rps = statistics.median(one.rps for one in each)
        used = statistics.median(one.cpu_ms * one.rps / 1e3 for one in each)
        memory = statistics.median(one.memory_mb for one in each)
        rows.append(
            f"| {workers} | {cores} | {cpu_ms:.3f} | {cpu_ms / alone:.2f} | {rps:,.0f} | {used:.2f} "
            f"| {at_rest[workers, cores]:.1f} | {memory:.0f} |"
        )
    return rows


def _at_rest(gateway: Running) -> float:
    """Give the CPU that it uses in a second of doing nothing, in ms."""
    began, before = time.monotonic(), gateway.cpu_s()
    time.sleep(REST_S)
    return (gateway.cpu_s() - before) / (time.monotonic() - began) * 1e3
