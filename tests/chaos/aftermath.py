"""What must hold when the faults are over."""

from __future__ import annotations

import asyncio
import time

from gateway.metering.spool import RETRY_S
from tests.chaos.management import Managers
from tests.chaos.traffic import Ledger
from tests.chaos.world import Process, World

RECOVERY_S = 45.0
_IN_A_ROW = 20
_PUT_S = RETRY_S + 3.0
"""How long after a fault of the spool rows may be in memory alone: it asks for room, a round each second uses it."""
_NOT_ENDED = ("it took too long", "the application does not end", "Timeout (0:")
"""What a process logs that did not end, or whose worker did not, and that was killed or ended by its watchdog."""


async def recovered(world: World) -> list[str]:
    """Everything is well again: requests succeed on every process."""
    found = []
    for process in world.processes:
        give_up, row = time.monotonic() + RECOVERY_S, 0
        while row < _IN_A_ROW and time.monotonic() < give_up:
            row = row + 1 if await process.callers[0].call() else 0
            await asyncio.sleep(0.02)
        if row < _IN_A_ROW:
            found.append(f"{process.command} did not recover within {RECOVERY_S:.0f} s of the last fault")
    return found


async def quiet(world: World) -> list[str]:
    """After the callers have gone nothing may be left under way."""
    found = []
    for process in world.processes:
        give_up = time.monotonic() + 15
        while (left := await world.counted(process, "llm_proxy_in_flight")) and time.monotonic() < give_up:
            await asyncio.sleep(0.2)
        if left:
            found.append(f"{process.command} still has {left:.0f} requests under way without a caller")
    return found


async def rows(world: World, ledger: Ledger) -> list[str]:
    """Every request that was answered 200 has exactly one usage row, but for those of a full disk and a kill."""
    give_up = time.monotonic() + RECOVERY_S
    while True:
        found_rows = await world.rows()
        missing = [
            request
            for request, (process, at) in ledger.answered.items()
            if request not in found_rows and not _in_memory_alone(world, ledger, process, at)
        ]
        if not missing or time.monotonic() > give_up:
            break
        await asyncio.sleep(0.5)
    twice = [request for request, times in found_rows.items() if times != 1]
    print(f"{len(ledger.answered)} answered, {len(found_rows)} usage rows", flush=True)
    found = [f"{len(twice)} requests have more than one usage row"] if twice else []
    if missing:
        ages = [_age(world.processes, *ledger.answered[request]) for request in missing]
        found.append(
            f"{len(missing)} answered requests have no usage row; answered before the next kill by {ages[:5]} s"
        )
    return found


def _in_memory_alone(world: World, ledger: Ledger, process: str, answered_at: float) -> bool:
    """Tell whether a kill may have taken the row: the spool could make no segment, or had not asked for one again."""
    refused = [
        each
        for each in ledger.strikes.felt(process, answered_at - _PUT_S, answered_at)
        if each.fault in {"disk full", "out of file descriptors"}
    ]
    kills = _kills(world.processes, process)
    return any(answered_at <= kill <= each.ended + _PUT_S for each in refused for kill in kills)


def _kills(processes: list[Process], name: str) -> list[float]:
    return next(one.killed_at for one in processes if one.command == name)


async def pools(world: World) -> list[str]:
    """What a manager was told is done is done."""
    names = await world.pools()
    managers = [each for process in world.processes for each in process.callers if isinstance(each, Managers)]
    return [broken for each in managers for broken in each.broken(names)]


def _age(processes: list[Process], name: str, answered_at: float) -> float | None:
    return next((round(kill - answered_at, 3) for kill in _kills(processes, name) if kill >= answered_at), None)


def logs(world: World) -> list[str]:
    """No process has logged a failure of its own."""
    signs = ("Traceback", "could not be answered", "request failed", "never retrieved", *_NOT_ENDED)
    found = []
    for log in sorted({process.log for process in world.processes}):
        lines = log.read_text().splitlines()
        for number in [number for number, line in enumerate(lines) if any(sign in line for sign in signs)][:3]:
            # JSON holds a whole traceback; what the interpreter prints by itself goes on over the next lines.
            line = lines[number] if lines[number].startswith("{") else "\n".join(lines[number : number + 40])
            found.append(f"{log.name}: {line[:300]} … {line[-1500:]}")
    return found
