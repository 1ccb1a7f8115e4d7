"""Processes that share one quota, each with its pool's queue of waiting requests: real parts, in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

from gateway.balancing.balancer import Balancer
from gateway.balancing.book import QuotaBook
from gateway.balancing.decision import Ask, Picked, Wait
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.limiter import Bucket
from gateway.balancing.outcome import Outcome, OutcomeKind
from gateway.balancing.quota import Limits, Quota
from gateway.balancing.strategies.registry import make_strategy
from gateway.leases.driver import PERIOD_S
from gateway.leases.store import InMemoryLeaseStore
from gateway.proxy.queue import PoolQueue
from tests.leases.world import STEP_S, TENANT, UNIX, lease_driver

ASK = Ask("m", dialect="openai", est_input_tokens=10, est_output_tokens=10)
PATIENCE_S = 30.0


class QueueingProcess:
    """One process; `answers` counts what became of its requests."""

    def __init__(self, world: QueueingWorld, name: str) -> None:
        self._world = world
        self.queue = PoolQueue(lambda: world.now)
        self.answers: Counter[str] = Counter()
        self.retry_after_s: list[float | None] = []
        self.driver = lease_driver(world, name, on_granted=lambda _: self.book.wake())
        self.book = QuotaBook(self.driver.desk.of(TENANT))
        self.pool = Balancer(
            [Endpoint("key", "quota", "simulated")],
            [Quota("quota", Limits(rpm=world.rpm), "simulated")],
            make_strategy("weighted"),
            rng=Random(name),
            now=world.now,
            unix_offset_s=UNIX,
            on_freed=self.queue.released,
            book=self.book,
        )
        self.asking: set[asyncio.Task[None]] = set()
        self._due = world.now + Random(name).random()

    def offer(self, count: int) -> None:
        """Let so many requests come at once."""
        for _ in range(count):
            task = asyncio.create_task(self._ask())
            self.asking.add(task)
            task.add_done_callback(self.asking.discard)

    async def _ask(self) -> None:
        world, place = self._world, None
        deadline = world.now + PATIENCE_S
        while True:
            decision = self.pool.acquire(ASK, now=world.now)
            if isinstance(decision, Picked):
                if place is not None:
                    place.leave(served=True)
                kind = world.serve()
                self.pool.observe(decision.lease, Outcome(kind=kind, status=200, total_s=0.01), now=world.now)
                self.answers[str(kind)] += 1
                return
            assert isinstance(decision, Wait)
            if place is None:
                place = self.queue.place(
                    "m",
                    client_id="app",
                    priority=1,
                    deadline=deadline,
                    within_s=lambda ahead: self.pool.within_s(ASK, ahead, now=world.now),
                )
            if not await place.wait(decision.until):
                self.answers["turned away"] += 1
                self.retry_after_s.append(place.retry_after_s)
                return

    async def turn(self, now: float) -> None:
        """Exchange if it is time to, or if a request waits for it; then whoever waits tries."""
        if now >= self._due or self.driver.is_waited_for:
            everything = now >= self._due
            if everything:
                self._due = now + PERIOD_S * (0.9 + 0.2 * Random(now).random())
            await self.driver.exchange(everything=everything, due=self._due)
        self.queue.released()
        for _ in range(8 + 2 * len(self.asking)):
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Send away whoever still waits."""
        for task in self.asking:
            task.cancel()
        await asyncio.gather(*self.asking, return_exceptions=True)


class QueueingWorld:
    """`processes` over one quota of `rpm` requests a minute."""

    def __init__(self, processes: int, rpm: int) -> None:
        self.now = 0.0
        self.rpm = rpm
        self.store = InMemoryLeaseStore(lambda: self.now + UNIX)
        self.meter = Bucket(float(rpm), 60.0, 0.0)
        self.processes = [QueueingProcess(self, f"process {number}") for number in range(processes)]

    def serve(self) -> OutcomeKind:
        """Answer as the provider does."""
        if self.meter.available(self.now) < 1.0:
            return OutcomeKind.RATE_LIMITED
        self.meter.take(1.0, self.now)
        return OutcomeKind.OK

    async def run(self, seconds: float, *rates: float) -> None:
        """Let time pass, with so many requests a second for each process."""
        due = [0.0] * len(rates)
        ends = self.now + seconds
        while self.now < ends:
            self.now += STEP_S
            for index, rps in enumerate(rates):
                due[index] += rps * STEP_S
                self.processes[index].offer(int(due[index]))
                due[index] -= int(due[index])
            for process in self.processes:
                await process.turn(self.now)

    async def close(self) -> None:
        """End it."""
        for process in self.processes:
            await process.close()
