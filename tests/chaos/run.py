"""Random faults under load, and what must hold in all of them: `make chaos` (MINUTES=3 WORKERS=1 SEED=…).

Two processes (`serve`, and `gateway` with WORKERS workers) share a database and a usage spool; callers, some of them
rude, keep both busy while one fault after another begins and ends, sometimes two at a time. It must hold that

- no answer carries another request's bytes, and no whole 200 lacks its own;
- no request outlives the pool's total deadline by more than a grace;
- memory stays bounded;
- every request that was answered 200 has exactly one usage row in the end: killed processes and a database that is away
  included, for the spool is on;
- when the faults are over everything is well again: requests succeed on every process, none is left in flight;
- no process has logged a failure of its own;
- a process ends within half a minute of SIGTERM.

When something did not hold the logs are kept in OUT (`bench/results/chaos`), with the stacks of a process that did not
end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.faults import FAULTS
from tests.chaos.traffic import Callers, Ledger
from tests.chaos.world import PATH, Process, World, made

CALLERS = 6
GROWTH_MIB = 80.0
RECOVERY_S = 45.0
_NOT_ENDED = ("it took too long", "the application does not end", "Timeout (0:")
"""What a process logs that did not end, or whose worker did not, and that was killed or ended by its watchdog."""


async def unleash(directory: Path, seed: int, seconds: float, *, pace_s: float = 3.0, workers: int = 1) -> list[str]:
    """Run it; return what did not hold."""
    rng = random.Random(seed)
    ledger, stop = Ledger(), asyncio.Event()
    async with made(directory, pace_s, workers) as world:
        calling = []
        for process in world.processes:
            callers = Callers(
                process.command,
                process.port,
                token=world.token,
                path=PATH,
                ledger=ledger,
                rng=random.Random(rng.randrange(2**32)),
            )
            process.callers.append(callers)
            calling.append(asyncio.create_task(callers.run(CALLERS, stop)))
            process.look()
            process.first_mib = process.most_mib
        watching = asyncio.create_task(_watch(world, ledger))
        await _faults(world, rng, seconds)
        print("the faults are over", flush=True)
        found = await _recovered(world)
        stop.set()
        await asyncio.wait(calling, timeout=30)
        watching.cancel()
        for task in [*calling, watching]:
            if not task.done():
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        found += await _quiet(world)
        found += await _rows(world, ledger)
        found += _logs(world)
        print(", ".join(f"{count} × {ending}" for ending, count in ledger.endings.most_common()), flush=True)
        for process in world.processes:
            print(f"{process.command}: {process.first_mib:.0f} MiB, at most {process.most_mib:.0f} MiB", flush=True)
            if process.most_mib > process.first_mib + GROWTH_MIB:
                found.append(f"{process.command} took {process.most_mib:.0f} MiB")
    return [*found, *ledger.violations]


async def _faults(world: World, rng: random.Random, seconds: float) -> None:
    until = time.monotonic() + seconds
    names = list(FAULTS)
    order: list[str] = []
    while time.monotonic() < until:
        if not order:
            order = rng.sample(names, len(names))
        both = [order.pop()]
        if order and rng.random() < 0.3:
            both.append(order.pop())
        # The last to begin is mended first: a process that is started again needs its database.
        both.sort(key=lambda name: name.startswith("Postgres"))
        lasts_s = rng.uniform(0.3, 1.0) * world.pace_s
        print(f"{until - time.monotonic():6.1f} s left: {' and '.join(both)} for {lasts_s:.1f} s", flush=True)
        async with contextlib.AsyncExitStack() as stack:
            for name in both:
                await stack.enter_async_context(FAULTS[name](world, random.Random(rng.randrange(2**32))))
            await asyncio.sleep(lasts_s)
        await asyncio.sleep(rng.uniform(0.0, 0.3) * world.pace_s)


async def _watch(world: World, ledger: Ledger) -> None:
    while True:
        for process in world.processes:
            process.look()
        await asyncio.sleep(0.5)


async def _recovered(world: World) -> list[str]:
    found = []
    for process in world.processes:
        give_up, row = time.monotonic() + RECOVERY_S, 0
        while row < 20 and time.monotonic() < give_up:
            row = row + 1 if await process.callers[0].call() == 200 else 0
            await asyncio.sleep(0.02)
        if row < 20:
            found.append(f"{process.command} did not recover within {RECOVERY_S:.0f} s of the last fault")
    return found


async def _quiet(world: World) -> list[str]:
    """After the callers have gone nothing may be left under way."""
    found = []
    for process in world.processes:
        give_up = time.monotonic() + 15
        while (left := await world.in_flight(process)) and time.monotonic() < give_up:
            await asyncio.sleep(0.2)
        if left:
            found.append(f"{process.command} still has {left:.0f} requests under way without a caller")
    return found


async def _rows(world: World, ledger: Ledger) -> list[str]:
    give_up = time.monotonic() + RECOVERY_S
    while True:
        rows = await world.rows()
        missing = [request for request in ledger.answered if request not in rows]
        if not missing or time.monotonic() > give_up:
            break
        await asyncio.sleep(0.5)
    twice = [request for request, times in rows.items() if times != 1]
    print(f"{len(ledger.answered)} answered, {len(rows)} usage rows", flush=True)
    found = [f"{len(twice)} requests have more than one usage row"] if twice else []
    if missing:
        ages = [_age(world.processes, *ledger.answered[request]) for request in missing]
        found.append(
            f"{len(missing)} answered requests have no usage row; answered before the last kill by {ages[:5]} s"
        )
    return found


def _age(processes: list[Process], name: str, answered_at: float) -> float:
    return round(next(one.killed_at for one in processes if one.command == name) - answered_at, 3)


def _logs(world: World) -> list[str]:
    signs = ("Traceback", "could not be answered", "request failed", "never retrieved", *_NOT_ENDED)
    found = []
    for log in sorted({process.log for process in world.processes}):
        lines = log.read_text().splitlines()
        for number in [number for number, line in enumerate(lines) if any(sign in line for sign in signs)][:3]:
            # JSON holds a whole traceback; what the interpreter prints by itself goes on over the next lines.
            line = lines[number] if lines[number].startswith("{") else "\n".join(lines[number : number + 40])
            found.append(f"{log.name}: {line[:300]} … {line[-1500:]}")
    return found


def keep_logs(directory: Path, out: Path) -> Path:
    """Copy the processes' logs out of a directory that goes; return where they are."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for log in directory.glob("*.log"):
        shutil.copy(log, out)
    return out


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("bench/results/chaos"), help="where logs are kept")
    arguments = parser.parse_args()
    again = f"make chaos SEED={arguments.seed} WORKERS={arguments.workers}"
    print(f"seed {arguments.seed}  (repeat with: {again})", flush=True)
    with tempfile.TemporaryDirectory(prefix="llm-proxy-chaos-") as directory:
        found: list[str] | None = None
        try:
            running = unleash(Path(directory), arguments.seed, arguments.minutes * 60, workers=arguments.workers)
            found = asyncio.run(running)
        finally:
            if found is None or found:
                print(f"the logs are in {keep_logs(Path(directory), arguments.out / f'seed-{arguments.seed}')}")
    for each in found:
        print(f"DOES NOT HOLD  {each}")
    print("all of it held" if not found else f"{len(found)} things did not hold (seed {arguments.seed})")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
