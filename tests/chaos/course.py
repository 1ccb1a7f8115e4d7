"""The course of the faults: which begin when, one or two at a time, drawn like cards until each has had its turn."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator, Sequence

from tests.chaos.faults import FAULTS
from tests.chaos.scene import Fault, Scene
from tests.chaos.strikes import Strike, Strikes
from tests.chaos.world import Process, World

PAIRS = 0.3
"""How often two faults are on at a time."""


def possible(workers: int) -> list[str]:
    """Return the faults that can happen when one of the processes has so many workers."""
    return [name for name, fault in FAULTS.items() if workers > 1 or not fault.needs_workers]


def together(first: Fault, second: Fault) -> bool:
    """Tell whether both can be on at the same time."""
    if (first.takes_postgres and second.takes_postgres) or (first.needs_workers and second.needs_workers):
        return False
    return first.place != second.place or first.place == "a process"


def deals(names: Sequence[str], rng: random.Random) -> Iterator[list[str]]:
    """Yield what is on at the same time, without end; each of `names` once before any of them comes again."""
    while True:
        deck = rng.sample(list(names), len(names))
        while deck:
            dealt = [deck.pop()]
            if deck and rng.random() < PAIRS and together(FAULTS[dealt[0]], FAULTS[deck[-1]]):
                dealt.append(deck.pop())
            # The last to begin is mended first: a process that is started again needs its database.
            yield sorted(dealt, key=lambda name: FAULTS[name].takes_postgres)


class Course:
    """Brings faults about in `world`, and keeps book of them in `strikes`."""

    def __init__(self, world: World, strikes: Strikes, rng: random.Random) -> None:
        self._world = world
        self._strikes = strikes
        self._rng = rng

    async def run(self, names: Sequence[str], seconds: float | None) -> None:
        """Go on for so long, or until each has happened once."""
        began, pace_s, done = time.monotonic(), self._world.pace_s, set[str]()
        for dealt in deals(names, self._rng):
            at = time.monotonic() - began
            if at > seconds if seconds is not None else done >= set(names):
                return
            lasts_s = self._rng.uniform(0.3, 1.0) * pace_s
            await self._bring_about(dealt, at, lasts_s)
            done |= set(dealt)
            await asyncio.sleep(self._rng.uniform(0.0, 0.3) * pace_s)

    async def _bring_about(self, names: list[str], at: float, lasts_s: float) -> None:
        targets = self._targets(names)
        said = [f"{name} ({target.command})" if target else name for name, target in targets.items()]
        print(f"{at:6.1f} s: {' and '.join(said)} for {lasts_s:.1f} s", flush=True)
        async with contextlib.AsyncExitStack() as stack:
            for name in names:
                fault, target = FAULTS[name], targets[name]
                strike = Strike(
                    name,
                    target.command if target else None,
                    fault.excuses,
                    time.monotonic(),
                    takes_postgres=fault.takes_postgres,
                )
                self._strikes.all.append(strike)
                scene = Scene(self._world, random.Random(self._rng.randrange(2**32)), strike, target)
                stack.callback(scene.mended)  # entered before it, left after it: felt until it is mended
                await stack.enter_async_context(fault.begin(scene))
            await asyncio.sleep(lasts_s)

    def _targets(self, names: list[str]) -> dict[str, Process | None]:
        """Choose whom they strike, the one with the fewest choices first; never two the same process."""
        free = list(self._world.processes)
        targets: dict[str, Process | None] = dict.fromkeys(names)
        for name in sorted(names, key=lambda name: len(self._candidates(FAULTS[name], free))):
            if FAULTS[name].strikes:
                target = targets[name] = self._rng.choice(self._candidates(FAULTS[name], free))
                free.remove(target)
        return targets

    def _candidates(self, fault: Fault, free: list[Process]) -> list[Process]:
        fitting = [each for each in free if each.command in fault.strikes]
        return [each for each in fitting if each.workers > 1] if fault.needs_workers else fitting
