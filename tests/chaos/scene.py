"""What a fault is, and what it is given when it begins."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal

from tests.chaos.strikes import NOTHING, Strike
from tests.chaos.world import Process, World

Place = Literal["Postgres", "providers", "a process"]


@dataclass
class Scene:
    """The world, the process that is struck (of faults that strike one), and the fault's entry in the book."""

    world: World
    rng: random.Random
    strike: Strike
    target: Process | None = None

    @property
    def process(self) -> Process:
        """The one that is struck."""
        assert self.target is not None
        return self.target

    def took(self, effect: bool = True) -> None:
        """Note whether the fault was seen to do something; once is enough."""
        self.strike.took = self.strike.took or effect

    def over(self) -> None:
        """Note that calls which begin from now on cannot feel it, though it is not mended yet."""
        self.strike.felt_until = time.monotonic()

    def mended(self) -> None:
        """Note its end."""
        self.strike.mended(time.monotonic())


@dataclass(frozen=True, slots=True)
class Fault:
    """`begin` brings it about, lasts while it does, and mends it. `strikes` are the commands that it may hit.

    Two faults are on at the same time only at different places, or in different processes. `excuses`: how a polite call
    may end that could have felt it; a call that could only have felt faults that excuse nothing must be answered.
    """

    begin: Callable[[Scene], AbstractAsyncContextManager[None]]
    place: Place
    excuses: frozenset[str] = NOTHING
    strikes: tuple[str, ...] = ()
    needs_workers: bool = False
    takes_postgres: bool = False
