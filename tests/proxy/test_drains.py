"""What a process reports about requests on old secrets, and when a drain may end by it, over a real Postgres."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from uuid import UUID

import pytest

from auth.errors import Unavailable
from auth.storage import Connections, Sessions
from gateway.balancing.balancer import Balancer
from gateway.balancing.decision import Ask, Lease, Picked
from gateway.balancing.outcome import Outcome, OutcomeKind
from gateway.proxy.drains import BEAT_S, DrainReporter
from gateway.proxy.runtime import TenantRuntime, Workshop, build_tenant
from gateway.upstream.guard import EgressPolicy
from tenants.datakeys import DataKeys
from tenants.lifecycle import VersionState
from tenants.models import KeyVersion
from tenants.snapshot import SnapshotLoader
from tenants.store import drains, keys
from tests.tenants.conftest import Clock, Plant, Planted, clock, data_keys, keyring, plant

__all__ = ["clock", "data_keys", "keyring", "plant"]

ASK = Ask(model="gpt-4o", dialect="openai", est_input_tokens=1, est_output_tokens=1, deadline=1e9)


@dataclass
class Process:
    """A serving process: what it has in memory, and its reporter."""

    loader: SnapshotLoader
    connections: Connections
    planted: Planted
    clock: Clock = field(default_factory=Clock)
    tenants: dict[UUID, TenantRuntime] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.workshop = Workshop(EgressPolicy(), self.clock, Random(1))
        self.reporter = DrainReporter(lambda: list(self.tenants.values()), self.connections, clock=self.clock)

    async def load(self) -> None:
        snapshot = await self.loader.load(self.planted.tenant_id)
        assert snapshot is not None
        before = self.tenants.get(snapshot.tenant_id)
        self.tenants[snapshot.tenant_id] = build_tenant(snapshot, before, self.workshop)

    @property
    def balancer(self) -> Balancer:
        return self.tenants[self.planted.tenant_id].pools["main"].balancer

    def begin(self) -> Lease:
        decision = self.balancer.acquire(ASK, now=self.clock())
        assert isinstance(decision, Picked)
        return decision.lease

    def end(self, lease: Lease) -> None:
        self.balancer.observe(lease, Outcome(OutcomeKind.OK), now=self.clock())


class World:
    """One key in the database, and the rotation that its versions go through."""

    def __init__(self, sessions: Sessions, database: Connections, data_keys: DataKeys, planted: Planted) -> None:
        self.sessions, self.database, self.planted = sessions, database, planted
        self.data_keys = data_keys

    async def process(self) -> Process:
        made = Process(SnapshotLoader(self.database, self.data_keys), self.database, self.planted)
        await made.reporter.register()
        await made.load()
        return made

    async def move(self, number: int, state: VersionState) -> None:
        async with self.sessions.tenant(self.planted.tenant_id) as session:
            for version in await keys.versions(session, self.planted.tenant_id, self.planted.key_id):
                if version.number == number:
                    at = version.state_changed_at + timedelta(seconds=1)
                    await keys.move(session, version, state, at=at)

    async def version(self, number: int = 1) -> KeyVersion:
        async with self.sessions.tenant(self.planted.tenant_id) as session:
            found = await keys.versions(session, self.planted.tenant_id, self.planted.key_id)
        return next(each for each in found if each.number == number)

    async def is_quiet(self) -> bool:
        version = await self.version()
        async with self.sessions.platform() as session:
            return await drains.is_quiet(session, version)


@pytest.fixture
async def world(sessions: Sessions, database: Connections, data_keys: DataKeys, plant: Plant) -> World:
    return World(sessions, database, data_keys, await plant("acme"))


async def test_a_drain_is_over_when_the_last_request_on_it_is(world: World) -> None:
    one, two = await world.process(), await world.process()
    under_way = one.begin(), one.begin()
    await world.move(1, VersionState.DRAINING)
    for process in (one, two):
        await process.load()
        await process.reporter.round()
    assert not await world.is_quiet()
    one.end(under_way[0])
    await one.reporter.round()
    assert not await world.is_quiet()
    one.end(under_way[1])
    await one.reporter.round()
    assert await world.is_quiet()


async def test_a_process_that_has_not_heard_of_the_drain_may_still_use_the_secret(world: World) -> None:
    one, late = await world.process(), await world.process()
    await world.move(1, VersionState.DRAINING)
    await one.load()
    await one.reporter.round()
    late.clock.now += BEAT_S + 1
    await late.reporter.round()
    assert not await world.is_quiet()
    await late.load()
    await late.reporter.round()
    assert await world.is_quiet()


async def test_a_version_that_came_back_and_drains_again_is_asked_about_anew(world: World) -> None:
    one = await world.process()
    await world.move(1, VersionState.DRAINING)
    await one.load()
    await one.reporter.round()
    assert await world.is_quiet()
    await world.move(1, VersionState.CURRENT)
    await one.load()
    lease = one.begin()
    await world.move(1, VersionState.DRAINING)
    assert not await world.is_quiet(), "what was said about the drain before says nothing about this one"
    await one.load()
    await one.reporter.round()
    assert not await world.is_quiet()
    one.end(lease)
    await one.reporter.round()
    assert await world.is_quiet()


async def test_nothing_is_known_without_a_process(world: World) -> None:
    one = await world.process()
    await world.move(1, VersionState.DRAINING)
    await one.reporter.leave()
    assert not await world.is_quiet()


async def test_a_process_that_leaves_holds_nothing_up(world: World) -> None:
    one, leaving = await world.process(), await world.process()
    leaving.begin()
    await world.move(1, VersionState.DRAINING)
    for process in (one, leaving):
        await process.load()
        await process.reporter.round()
    assert not await world.is_quiet()
    await leaving.reporter.leave()
    assert await world.is_quiet()


async def _age(world: World, process: Process, seconds: float) -> None:
    async with world.database.platform() as connection:
        statement = "update serving_process set seen_at = now() - make_interval(secs => $2) where id = $1"
        await connection.execute(statement, process.reporter.process_id, seconds)


async def test_a_process_that_vanished_is_forgotten_after_a_while(world: World) -> None:
    one, killed = await world.process(), await world.process()
    await world.move(1, VersionState.DRAINING)
    await one.load()
    await _age(world, killed, 601)
    for _ in range(6):
        await one.reporter.round()
        one.clock.now += BEAT_S
    assert await world.is_quiet()


async def test_an_outage_of_the_database_makes_nobody_forgotten(world: World) -> None:
    one, other = await world.process(), await world.process()
    await world.move(1, VersionState.DRAINING)
    await one.load()
    for process in (one, other):
        await _age(world, process, 3600)
        process.clock.now += 3600
    for _ in range(3):
        await one.reporter.round()
        one.clock.now += BEAT_S
    assert not await world.is_quiet(), "the other one has had no time yet to be heard"
    await other.reporter.round()
    for _ in range(6):
        await one.reporter.round()
        one.clock.now += BEAT_S
    assert not await world.is_quiet()


async def test_a_process_that_was_forgotten_tells_everything_again(world: World) -> None:
    one = await world.process()
    await world.move(1, VersionState.DRAINING)
    await one.load()
    await one.reporter.round()
    async with world.database.platform() as connection:
        await connection.execute("delete from serving_process")
    one.clock.now += BEAT_S
    await one.reporter.round()
    assert await world.is_quiet()


async def test_reports_are_removed_when_the_drain_is_over(world: World) -> None:
    one = await world.process()
    await world.move(1, VersionState.DRAINING)
    await one.load()
    await one.reporter.round()
    await world.move(1, VersionState.DISABLED)
    await one.load()
    await one.reporter.round()
    async with world.database.platform() as connection:
        assert await connection.fetchval("select count(*) from drain_report") == 0


async def test_registering_waits_for_no_database() -> None:
    class Away:
        def platform(self):  # type: ignore[no-untyped-def]
            raise Unavailable("away")

        tenant = platform

    await DrainReporter(list, Away(), clock=lambda: 0.0).register()  # type: ignore[arg-type]
