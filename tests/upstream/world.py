"""Scripted providers behind one pool, and a `Leasing` that keeps the books, for the tests of dispatch."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

from gateway.balancing.decision import Ask, Decision, Lease, Picked, Refusal, Refused, Wait
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.exchange import Exchange
from gateway.balancing.hedging import Hedge
from gateway.balancing.hints import Hint
from gateway.balancing.outcome import Outcome, OutcomeKind
from gateway.balancing.retry import RetryBudget, RetryPolicy
from gateway.balancing.steps import Failure, Pause
from gateway.upstream.dispatch import Answer, Prepared, dispatch
from gateway.upstream.message import Deadlines, Origin, UpstreamRequest
from gateway.upstream.pool import ConnectionPool
from tests.upstream.servers import FAST, Script, pooling, post, serving


class Leases:
    """Hands out the endpoints in order and keeps the books: `Leasing` without any balancing."""

    def __init__(self, names: list[str], *, waits: int = 0) -> None:
        self.names = names
        self.waits = waits
        self.open: dict[int, Lease] = {}
        self.observed: list[tuple[str, Outcome]] = []
        self.learned: list[Hint] = []
        self.count = 0

    def acquire(self, ask: Ask, *, now: float) -> Decision:
        if self.waits:
            self.waits -= 1
            return Wait(now + 1.0)
        for name in self.names:
            if name not in ask.excluded:
                self.count += 1
                lease = self.open[self.count] = Lease(self.count, Endpoint(name, "q", "simulated"), 0, 0, now)
                return Picked(lease)
        return Refused(Refusal.EXHAUSTED)

    def spare(self, ask: Ask, *, now: float, headroom: float) -> Lease | None:
        decision = self.acquire(ask, now=now)
        return decision.lease if isinstance(decision, Picked) else None

    def observe(self, lease: Lease, outcome: Outcome, *, now: float) -> None:
        del self.open[lease.id]
        self.observed.append((lease.endpoint.id, outcome))

    def learn(self, lease: Lease, hint: Hint, *, now: float) -> None:
        assert lease.id in self.open
        self.learned.append(hint)

    @property
    def kinds(self) -> list[tuple[str, OutcomeKind]]:
        assert not self.open, "a lease was not given back"
        return [(name, outcome.kind) for name, outcome in self.observed]


class World:
    """Scripted providers a, b, c … behind one pool."""

    def __init__(self, pool: ConnectionPool, origins: dict[str, Origin]) -> None:
        self.pool = pool
        self.origins = origins
        self.request: UpstreamRequest = post()
        self.deadlines: Deadlines = FAST
        self.parked: list[Pause] = []
        self.prepared: list[str] = []
        self.room = True
        self.leases = Leases(sorted(origins))

    async def park(self, pause: Pause) -> bool:
        self.parked.append(pause)
        return self.room

    def prepare(self, lease: Lease) -> Prepared:
        self.prepared.append(lease.endpoint.id)
        return Prepared(self.origins[lease.endpoint.id], self.request, "openai", self.deadlines)

    async def call(self, max_attempts: int = 4, hedge: Hedge | None = None) -> Answer | Failure:
        exchange = Exchange(
            self.leases,
            Ask("m"),
            RetryPolicy(max_attempts),
            RetryBudget(),
            rng=random.Random(1),
            replayable=self.request.replayable,
            hedge=hedge,
        )
        clock = asyncio.get_running_loop().time
        return await dispatch(exchange, self.prepare, self.pool, clock=clock, park=self.park, unix_clock=lambda: 0.0)

    async def answer(self) -> Answer:
        answer = await self.call()
        assert isinstance(answer, Answer), answer
        return answer


@contextlib.asynccontextmanager
async def world(**scripts: Script) -> AsyncIterator[World]:
    async with contextlib.AsyncExitStack() as stack:
        origins = {}
        for name, script in scripts.items():
            origins[name] = (await stack.enter_async_context(serving(script))).origin
        yield World(await stack.enter_async_context(pooling()), origins)
