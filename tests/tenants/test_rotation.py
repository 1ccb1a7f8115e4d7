"""The rotation engine: every key always has a live version, and nothing is left at the provider, whatever dies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import update
from sqlmodel import col

from auth.errors import Conflict
from auth.secret import Secret
from auth.storage import Connections, Sessions
from tenants.datakeys import DataKeys
from tenants.lifecycle import VersionState
from tenants.models import KeySource, KeyVersion
from tenants.rotation import LEASE_S, RotationEngine
from tenants.rotation_commands import intent, revoke, roll_back
from tenants.rotation_plan import RotationSettings, load_settings, tag_of
from tenants.snapshot import SnapshotLoader
from tenants.sources.protocol import (
    Capabilities,
    InMemorySource,
    ProbeResult,
    ProviderKeyMade,
    RemoteKey,
    SourceAway,
    SourceRefused,
)
from tenants.store import keys
from tests.tenants.conftest import Plant, Planted

START = datetime(2026, 1, 5, 12, tzinfo=UTC)


class Killed(BaseException):
    """The process dies here."""


@dataclass
class Faulty(InMemorySource):
    """A provider that fails, or takes the process with it, at chosen calls: (call, before or after it took effect)."""

    kill_at: tuple[str, str] | None = None
    away: set[str] = field(default_factory=set)
    refuses: set[str] = field(default_factory=set)
    works_from: datetime | None = None
    clock: Callable[[], datetime] = lambda: START
    calls: list[str] = field(default_factory=list)

    @contextmanager
    def _at(self, call: str) -> Iterator[None]:
        self.calls.append(call)
        if call in self.away:
            raise SourceAway("no answer")
        if call in self.refuses:
            raise SourceRefused("forbidden")
        if self.kill_at == (call, "before"):
            self.kill_at = None
            raise Killed
        yield
        if self.kill_at == (call, "after"):
            self.kill_at = None
            raise Killed

    async def create(self, tag: str, *, in_use: str | None) -> ProviderKeyMade:
        with self._at("create"):
            return await super().create(tag, in_use=in_use)

    async def find(self, tag: str) -> ProviderKeyMade | None:
        with self._at("find"):
            return await super().find(tag)

    async def disable(self, ref: str) -> None:
        with self._at("disable"):
            await super().disable(ref)

    async def revoke(self, ref: str) -> None:
        with self._at("revoke"):
            await super().revoke(ref)

    async def probe(
        self,
        provider: str,
        base_url: str | None,
        secret: Secret,
        *,
        region: str | None = None,
        federation: str | None = None,
    ) -> ProbeResult:
        with self._at("probe"):
            if self.works_from is not None and self.clock() < self.works_from:
                return "refused"
            return await super().probe(provider, base_url, secret)


class Bench:
    """One key with a source, an engine over it, and a clock that moves when told."""

    def __init__(self, sessions: Sessions, database: Connections, data_keys: DataKeys, planted: Planted) -> None:
        self.now = START
        self.sessions, self.database, self.data_keys, self.planted = sessions, database, data_keys, planted
        self.source = Faulty(clock=lambda: self.now)
        self.source.keys["old"] = RemoteKey("old", "by hand", planted.secret)
        self.alerts: list[str] = []
        self.engine = self.fresh_engine()

    def fresh_engine(self) -> RotationEngine:
        return RotationEngine(
            self.sessions,
            self.data_keys,
            lambda source, credential: self.source,
            self.source,
            now=lambda: self.now,
            rng=random.Random(7),
            alert=lambda event, key: self.alerts.append(event),
        )

    async def prepare(self, **settings: Any) -> None:
        async with self.sessions.tenant(self.planted.tenant_id) as session:
            source = KeySource(tenant_id=self.planted.tenant_id, name="admin", driver="memory")
            session.add(source)
            await session.flush()
            key = await keys.get(session, self.planted.tenant_id, self.planted.key_id)
            key.source_id, key.rotation = source.id, settings
            (version,) = await keys.versions(session, self.planted.tenant_id, self.planted.key_id)
            version.provider_ref, version.source_id = "old", source.id

    async def start(self) -> KeyVersion:
        async with self.sessions.tenant(self.planted.tenant_id) as session:
            key = await keys.get(session, self.planted.tenant_id, self.planted.key_id, for_change=True)
            versions = await keys.versions(session, self.planted.tenant_id, self.planted.key_id)
            return await keys.add_version(session, intent(key, versions, at=self.now))

    async def run(self, *, seconds: float = 0, step_s: float = 1) -> None:
        """Run the engine until nothing is due within `seconds`."""
        end = self.now + timedelta(seconds=seconds)
        while True:
            more = 1
            while more:
                more = await self.engine.run_once()
            if self.now >= end:
                return
            self.now = min(end, self.now + timedelta(seconds=step_s))

    async def versions(self) -> list[KeyVersion]:
        async with self.sessions.tenant(self.planted.tenant_id) as session:
            return list(await keys.versions(session, self.planted.tenant_id, self.planted.key_id))

    async def states(self) -> dict[int, str]:
        return {version.number: version.state for version in await self.versions()}

    def accepted(self, ref: str) -> bool:
        return ref in self.source.keys and self.source.keys[ref].enabled

    async def served(self) -> Secret | None:
        loaded = await SnapshotLoader(self.database, self.data_keys).load(self.planted.tenant_id)
        assert loaded is not None
        found = loaded.pools[0].keys
        return found[0].secret if found else None

    async def assert_serving(self) -> None:
        """The one current version opens, and the provider takes it."""
        assert list((await self.states()).values()).count("current") == 1
        secret = await self.served()
        assert any(key.enabled and key.secret == secret for key in self.source.keys.values())


@pytest.fixture
async def bench(sessions: Sessions, database: Connections, data_keys: DataKeys, plant: Plant) -> Bench:
    made = Bench(sessions, database, data_keys, await plant("acme"))
    await made.prepare(probes=2, probe_interval_s=1, probe_deadline_s=60, drain_s=30, retain_s=100)
    return made


async def test_a_whole_rotation(bench: Bench) -> None:
    await bench.start()
    await bench.run(seconds=5)
    assert await bench.states() == {2: "current", 1: "draining"}
    await bench.assert_serving()
    assert bench.accepted("old"), "what began with the old secret may finish with it"
    await bench.run(seconds=30)
    assert await bench.states() == {2: "current", 1: "disabled"}
    assert not bench.accepted("old")
    await bench.run(seconds=100, step_s=10)
    assert await bench.states() == {2: "current", 1: "revoked"}
    assert set(bench.source.keys) == {"ref-1"}
    erased = next(version for version in await bench.versions() if version.number == 1)
    assert (erased.envelope, erased.data_key_id) == (None, None)
    await bench.assert_serving()
    assert bench.alerts == []


KILLS = [(call, when) for call in ("create", "probe", "disable", "revoke") for when in ("before", "after")]


@pytest.mark.parametrize("kill_at", KILLS, ids=lambda kill: " ".join(kill))
async def test_killed_at_any_call(bench: Bench, kill_at: tuple[str, str]) -> None:
    bench.source.kill_at = kill_at
    await bench.start()
    died = 0
    for _ in range(60):
        try:
            await bench.run()
        except Killed:
            died += 1
            bench.engine = bench.fresh_engine()
        await bench.assert_serving()
        if await bench.states() == {2: "current", 1: "revoked"}:
            break
        bench.now += timedelta(seconds=10)
    assert died == 1
    assert await bench.states() == {2: "current", 1: "revoked"}
    assert len(bench.source.keys) == 1, "no key is left behind at the provider"


async def test_killed_while_recovering(bench: Bench) -> None:
    bench.source.kill_at = ("create", "after")
    await bench.start()
    with pytest.raises(Killed):
        await bench.run()
    bench.source.kill_at = ("revoke", "after")
    bench.now += timedelta(seconds=LEASE_S)
    with pytest.raises(Killed):
        await bench.run()
    bench.now += timedelta(seconds=LEASE_S)
    await bench.run(seconds=300, step_s=5)
    assert await bench.states() == {2: "current", 1: "revoked"}
    assert len(bench.source.keys) == 1


async def test_a_found_key_that_shows_its_secret_is_adopted(bench: Bench) -> None:
    bench.source.shows_found = True
    bench.source.kill_at = ("create", "after")
    await bench.start()
    with pytest.raises(Killed):
        await bench.run()
    bench.now += timedelta(seconds=LEASE_S)
    await bench.run(seconds=5)
    assert bench.source.made == 1
    await bench.assert_serving()


async def test_a_new_key_that_works_only_after_a_while(bench: Bench) -> None:
    bench.source.works_from = START + timedelta(seconds=20)
    await bench.start()
    await bench.run(seconds=19)
    assert await bench.states() == {2: "probing", 1: "current"}
    await bench.run(seconds=10)
    assert await bench.states() == {2: "current", 1: "draining"}


async def test_a_new_key_that_never_works_is_removed_and_the_old_one_serves(bench: Bench) -> None:
    bench.source.works_from = START + timedelta(days=9)
    await bench.start()
    await bench.run(seconds=120, step_s=5)
    assert await bench.states() == {2: "failed", 1: "current"}
    assert set(bench.source.keys) == {"old"}
    assert bench.alerts == ["rotation.failed"]
    await bench.assert_serving()


async def test_a_provider_that_is_down_for_an_hour(bench: Bench) -> None:
    bench.source.away = {"create", "find", "probe", "revoke", "disable"}
    await bench.start()
    await bench.run(seconds=3600, step_s=60)
    assert await bench.states() == {2: "pending", 1: "current"}
    assert len(bench.source.calls) < 30, "a provider that is down is asked ever less often"
    bench.source.away = set()
    await bench.run(seconds=900, step_s=30)
    assert (await bench.states())[2] == "current"
    await bench.assert_serving()


async def test_a_refused_creation_fails_at_once(bench: Bench) -> None:
    bench.source.refuses = {"create"}
    await bench.start()
    await bench.run()
    assert await bench.states() == {2: "failed", 1: "current"}
    failed = (await bench.versions())[0]
    assert failed.error == "forbidden"


async def test_a_key_that_cannot_be_removed_is_kept_in_sight_until_it_can(bench: Bench) -> None:
    bench.source.works_from = START + timedelta(days=9)
    bench.source.away = {"revoke"}
    await bench.start()
    await bench.run(seconds=120, step_s=5)
    assert await bench.states() == {2: "orphaned", 1: "current"}
    bench.source.away = set()
    await bench.run(seconds=900, step_s=30)
    assert await bench.states() == {2: "revoked", 1: "current"}
    assert set(bench.source.keys) == {"old"}


async def test_a_person_is_told_once_of_a_step_that_is_refused_for_good(bench: Bench) -> None:
    bench.source.refuses = {"disable"}
    await bench.start()
    await bench.run(seconds=10)
    await bench.run(seconds=3600, step_s=120)
    assert bench.alerts == ["rotation.stuck"]
    assert await bench.states() == {2: "current", 1: "draining"}
    await bench.assert_serving()
    bench.source.refuses = set()
    await bench.run(seconds=1800, step_s=60)
    assert await bench.states() == {2: "current", 1: "revoked"}


async def test_a_revocation_that_fails_once_alarms_nobody(bench: Bench) -> None:
    await bench.start()
    await bench.run(seconds=60, step_s=5)
    bench.source.away = {"revoke"}
    await bench.run(seconds=80, step_s=5)
    bench.source.away = set()
    await bench.run(seconds=120, step_s=10)
    assert await bench.states() == {2: "current", 1: "revoked"}
    assert bench.alerts == []


async def test_two_replicas_and_a_person_at_once(bench: Bench) -> None:
    await bench.start()
    with pytest.raises(Conflict):
        await bench.start()
    other = bench.fresh_engine()
    for _ in range(12):
        await asyncio.gather(bench.engine.run_once(), other.run_once())
        bench.now += timedelta(seconds=1)
    assert bench.source.made == 1
    assert await bench.states() == {2: "current", 1: "draining"}


async def test_a_schedule_runs_once_for_all_missed_runs(bench: Bench) -> None:
    async with bench.sessions.tenant(bench.planted.tenant_id) as session:
        key = await keys.get(session, bench.planted.tenant_id, bench.planted.key_id, for_change=True)
        key.rotation = {**key.rotation, "schedule": {"cron": "0 3 * * *"}}
        key.due_at = START - timedelta(days=5)
    other = bench.fresh_engine()
    await asyncio.gather(bench.engine.run_once(), other.run_once())
    await bench.run(seconds=5)
    assert await bench.states() == {2: "current", 1: "draining"}
    async with bench.sessions.tenant(bench.planted.tenant_id) as session:
        key = await keys.get(session, bench.planted.tenant_id, bench.planted.key_id)
    assert key.due_at == datetime(2026, 1, 6, 3, tzinfo=UTC)


async def schedule(bench: Bench, **members: Any) -> None:
    async with bench.sessions.tenant(bench.planted.tenant_id) as session:
        key = await keys.get(session, bench.planted.tenant_id, bench.planted.key_id, for_change=True)
        key.rotation = {**key.rotation, "schedule": members}
        key.due_at = START - timedelta(hours=5)


async def due_at(bench: Bench) -> datetime | None:
    async with bench.sessions.tenant(bench.planted.tenant_id) as session:
        return (await keys.get(session, bench.planted.tenant_id, bench.planted.key_id)).due_at


async def test_a_missed_run_is_not_caught_up_in_a_blackout(bench: Bench) -> None:
    await schedule(bench, cron="0 3 * * *", blackouts=[{"days": ["mon"], "start": "08:00", "end": "18:00"}])
    await bench.run(seconds=5)
    assert await bench.states() == {1: "current"}
    assert await due_at(bench) == START.replace(hour=18)
    bench.now = START.replace(hour=18)
    await bench.run(seconds=5)
    assert await bench.states() == {2: "current", 1: "draining"}


@pytest.mark.parametrize("members", [{"cron": "0 3 * * *", "time_zone": "Moon/Tranquility"}, {"lunar": "full moon"}])
async def test_a_schedule_that_cannot_be_read_is_told_and_holds_nobody_up(
    bench: Bench, plant: Plant, members: dict[str, Any]
) -> None:
    """As after going back to a release before, or on a machine without that time zone."""
    await schedule(bench, **members)
    other = Bench(bench.sessions, bench.database, bench.data_keys, await plant("other"))
    await other.prepare()
    await schedule(other, cron="0 3 * * *")
    await bench.engine.run_once()
    assert (await other.states()).keys() == {1, 2}
    assert await bench.states() == {1: "current"}
    assert bench.alerts == ["rotation.failed"]
    assert await due_at(bench) == START + timedelta(hours=6)


async def test_what_is_made_for_a_key_that_was_deleted_meanwhile_is_revoked(bench: Bench) -> None:
    await bench.start()
    make = bench.source.create

    async def slow(tag: str, *, in_use: str | None) -> ProviderKeyMade:
        made = await make(tag, in_use=in_use)
        async with bench.sessions.tenant(bench.planted.tenant_id) as session:
            await keys.remove(session, await keys.get(session, bench.planted.tenant_id, bench.planted.key_id))
        return made

    bench.source.create = slow  # type: ignore[method-assign]
    await bench.run(seconds=5)
    assert set(bench.source.keys) == {"old"}


async def test_what_is_made_too_late_is_revoked_unless_it_was_adopted(bench: Bench) -> None:
    await bench.start()
    make, other = bench.source.create, bench.fresh_engine()

    async def slow(tag: str, *, in_use: str | None) -> ProviderKeyMade:
        bench.source.create = make  # type: ignore[method-assign]
        bench.now += timedelta(seconds=LEASE_S)
        await other.run_once()
        return await make(tag, in_use=in_use)

    bench.source.create = slow  # type: ignore[method-assign]
    await bench.run(seconds=5)
    await bench.assert_serving()
    assert set(bench.source.keys) == {"old", "ref-1"}


Command = Callable[..., Awaitable[Any]]


async def command(bench: Bench, do: Command, number: int | None = None, **more: Any) -> Any:
    async with bench.sessions.tenant(bench.planted.tenant_id) as session:
        key = await keys.get(session, bench.planted.tenant_id, bench.planted.key_id, for_change=True)
        versions = await keys.versions(session, bench.planted.tenant_id, bench.planted.key_id)
        chosen = [version for version in versions if version.number == number]
        return await do(session, *chosen, versions, load_settings(key.rotation), at=bench.now, **more)


async def test_roll_back_while_draining(bench: Bench) -> None:
    await bench.start()
    await bench.run(seconds=5)
    await command(bench, roll_back)
    assert await bench.states() == {2: "draining", 1: "current"}
    assert await bench.served() == bench.planted.secret
    await bench.run(seconds=200, step_s=10)
    assert await bench.states() == {2: "revoked", 1: "current"}
    assert set(bench.source.keys) == {"old"}
    with pytest.raises(Conflict, match="No earlier version"):
        await command(bench, roll_back)


async def test_roll_back_to_a_disabled_version_enables_it_again(bench: Bench) -> None:
    await bench.start()
    await bench.run(seconds=40, step_s=5)
    assert not bench.accepted("old")
    await command(bench, roll_back)
    await bench.run()
    assert bench.accepted("old")
    assert await bench.states() == {2: "draining", 1: "current"}
    await bench.assert_serving()


async def test_emergency_revoke_falls_back_and_cleans_up(bench: Bench) -> None:
    await bench.start()
    await bench.run(seconds=5)
    await command(bench, revoke, 2, force=False)
    assert await bench.states() == {2: "revoked", 1: "current"}
    assert await bench.served() == bench.planted.secret
    await bench.run()
    assert set(bench.source.keys) == {"old"}


async def test_the_last_living_version_is_only_revoked_by_force(bench: Bench) -> None:
    with pytest.raises(Conflict, match="only living version"):
        await command(bench, revoke, 1, force=False)
    await command(bench, revoke, 1, force=True)
    assert await bench.states() == {1: "revoked"}
    assert await bench.served() is None
    await bench.run()
    assert bench.source.keys == {}


async def test_a_driver_of_two_slots_waits_for_the_draining_one(bench: Bench) -> None:
    bench.source.capabilities = Capabilities(finds=False, repeatable=True, slots=2, revokes=False)
    await bench.start()
    await bench.run(seconds=3)
    await bench.start()
    await bench.run(seconds=3)
    assert await bench.states() == {3: "pending", 2: "current", 1: "draining"}
    await bench.run(seconds=60)
    assert await bench.states() == {3: "current", 2: "disabled", 1: "revoked"}


async def test_a_drain_that_another_process_looks_at_is_not_waited_for_beyond_its_end(bench: Bench) -> None:
    bench.source.capabilities = Capabilities(finds=False, repeatable=True, slots=2, revokes=False)
    await bench.start()
    await bench.run(seconds=3)
    async with bench.sessions.platform() as session:
        await session.execute(
            update(KeyVersion).where(col(KeyVersion.number) == 1).values(step_at=bench.now + timedelta(seconds=LEASE_S))
        )
    await bench.start()
    await bench.run()
    waiting = (await bench.versions())[0]
    assert waiting.step_at is not None
    assert waiting.step_at <= bench.now + timedelta(seconds=31), "the drain of 30 s and one more"


async def test_a_version_that_is_refused_later_makes_way_for_its_predecessor(bench: Bench) -> None:
    await bench.start()
    await bench.run(seconds=5)
    assert await bench.states() == {2: "current", 1: "draining"}
    bench.source.keys["ref-1"].enabled = False
    await bench.run(seconds=5)
    assert (await bench.states())[2] == "current", "one refusal may be a slow replica of the provider"
    await bench.run(seconds=10)
    assert await bench.states() == {2: "draining", 1: "current"}
    assert bench.alerts == ["rotation.rolled_back"]
    await bench.assert_serving()
    await bench.run(seconds=300, step_s=10)
    assert await bench.states() == {2: "revoked", 1: "current"}
    assert set(bench.source.keys) == {"old"}


async def test_versions_that_are_all_refused_stay_as_they_are(bench: Bench) -> None:
    await bench.start()
    await bench.run(seconds=5)
    for key in bench.source.keys.values():
        key.enabled = False
    await bench.run(seconds=20)
    assert await bench.states() == {2: "current", 1: "draining"}
    assert bench.alerts == []


async def test_a_version_is_watched_while_its_predecessor_could_take_over(bench: Bench) -> None:
    await bench.start()
    await bench.run(seconds=240, step_s=10)
    assert await bench.states() == {2: "current", 1: "revoked"}
    calls = len(bench.source.calls)
    await bench.run(seconds=60, step_s=10)
    assert bench.source.calls[calls:] == []
    assert (await bench.versions())[0].step_at is None


async def test_a_version_that_is_refused_after_the_drain_makes_way_for_one_that_was_disabled(bench: Bench) -> None:
    await bench.start()
    await bench.run(seconds=40)
    assert await bench.states() == {2: "current", 1: "disabled"}
    bench.source.keys["ref-1"].enabled = False
    await bench.run(seconds=20)
    assert await bench.states() == {2: "draining", 1: "current"}
    assert bench.alerts == ["rotation.rolled_back"]
    await bench.assert_serving()


async def test_a_disabled_version_that_the_provider_refuses_too_stays_disabled(bench: Bench) -> None:
    await bench.start()
    await bench.run(seconds=40)
    bench.source.keys["ref-1"].enabled = False
    bench.source.works_from = bench.now + timedelta(days=1)
    await bench.run(seconds=20)
    assert await bench.states() == {2: "current", 1: "disabled"}
    assert not bench.accepted("old")


async def test_a_drain_ends_with_its_last_request(bench: Bench) -> None:
    async with bench.database.platform() as connection:
        await connection.execute("insert into serving_process (id) values (gen_random_uuid())")
    await bench.start()
    await bench.run(seconds=10)
    assert await bench.states() == {2: "current", 1: "draining"}, "the process has not said that it is done"

    async def tell(in_flight: int) -> None:
        async with bench.database.platform() as connection:
            await connection.execute(
                "insert into drain_report select p.id, v.id, v.tenant_id, v.state_changed_at, $1 "
                "from serving_process p, key_version v where v.state = 'draining' "
                "on conflict (process_id, version_id) do update set in_flight = excluded.in_flight",
                in_flight,
            )

    await tell(1)
    await bench.run(seconds=5)
    assert await bench.states() == {2: "current", 1: "draining"}
    await tell(0)
    await bench.run(seconds=5)
    assert await bench.states() == {2: "current", 1: "disabled"}
    assert not bench.accepted("old")


async def test_a_rotation_that_is_to_begin_later(bench: Bench) -> None:
    due = START + timedelta(days=3)
    async with bench.sessions.tenant(bench.planted.tenant_id) as session:
        key = await keys.get(session, bench.planted.tenant_id, bench.planted.key_id, for_change=True)
        versions = await keys.versions(session, bench.planted.tenant_id, bench.planted.key_id)
        await keys.add_version(session, intent(key, versions, at=bench.now, due=due))
    await bench.run(seconds=3 * 86400 - 60, step_s=43200)
    assert bench.source.calls == []
    await bench.run(seconds=90, step_s=5)
    assert (await bench.states())[2] == "current"
    await bench.assert_serving()


async def test_a_rotation_that_is_to_begin_later_is_called_off(bench: Bench) -> None:
    async with bench.sessions.tenant(bench.planted.tenant_id) as session:
        key = await keys.get(session, bench.planted.tenant_id, bench.planted.key_id, for_change=True)
        versions = await keys.versions(session, bench.planted.tenant_id, bench.planted.key_id)
        await keys.add_version(session, intent(key, versions, at=bench.now, due=START + timedelta(days=3)))
    await command(bench, revoke, 2, force=False)
    await bench.run(seconds=4 * 86400, step_s=43200)
    assert await bench.states() == {2: "revoked", 1: "current"}
    assert bench.source.made == 0
    await bench.start()


async def test_rotations_in_a_row_leave_no_gap(bench: Bench) -> None:
    seen: set[str] = set()
    for _ in range(8):
        await bench.start()
        for _ in range(4):
            await bench.run()
            await bench.assert_serving()
            bench.now += timedelta(seconds=1)
        secret = await bench.served()
        assert secret is not None
        seen.add(secret.reveal())
    assert len(seen) == 8
    await bench.run(seconds=200, step_s=20)
    assert len(bench.source.keys) == 1


async def test_what_a_source_made_is_ended_there_when_the_key_has_another(bench: Bench) -> None:
    """Both count their references from one: asked at the new source, the serving key would be taken away."""
    first, second = bench.source, Faulty(clock=lambda: bench.now)
    by_name = {"admin": first, "other": second}

    def driver_of(source: KeySource, credential: Secret | None) -> Faulty:
        return by_name[source.name]

    class Either(InMemorySource):
        async def probe(self, provider: str, base_url: str | None, secret: Secret, **more: Any) -> ProbeResult:
            found = [await each.probe(provider, base_url, secret) for each in (first, second)]
            return "works" if "works" in found else "refused"

    bench.engine = RotationEngine(
        bench.sessions, bench.data_keys, driver_of, Either(), now=lambda: bench.now, rng=random.Random(7)
    )
    await bench.start()
    await bench.run(seconds=3)
    assert set(first.keys) == {"old", "ref-1"}
    async with bench.sessions.tenant(bench.planted.tenant_id) as session:
        other = KeySource(tenant_id=bench.planted.tenant_id, name="other", driver="memory")
        session.add(other)
        await session.flush()
        key = await keys.get(session, bench.planted.tenant_id, bench.planted.key_id, for_change=True)
        key.source_id = other.id
    await bench.start()
    await bench.run(seconds=3)
    refs = {version.number: version.provider_ref for version in await bench.versions()}
    assert refs == {3: "ref-1", 2: "ref-1", 1: "old"}
    await bench.run(seconds=200, step_s=10)
    assert await bench.states() == {3: "current", 2: "revoked", 1: "revoked"}
    assert (set(second.keys), second.keys["ref-1"].enabled) == ({"ref-1"}, True)
    assert first.keys == {}


def test_tags_name_the_version() -> None:
    version = KeyVersion(tenant_id=UUID(int=1), key_id=UUID(int=2), number=1, state=VersionState.PENDING.value)
    assert str(version.id) in tag_of(version.id)
    assert load_settings({}) == RotationSettings()
