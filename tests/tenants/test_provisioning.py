"""Pools that grow and shrink by themselves: the decision as tables, and the whole of it over Postgres."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import convert
from sqlmodel import col, select
from uuid_utils.compat import uuid7

from auth.storage import Connections, Sessions
from tenants.datakeys import DataKeys
from tenants.models import AuditEvent, KeySource, PoolProvisioning, Quota
from tenants.provisioning import Provisioner
from tenants.provisioning_plan import (
    Change,
    Load,
    PoolFacts,
    ProvisioningSettings,
    plan,
    retry_s,
    settings_problems,
    utilisation,
)
from tenants.rotation import RotationEngine
from tenants.sources.protocol import RemoteKey
from tenants.sources.registry import makes_many
from tenants.store import keys, provisioning
from tests.tenants.conftest import Plant, Planted
from tests.tenants.test_rotation import Faulty

START = datetime(2026, 1, 5, 12, tzinfo=UTC)
SETTINGS: dict[str, Any] = {"key": {"provider": "openai", "limits": {"rpm": 10}}, "max_keys": 3}


def settings(**more: Any) -> ProvisioningSettings:
    return convert({**SETTINGS, **more}, ProvisioningSettings)


def facts(used: float, *, busy: float | None = None, idle: float | None = None, **more: Any) -> PoolFacts:
    """Return facts; `busy` and `idle` are seconds ago."""
    known: dict[str, Any] = {"serving": 2, "moving": 0, "retirable": 1, **more}
    for name, ago in (("busy_since", busy), ("idle_since", idle)):
        known[name] = None if ago is None else START - timedelta(seconds=ago)
    return PoolFacts(utilisation=used, **known)


@pytest.mark.parametrize(
    ("name", "given_facts", "change"),
    [
        ("busy for long enough", facts(0.9, busy=120), Change.GROW),
        ("busy, but only just", facts(0.9, busy=60), Change.NOTHING),
        ("busy since this moment", facts(0.9), Change.NOTHING),
        ("as many keys as it may have", facts(0.9, busy=500, serving=3), Change.NOTHING),
        ("a key is on its way already", facts(0.9, busy=500, moving=1), Change.NOTHING),
        ("it changed a moment ago", facts(0.9, busy=500, changed_at=START - timedelta(seconds=60)), Change.NOTHING),
        ("neither busy nor idle", facts(0.5, busy=500, idle=9000), Change.NOTHING),
        ("idle for long enough", facts(0.1, idle=3600), Change.RETIRE),
        ("idle, but only just", facts(0.1, idle=3000), Change.NOTHING),
        ("the least number of keys", facts(0.1, idle=9000, serving=1), Change.NOTHING),
        ("nothing that was made", facts(0.1, idle=9000, retirable=0), Change.NOTHING),
        ("a key is still on its way out", facts(0.1, idle=9000, moving=1), Change.NOTHING),
    ],
)
def test_when_a_pool_changes(name: str, given_facts: PoolFacts, change: Change) -> None:
    assert plan(given_facts, settings(), now=START).change is change, name


def test_a_key_whose_load_the_others_could_not_take_stays() -> None:
    swings = settings(shrink_below=0.5, grow_above=0.8)
    assert plan(facts(0.45, idle=9000), swings, now=START).change is Change.NOTHING
    assert plan(facts(0.35, idle=9000), swings, now=START).change is Change.RETIRE


def test_clocks_start_and_stop() -> None:
    assert plan(facts(0.9), settings(), now=START).busy_since == START
    assert plan(facts(0.5, busy=50, idle=50), settings(), now=START) == plan(facts(0.5), settings(), now=START)
    grown = plan(facts(0.9, busy=500), settings(), now=START)
    assert grown.busy_since is None, "the next key needs a reason of its own"


@given(
    used=st.floats(0, 3),
    serving=st.integers(0, 6),
    retirable=st.integers(0, 6),
    least=st.integers(1, 3),
    age=st.floats(0, 1e6),
)
def test_no_pool_leaves_its_bounds(used: float, serving: int, retirable: int, least: int, age: float) -> None:
    bounds = settings(min_keys=least)
    now = facts(used, busy=age, idle=age, serving=serving, retirable=min(retirable, serving))
    change = plan(now, bounds, now=START).change
    assert change is not Change.GROW or serving < bounds.max_keys
    assert change is not Change.RETIRE or serving > bounds.min_keys >= 1


@pytest.mark.parametrize(
    ("load", "used"),
    [
        (Load(), 0.0),
        (Load(requests=50, rpm=100), 0.5),
        (Load(requests=50, tokens=900, rpm=100, tpm=1000), 0.9),
        (Load(requests=500), 0.0),
        (Load(refused=1, rpm=1000), 1.0),
        (Load(requests=1, rpm=0), 0.0),
    ],
)
def test_utilisation(load: Load, used: float) -> None:
    assert utilisation(load) == used


@pytest.mark.parametrize(
    ("more", "pointer"),
    [
        ({"min_keys": 4}, "/min_keys"),
        ({"shrink_below": 0.9}, "/shrink_below"),
        ({"key": {"provider": "openai", "quota_id": str(uuid7()), "limits": {"rpm": 1}}}, "/key/limits"),
    ],
)
def test_settings_that_make_no_sense(more: dict[str, Any], pointer: str) -> None:
    assert [problem[0] for problem in settings_problems(settings(**more))] == [pointer]


def test_only_drivers_of_any_number_of_keys_let_a_pool_grow() -> None:
    drivers = ("openai", "gcp", "webhook", "aws", "azure", "manual", "federated")
    assert [name for name in drivers if makes_many(name)] == ["openai", "gcp", "webhook"]
    assert retry_s(1) < retry_s(2) < retry_s(30) == retry_s(99)


class Bench:
    """The planted pool with provisioning, the engine that makes its keys, and a clock."""

    def __init__(self, sessions: Sessions, database: Connections, data_keys: DataKeys, planted: Planted) -> None:
        self.sessions, self.database, self.planted = sessions, database, planted
        self.now, self.alerts = START, list[str]()
        self.source = Faulty(clock=lambda: self.now)
        self.source.keys["old"] = RemoteKey("old", "by hand", planted.secret)
        self.engine = RotationEngine(
            sessions,
            data_keys,
            lambda source, credential: self.source,
            self.source,
            now=lambda: self.now,
            rng=random.Random(7),
        )
        self.provisioner = self.fresh()

    def fresh(self) -> Provisioner:
        return Provisioner(self.sessions, now=lambda: self.now, alert=lambda event, subject: self.alerts.append(event))

    async def set_up(self, **more: Any) -> None:
        tenant_id = self.planted.tenant_id
        async with self.sessions.tenant(tenant_id) as session:
            source = KeySource(tenant_id=tenant_id, name="admin", driver="openai")
            session.add(source)
            await session.flush()
            session.add(
                PoolProvisioning(
                    pool_id=self.planted.pool_id,
                    tenant_id=tenant_id,
                    source_id=source.id,
                    settings={**SETTINGS, **more},
                    look_at=self.now,
                )
            )

    async def used(self, requests: int, *, refused: int = 0) -> None:
        """Write the usage of the minute that ends now."""
        async with self.database.platform() as connection:
            await connection.execute("select usage_partitions($1, 1)", self.now.date())
            await connection.execute(
                "insert into usage_event (id, tenant_id, at, request_id, client_id, token_id, pool_id, key_id, "
                "operation, model, status, outcome, attempts, streamed, input_tokens, output_tokens, "
                "cached_input_tokens, usage_reported, total_ms) "
                "select gen_random_uuid(), $1, $2, 'r', 'c', 't', $3, case when n > $5 then $4::uuid end, 'chat', 'm', "
                "case when n > $5 then 200 else 429 end, case when n > $5 then 'ok' else 'rate_limited' end, "
                "1, false, 1, 1, 0, true, 1 from generate_series(1, $6) as n",
                self.planted.tenant_id,
                self.now,
                self.planted.pool_id,
                self.planted.key_id,
                refused,
                requests + refused,
            )

    async def run(self, seconds: float, *, requests: int = 0, refused: int = 0, step_s: float = 20) -> None:
        end = self.now + timedelta(seconds=seconds)
        while self.now < end:
            if requests or refused:
                await self.used(requests, refused=refused)
            await self.provisioner.run_once()
            while await self.engine.run_once():
                pass
            self.now += timedelta(seconds=step_s)

    async def keys(self) -> dict[str, list[str]]:
        async with self.sessions.tenant(self.planted.tenant_id) as session:
            found = await provisioning.keys_of(session, self.planted.tenant_id, self.planted.pool_id)
            return {
                key.name: [version.state for version in await keys.versions(session, key.tenant_id, key.id)]
                for key in sorted(found, key=lambda key: key.name)
            }

    async def events(self) -> list[str]:
        async with self.sessions.tenant(self.planted.tenant_id) as session:
            rows = await session.execute(select(AuditEvent).order_by(col(AuditEvent.seq)))
            return [event.action for event in rows.scalars() if event.actor == "provisioning"]

    async def quotas(self) -> int:
        async with self.sessions.tenant(self.planted.tenant_id) as session:
            return len((await session.execute(select(Quota))).scalars().all())


@pytest.fixture
async def bench(sessions: Sessions, database: Connections, data_keys: DataKeys, plant: Plant) -> Bench:
    return Bench(sessions, database, data_keys, await plant("acme"))


async def test_a_pool_is_as_it_is_until_it_is_told_otherwise(bench: Bench) -> None:
    await bench.run(600, requests=1000)
    assert await bench.keys() == {"k1": ["current"]}


async def test_a_full_pool_grows_and_an_idle_one_shrinks_to_what_it_was(bench: Bench) -> None:
    await bench.set_up()
    await bench.run(100, requests=3)
    assert await bench.keys() == {"k1": ["current"]}
    await bench.run(200, requests=3)
    assert await bench.keys() == {"auto-1": ["current"], "k1": ["current"]}
    await bench.run(600, requests=100)
    assert set(await bench.keys()) == {"auto-1", "auto-2", "k1"}, "as many as it may have, and no more"
    assert await bench.quotas() == 3, "each with a quota of its own"
    await bench.run(3 * 3600, step_s=120)
    assert await bench.keys() == {"k1": ["current"]}, "what a person added is never taken away"
    assert set(bench.source.keys) == {"old"}, "nothing is left at the provider"
    assert await bench.quotas() == 1
    assert await bench.events() == [
        "pool.grow",
        "pool.grow",
        "pool.shrink",
        "key.delete",
        "pool.shrink",
        "key.delete",
    ]
    assert bench.alerts == []


async def test_a_refusal_for_want_of_capacity_counts_as_full(bench: Bench) -> None:
    await bench.set_up()
    await bench.run(200, refused=1)
    assert set(await bench.keys()) == {"auto-1", "k1"}


async def test_the_least_number_of_keys_stays(bench: Bench) -> None:
    await bench.set_up(min_keys=2)
    await bench.run(300, requests=100)
    await bench.run(4 * 3600, step_s=300)
    assert set(await bench.keys()) == {"auto-1", "k1"}


async def test_a_key_that_cannot_be_made_is_removed_and_tried_ever_less_often(bench: Bench) -> None:
    await bench.set_up()
    bench.source.refuses = {"create"}
    await bench.run(3600, requests=100, step_s=30)
    assert set(await bench.keys()) <= {"auto-1", "k1"}
    assert 2 <= bench.source.calls.count("create") <= 5
    assert set(bench.alerts) == {"provisioning.failed"}
    assert "pool.grow_failed" in await bench.events()
    async with bench.sessions.tenant(bench.planted.tenant_id) as session:
        row = await provisioning.of_pool(session, bench.planted.tenant_id, bench.planted.pool_id)
    assert row is not None
    assert row.error == "forbidden"
    bench.source.refuses = set()
    await bench.run(4 * 3600, requests=100, step_s=120)
    assert len(await bench.keys()) == 3


async def test_two_replicas_make_one_key(bench: Bench) -> None:
    await bench.set_up()
    other = bench.fresh()
    for _ in range(20):
        await bench.used(100)
        await bench.provisioner.run_once()
        await other.run_once()
        bench.now += timedelta(seconds=10)
    assert set(await bench.keys()) == {"auto-1", "k1"}


async def test_a_key_that_is_in_use_drains_before_it_goes(bench: Bench) -> None:
    await bench.set_up(max_keys=2)
    await bench.run(300, requests=100)
    async with bench.database.platform() as connection:
        await connection.execute("insert into serving_process (id) values (gen_random_uuid())")
    await bench.run(3900, step_s=60)
    assert (await bench.keys())["auto-1"] == ["draining"], "a process has not said that nothing is under way"
    assert "ref-1" in bench.source.keys
    await bench.run(1200, step_s=60)
    assert set(await bench.keys()) == {"k1"}
