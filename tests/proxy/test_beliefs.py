"""What was learned of limiters outlives a process: one contract over both stores, the keeper between two runtimes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from uuid import UUID, uuid4

import pytest

from auth.storage import Sessions
from gateway.balancing.book import QuotaBook
from gateway.balancing.decision import Ask, Picked
from gateway.balancing.hints import Hint, WindowHint
from gateway.balancing.outcome import Outcome, OutcomeKind
from gateway.balancing.predictor import MAX_AGE_S
from gateway.database import Postgres
from gateway.proxy.beliefs import BeliefKeeper, BeliefStore, InMemoryBeliefStore, PostgresBeliefStore, Saved
from gateway.proxy.runtime import TenantRuntime, Workshop, build_tenant
from gateway.upstream.guard import EgressPolicy
from tenants.api.views import belief_out
from tenants.datakeys import DataKeys
from tenants.models import Pool
from tenants.snapshot import SnapshotLoader
from tenants.store import quotas
from tests.conftest import TestDatabase
from tests.tenants.conftest import Clock, Plant, Planted, clock, data_keys, keyring, plant

__all__ = ["clock", "data_keys", "keyring", "plant"]

ASK = Ask(model="gpt-4o-2024-08-06", est_input_tokens=10, est_output_tokens=10)
TOLD = Hint(requests=WindowHint(60, 40), tokens=WindowHint(90_000, 80_000))


@pytest.fixture(params=["memory", "postgres"])
async def store(request: pytest.FixtureRequest, test_database: TestDatabase) -> AsyncIterator[BeliefStore]:
    if request.param == "memory":
        yield InMemoryBeliefStore()
        return
    postgres = Postgres(test_database.url, max_size=2)
    yield PostgresBeliefStore(postgres)
    await postgres.close()


async def test_rows_are_read_as_they_were_written_last(store: BeliefStore, plant: Plant) -> None:
    acme, other = await plant("acme"), await plant("other")
    rows = [
        Saved(acme.tenant_id, acme.quota_id, "gpt-4o", {"margin": 0.1, "told": {"rpm": 3}}, {"limits": {}}),
        Saved(acme.tenant_id, acme.quota_id, "gpt-5", {"margin": 0.0}, {"limits": {}}),
        Saved(other.tenant_id, other.quota_id, "gpt-4o", {"margin": 0.2}, {"limits": {}}),
    ]
    await store.save(rows)
    await store.save([Saved(acme.tenant_id, acme.quota_id, "gpt-5", {"margin": 0.04}, {"limits": {}})])
    found = {(row.tenant_id, row.quota_id, row.family): row.state for row in await store.load(max_age_s=60.0)}
    assert found == {
        (acme.tenant_id, acme.quota_id, "gpt-4o"): {"margin": 0.1, "told": {"rpm": 3}},
        (acme.tenant_id, acme.quota_id, "gpt-5"): {"margin": 0.04},
        (other.tenant_id, other.quota_id, "gpt-4o"): {"margin": 0.2},
    }


async def test_quotas_that_are_gone_or_anothers_are_left_out(test_database: TestDatabase, plant: Plant) -> None:
    acme, other = await plant("acme"), await plant("other")
    postgres = Postgres(test_database.url, max_size=2)
    kept = PostgresBeliefStore(postgres)
    await kept.save(
        [
            Saved(acme.tenant_id, uuid4(), "", {}, {}),
            Saved(other.tenant_id, acme.quota_id, "", {"margin": 1.0}, {}),
            Saved(acme.tenant_id, acme.quota_id, "", {"margin": 0.1}, {}),
        ]
    )
    assert [(row.tenant_id, row.state) for row in await kept.load(max_age_s=60.0)] == [
        (acme.tenant_id, {"margin": 0.1})
    ]
    assert await kept.load(max_age_s=-1.0) == []
    await postgres.close()


class Process:
    """One process: a runtime and its keeper over a store that outlives it."""

    def __init__(self, store: BeliefStore, loader: SnapshotLoader, clock: Clock, *, predicts: bool = True) -> None:
        self.clock = clock
        self.loader = loader
        self.tenants: dict[UUID, TenantRuntime] = {}
        self.keeper = BeliefKeeper(store, lambda: list(self.tenants.values()), clock=clock)
        self.workshop = Workshop(
            EgressPolicy(), clock, Random(1), unix_offset_s=1000.0, predicts=predicts, recall=self.keeper.recall
        )

    async def start(self, tenant_id: UUID) -> None:
        await self.keeper.load()
        snapshot = await self.loader.load(tenant_id)
        assert snapshot is not None
        self.tenants[tenant_id] = build_tenant(snapshot, None, self.workshop)

    def serve(self, tenant_id: UUID, kind: OutcomeKind, hint: Hint | None) -> None:
        balancer = self.tenants[tenant_id].pools["main"].balancer
        decision = balancer.acquire(ASK, now=self.clock())
        assert isinstance(decision, Picked)
        balancer.observe(decision.lease, Outcome(kind, hint=hint), now=self.clock())

    def book(self, tenant_id: UUID) -> QuotaBook:
        return self.tenants[tenant_id].book


Start = Callable[[BeliefStore, bool], Awaitable[Process]]


@pytest.fixture
async def planted(plant: Plant, sessions: Sessions) -> Planted:
    made = await plant("acme")
    async with sessions.tenant(made.tenant_id) as session:
        pool = await session.get_one(Pool, made.pool_id)
        pool.strategy = "predictive"
        quota = await quotas.get(session, made.tenant_id, made.quota_id)
        quota.limits = {"rpm": 100, "tpm": 90_000}
    return made


@pytest.fixture
def start(planted: Planted, database: TestDatabase, data_keys: DataKeys, clock: Clock) -> Start:
    async def begin(store: BeliefStore, predicts: bool) -> Process:
        process = Process(store, SnapshotLoader(database, data_keys), clock, predicts=predicts)  # type: ignore[arg-type]
        await process.start(planted.tenant_id)
        return process

    return begin


async def test_a_restart_goes_on_with_what_was_known_and_says_it(
    store: BeliefStore, start: Start, planted: Planted, sessions: Sessions
) -> None:
    first = await start(store, True)
    first.serve(planted.tenant_id, OutcomeKind.OK, TOLD)
    first.serve(planted.tenant_id, OutcomeKind.RATE_LIMITED, None)
    assert first.book(planted.tenant_id).misconfigured == 1
    await first.keeper.round()
    assert first.keeper.saved == 1
    await first.keeper.round()
    assert first.keeper.saved == 1, "nothing has changed"
    second = await start(store, True)
    second.clock.now += 600.0
    second.serve(planted.tenant_id, OutcomeKind.OK, None)
    ((_, view),) = second.book(planted.tenant_id).views(second.clock())
    assert view.misconfigured == {"rpm": (100, 60)}
    assert view.belief is not None
    assert 0.0 < view.belief.margin < 0.04
    if isinstance(store, PostgresBeliefStore):
        async with sessions.tenant(planted.tenant_id) as session:
            (row,) = await quotas.beliefs(session, planted.tenant_id, planted.quota_id)
        shown = belief_out(row)
        assert (shown.family, shown.limits["rpm"], shown.rate_limited) == ("gpt-4o", 60.0, 1)
        assert (shown.misconfigured["rpm"].configured, shown.misconfigured["rpm"].told) == (100, 60)
        assert shown.belief is not None
        assert {"margin", "error", "probes", "trials_refused_share"} <= shown.belief.keys()


async def test_names_outlive_a_restart_and_what_has_not_changed_does_not_get_too_old(
    store: BeliefStore, start: Start, planted: Planted, sessions: Sessions
) -> None:
    first = await start(store, False)
    first.serve(planted.tenant_id, OutcomeKind.OK, Hint(requests=WindowHint(60, 50), quota_name="acme-org"))
    await first.keeper.round()
    saved = first.keeper.saved
    first.clock.now += MAX_AGE_S / 4.0
    await first.keeper.round()
    assert first.keeper.saved == 2 * saved
    second = await start(store, False)
    assert second.book(planted.tenant_id).shared.names(str(planted.quota_id)) == ("acme-org",)
    if isinstance(store, PostgresBeliefStore):
        async with sessions.tenant(planted.tenant_id) as session:
            rows = [belief_out(row) for row in await quotas.beliefs(session, planted.tenant_id, planted.quota_id)]
        assert {row.family: row.limits.get("rpm") for row in rows} == {"": None, "gpt-4o": 60.0}
        assert {row.family: row.sources.get("rpm") for row in rows} == {"": None, "gpt-4o": "provider"}
        assert [(row.known_as, row.counted_as) for row in rows] == [(["acme-org"], None)] * 2


async def test_the_switch_turns_learning_off_and_what_was_told_still_counts(start: Start, planted: Planted) -> None:
    store = InMemoryBeliefStore()
    first = await start(store, True)
    first.serve(planted.tenant_id, OutcomeKind.OK, TOLD)
    await first.keeper.close()
    second = await start(store, False)
    second.serve(planted.tenant_id, OutcomeKind.OK, None)
    ((_, view),) = second.book(planted.tenant_id).views(second.clock())
    assert view.belief is None
    assert view.limits["rpm"][0] == 60.0


async def test_a_store_that_is_away_holds_nothing_up(start: Start, planted: Planted) -> None:
    store = InMemoryBeliefStore()
    store.away = True
    process = await start(store, True)
    process.serve(planted.tenant_id, OutcomeKind.OK, TOLD)
    await process.keeper.close()
    store.away = False
    await process.keeper.round()
    assert len(store.rows) == 1
