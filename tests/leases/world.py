"""Processes that share one quota of a provider, in virtual time: real ledgers, desks, drivers over the twin store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol
from uuid import UUID

from gateway.balancing.ledger import Ledger
from gateway.balancing.limiter import Bucket, FixedWindow, Meter, SlidingWindow
from gateway.balancing.outcome import Outcome, OutcomeKind
from gateway.balancing.quota import Limits
from gateway.balancing.semantics import semantics_of
from gateway.leases.driver import PERIOD_S, LeaseDriver
from gateway.leases.store import InMemoryLeaseStore

TENANT = UUID(int=1)
QUOTA = "quota"
UNIX = 1_000_000_020.0
"""What turns the world's time into Unix time: not a whole minute."""
STEP_S = 0.01


class Timed(Protocol):
    """A world with a clock of its own and one store for all."""

    @property
    def now(self) -> float:
        """Its time."""

    @property
    def store(self) -> InMemoryLeaseStore:
        """What all its processes share."""


def lease_driver(
    world: Timed, name: str, *, unix_offset_s: float = UNIX, on_granted: Callable[[set[UUID]], None] = lambda _: None
) -> LeaseDriver:
    """Make the driver of one process of `world`."""
    driver = LeaseDriver(
        world.store,
        lessee=name,
        clock=lambda: world.now,
        unix_offset_s=unix_offset_s,
        rng=Random(name),
        on_granted=on_granted,
    )
    world.store.listeners.append(driver.heard)
    return driver


class Process:
    """One process: `offered_rps` requests come to it a second, up to `room` of them wait for a grant."""

    def __init__(self, world: World, name: str, offered_rps: float, *, room: float = 50.0) -> None:
        self.driver = lease_driver(world, name)
        self.ledger = Ledger(world.limits, semantics_of(world.provider), world.now, unix_offset_s=UNIX)
        self.driver.desk.open(TENANT, QUOTA, "", self.ledger)
        self.offered_rps = offered_rps
        self.room = room
        self.waiting = 0.0
        self.sent = 0
        self.is_stopped = False
        self._rng = Random(name)
        self._due = world.now + self._rng.random()

    async def turn(self, now: float) -> None:
        """Exchange if it is time to, or if a request waits for it."""
        if now >= self._due or self.driver.is_waited_for:
            everything = now >= self._due
            if everything:
                self._due = now + PERIOD_S * (0.9 + 0.2 * self._rng.random())
            await self.driver.exchange(everything=everything, due=self._due)


@dataclass
class World:
    """`provider` says whose windows the quota has; `refused` counts what it turned away."""

    provider: str = "simulated"
    limits: Limits = field(default_factory=lambda: Limits(rpm=6000))
    now: float = 0.0
    refused: int = 0

    def __post_init__(self) -> None:
        self.store = InMemoryLeaseStore(lambda: self.now + UNIX)
        self.processes: list[Process] = []
        limit = float(self.limits.rpm or 0)
        semantics = semantics_of(self.provider)
        kind = semantics.minute
        self.meter: Meter = Bucket(limit, 60.0, 0.0)
        if kind == "fixed":
            self.meter = FixedWindow(limit, 60.0, 0.0, phase=-UNIX)
        elif kind == "sliding":
            window_s = semantics.request_window_s
            self.meter = SlidingWindow(limit * window_s / 60.0, window_s, 0.0)

    def add(self, offered_rps: float, *, room: float = 50.0) -> Process:
        """Start one more process."""
        process = Process(self, f"process {len(self.processes)}", offered_rps, room=room)
        self.processes.append(process)
        return process

    @property
    def sent(self) -> int:
        """How many requests the provider has seen."""
        return sum(process.sent for process in self.processes)

    async def run(self, seconds: float) -> int:
        """Let time pass; give how many requests were sent in it."""
        before, ends = self.sent, self.now + seconds
        while self.now < ends:
            self.now += STEP_S
            for process in self.processes:
                if not process.is_stopped:
                    await process.turn(self.now)
                    self._serve(process)
        return self.sent - before

    def _serve(self, process: Process) -> None:
        process.waiting = min(process.room, process.waiting + process.offered_rps * STEP_S)
        while process.waiting >= 1.0 and process.ledger.ready_at(10.0, 10.0, self.now) <= self.now:
            process.waiting -= 1.0
            self.send(process)

    def send(self, process: Process) -> None:
        """Send one request, whether or not the process may."""
        reservation = process.ledger.reserve(10.0, 10.0, self.now)
        process.sent += 1
        if self.meter.available(self.now) >= 1.0:
            self.meter.take(1.0, self.now)
            outcome = Outcome(kind=OutcomeKind.OK, status=200, total_s=0.01)
        else:
            self.refused += 1
            outcome = Outcome(kind=OutcomeKind.RATE_LIMITED, status=429, total_s=0.01)
        process.ledger.settle(reservation, outcome, self.now)
