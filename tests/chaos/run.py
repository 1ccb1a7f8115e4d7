"""Random faults under load, and what must hold in all of them: `make chaos` (MINUTES=3 WORKERS=1 SEED=…).

Three processes (`serve`, `gateway` with WORKERS workers, `control`) share a database, the first two a usage spool;
callers, some of them rude, keep these busy and managers the third, while one fault after another begins and ends,
sometimes two at a time. It must hold that

- a polite call that could only have felt faults which a good gateway hides (`faults.py`) is answered whole;
- no answer carries another request's bytes, and no whole 200 lacks its own;
- no request outlives the pool's total deadline by more than a grace, and none of a caller who reads nothing either;
- memory stays bounded;
- every request that was answered 200 has exactly one usage row in the end: killed processes and a database that is away
  included, for the spool is on;
- what a manager was told is done is done;
- when the faults are over everything is well again: requests succeed on every process, none is left in flight;
- no process has logged a failure of its own;
- a process ends within half a minute of SIGTERM;
- every fault has done something.

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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import aftermath
from tests.chaos.course import Course, possible
from tests.chaos.management import Managers
from tests.chaos.traffic import Callers, Ledger
from tests.chaos.unread import Unread
from tests.chaos.world import PATH, World, made

CALLERS = 6
UNREAD = 2
GROWTH_MIB = 80.0
_LEAVE_S = 30.0


@dataclass(frozen=True)
class Outcome:
    """What did not hold, which faults struck whom, and how many polite calls were answered while one was on."""

    violations: list[str]
    struck: set[tuple[str, str | None]]
    saved: int


async def unleash(
    directory: Path,
    seed: int,
    seconds: float | None = None,
    *,
    faults: Sequence[str] | None = None,
    pace_s: float = 3.0,
    workers: int = 1,
) -> Outcome:
    """Run it for so long, or until each of `faults` (all that are possible) has happened once."""
    rng = random.Random(seed)
    ledger, stop = Ledger(), asyncio.Event()
    strikes = ledger.strikes
    async with made(directory, pace_s, workers) as world:
        calling = []
        for process in world.processes:
            own = random.Random(rng.randrange(2**32))
            callers: Callers | Managers
            if process.command == "control":
                callers = Managers(process.command, process.port, token=world.token, ledger=ledger, rng=own)
            else:
                callers = Callers(process.command, process.port, token=world.token, path=PATH, ledger=ledger, rng=own)
            process.callers.append(callers)
            calling.append(asyncio.create_task(callers.run(CALLERS, stop)))
            if isinstance(callers, Callers):
                rude = Unread(process.command, process.port, token=world.token, path=PATH, ledger=ledger)
                calling.append(asyncio.create_task(rude.run(UNREAD, stop)))
            process.look()
            process.first_mib = process.most_mib
        watching = asyncio.create_task(_watch(world))
        await Course(world, strikes, rng).run(faults or possible(workers), seconds)
        print("the faults are over", flush=True)
        found = await aftermath.recovered(world)
        stop.set()
        done, hung = await asyncio.wait(calling, timeout=_LEAVE_S)
        found += [f"{len(hung)} processes' callers are still under way {_LEAVE_S:.0f} s after the end"] if hung else []
        watching.cancel()
        for task in [*done, *hung, watching]:
            if not task.done():
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        found += await aftermath.quiet(world)
        found += await aftermath.rows(world, ledger)
        found += await aftermath.pools(world)
        found += aftermath.logs(world)
        found += [f"{name!r} did nothing at least once" for name in strikes.idle()]
        _tell(world, ledger)
        found += [
            f"{process.command} took {process.most_mib:.0f} MiB"
            for process in world.processes
            if process.most_mib > process.first_mib + GROWTH_MIB
        ]
    return Outcome([*found, *ledger.violations()], {(each.fault, each.process) for each in strikes.all}, strikes.saved)


async def _watch(world: World) -> None:
    while True:
        for process in world.processes:
            process.look()
        await asyncio.sleep(0.5)


def _tell(world: World, ledger: Ledger) -> None:
    print(", ".join(f"{count} × {ending}" for ending, count in ledger.endings.most_common()))
    print(f"{ledger.strikes.saved} polite calls were answered in spite of a fault; these faults excuse the others:")
    for (ending, fault), count in ledger.strikes.excused.most_common():
        print(f"  {count} × {ending}: {fault}")
    for process in world.processes:
        print(f"{process.command}: {process.first_mib:.0f} MiB, at most {process.most_mib:.0f} MiB", flush=True)


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
            found = asyncio.run(running).violations
        finally:
            if found is None or found:
                print(f"the logs are in {keep_logs(Path(directory), arguments.out / f'seed-{arguments.seed}')}")
    for each in found:
        print(f"DOES NOT HOLD  {each}")
    print("all of it held" if not found else f"{len(found)} things did not hold (seed {arguments.seed})")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
