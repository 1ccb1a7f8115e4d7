"""The directory against a loader that changes, breaks and comes back."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from auth.errors import Unavailable
from gateway.balancing.decision import Ask, Picked
from gateway.balancing.outcome import OutcomeKind
from gateway.proxy.directory import Directory, InMemoryLoader
from gateway.proxy.faults import NotLoaded
from gateway.proxy.runtime import Workshop
from gateway.upstream.guard import EgressPolicy
from tenants.snapshot import DrainingVersion
from tests.proxy.harness import OTHER_TENANT, TENANT, key, pool, tenant

URL = "http://127.0.0.1:9"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def loader() -> InMemoryLoader:
    return InMemoryLoader(tenant(pool("main", key("a", URL))))


@pytest.fixture
async def directory(loader: InMemoryLoader, clock: Clock) -> AsyncIterator[Directory]:
    made = Directory(loader, Workshop(EgressPolicy(allow_private=True), clock, random.Random(0)), poll_s=3600)
    yield made
    await made.close()


async def until(condition: object) -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_start_loads_everything(directory: Directory) -> None:
    await directory.start()
    assert directory.is_ready
    found = directory.get(TENANT)
    assert found is not None
    assert list(found.pools) == ["main"]


async def test_a_change_keeps_what_the_balancer_knows(directory: Directory, loader: InMemoryLoader) -> None:
    await directory.start()
    before = directory.get(TENANT)
    assert before is not None
    balancer = before.pools["main"].balancer
    picked = balancer.acquire(Ask("m"), now=0)
    loader.snapshots[TENANT] = tenant(pool("main", key("a", URL), key("b", URL)), pool("new"), revision=2)
    directory.changed("provider_key", TENANT)
    await until(None)
    after = directory.get(TENANT)
    assert after is not None
    assert after.revision == 2
    assert list(after.pools) == ["main", "new"]
    assert after.pools["main"].balancer is balancer
    assert len(after.pools["main"].endpoints) == 2
    assert isinstance(picked, Picked)
    assert len({balancer.acquire(Ask("m"), now=0).lease.endpoint.id for _ in range(2)}) == 2  # type: ignore[union-attr]


async def test_a_new_version_of_a_key_is_a_new_endpoint(directory: Directory, loader: InMemoryLoader) -> None:
    await directory.start()
    loader.snapshots[TENANT] = tenant(pool("main", key("a", URL, version=2, secret="new")), revision=2)
    directory.changed("key_version", TENANT)
    await until(None)
    found = directory.get(TENANT)
    assert found is not None
    ((endpoint_id, target),) = found.pools["main"].targets.items()
    assert endpoint_id.endswith("/2")
    assert b"new" in target.faces["openai"].fixed


async def test_the_last_state_serves_while_the_database_is_away(directory: Directory, loader: InMemoryLoader) -> None:
    await directory.start()
    loader.broken = Unavailable("away")
    loader.snapshots[TENANT] = tenant(revision=2)
    directory.changed("pool", TENANT)
    directory.changed("*", None)
    await until(None)
    found = directory.get(TENANT)
    assert found is not None
    assert found.revision == 1
    assert directory.failures
    loader.broken = None
    await directory.refresh()
    assert directory.get(TENANT).revision == 2  # type: ignore[union-attr]


async def test_a_long_outage_is_told_once(
    loader: InMemoryLoader, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    directory = Directory(loader, Workshop(EgressPolicy(), clock, random.Random(0)), poll_s=3600, retry_s=0.0)
    loader.broken = Unavailable("away")
    with caplog.at_level(logging.INFO):
        await directory.start()
        while directory.failures < 5:
            await asyncio.sleep(0)
        loader.broken = None
        while not directory.is_ready:
            await asyncio.sleep(0)
        await until(None)
        await directory.close()
    told = [record.levelname for record in caplog.records if record.name == "gateway.proxy.directory"]
    assert told == ["WARNING", "INFO"]


async def test_a_lost_notice_is_found_by_the_poll(directory: Directory, loader: InMemoryLoader) -> None:
    await directory.start()
    loader.snapshots[TENANT] = tenant(revision=7)
    loader.snapshots[OTHER_TENANT] = tenant(tenant_id=OTHER_TENANT)
    directory.changed("*", None)
    await directory.refresh()
    assert directory.get(TENANT).revision == 7  # type: ignore[union-attr]
    assert directory.get(OTHER_TENANT) is not None
    del loader.snapshots[OTHER_TENANT]
    directory.changed("*", None)
    await directory.refresh()
    assert directory.get(OTHER_TENANT) is None


async def test_a_poll_that_finds_the_mark_unchanged_reads_no_revisions(clock: Clock) -> None:
    class Marked(InMemoryLoader):
        reads = 0

        async def mark(self) -> object:
            return dict(sorted(self.snapshots.items()))

        async def revisions(self) -> dict[UUID, int]:
            self.reads += 1
            return await super().revisions()

    loader = Marked(tenant(pool("main", key("a", URL))))
    directory = Directory(loader, Workshop(EgressPolicy(allow_private=True), clock, random.Random(0)), poll_s=3600)

    async def poll() -> int:
        before = loader.reads
        directory.changed("*", None)
        await directory.refresh()
        return loader.reads - before

    assert await poll() == 1
    assert await poll() == 0
    loader.snapshots[TENANT] = tenant(revision=7)
    loader.broken = Unavailable("away")
    with pytest.raises(Unavailable):
        await poll()
    loader.broken = None
    assert await poll() == 1, "what failed is tried again"
    assert directory.get(TENANT).revision == 7  # type: ignore[union-attr]
    assert await poll() == 0
    del loader.snapshots[TENANT]
    assert await poll() == 1
    assert directory.get(TENANT) is None


async def test_it_knows_who_has_draining_versions(directory: Directory, loader: InMemoryLoader) -> None:
    await directory.start()
    assert directory.draining() == []
    drains = replace(tenant(revision=2), draining=(DrainingVersion(UUID(int=5), UUID(int=6), 1, NOON),))
    for snapshot, expected in ((drains, [TENANT]), (tenant(revision=3), []), (replace(drains, revision=4), [TENANT])):
        loader.snapshots[TENANT] = snapshot
        directory.changed("key_version", TENANT)
        await directory.refresh()
        assert [each.tenant_id for each in directory.draining()] == expected
    del loader.snapshots[TENANT]
    directory.changed("tenant", TENANT)
    await directory.refresh()
    assert directory.draining() == []


async def test_it_knows_whose_keys_are_to_be_probed(directory: Directory, loader: InMemoryLoader) -> None:
    loader.snapshots[OTHER_TENANT] = tenant(
        replace(pool("main", key("c", URL)), settings={"health_check_s": 30}), tenant_id=OTHER_TENANT
    )
    await directory.start()
    assert [each.tenant_id for each in directory.to_probe()] == [OTHER_TENANT]
    found = directory.get(TENANT)
    assert found is not None
    balancer = found.pools["main"].balancer
    (state,) = balancer.endpoint_states()
    for _ in range(2):
        balancer.checked(state.endpoint.id, OutcomeKind.AUTH_REJECTED, now=0.0)
        assert {each.tenant_id for each in directory.to_probe()} == {TENANT, OTHER_TENANT}
        balancer.revive(state.endpoint.id)
        assert [each.tenant_id for each in directory.to_probe()] == [OTHER_TENANT]
    balancer.checked(state.endpoint.id, OutcomeKind.AUTH_REJECTED, now=0.0)
    loader.snapshots.clear()
    directory.changed("*", None)
    await directory.refresh()
    assert directory.to_probe() == []


async def test_an_unknown_tenant_is_loaded_once_for_all_who_ask(directory: Directory, loader: InMemoryLoader) -> None:
    await directory.start()
    loader.snapshots[OTHER_TENANT] = tenant(tenant_id=OTHER_TENANT)
    found = await asyncio.gather(*(directory.find(OTHER_TENANT) for _ in range(20)))
    assert loader.loads == 1
    assert len({id(each) for each in found}) == 1


async def test_a_tenant_that_does_not_exist_is_remembered_for_a_while(
    directory: Directory, loader: InMemoryLoader, clock: Clock
) -> None:
    await directory.start()
    nobody = UUID(int=5)
    for _ in range(3):
        assert await directory.find(nobody) is None
    assert loader.loads == 1
    clock.now += 6
    assert await directory.find(nobody) is None
    assert loader.loads == 2
    loader.snapshots[nobody] = tenant(tenant_id=nobody)
    directory.changed("tenant", nobody)
    assert await directory.find(nobody) is not None


async def test_a_load_that_fails_says_so(directory: Directory, loader: InMemoryLoader) -> None:
    await directory.start()
    loader.broken = Unavailable("away")
    with pytest.raises(NotLoaded):
        await directory.find(OTHER_TENANT)


async def test_changes_of_other_tables_load_nothing(directory: Directory, loader: InMemoryLoader) -> None:
    await directory.start()
    directory.changed("oauth_client", TENANT)
    await until(None)
    assert loader.loads == 0


async def test_one_tenant_that_cannot_be_loaded_does_not_hold_the_others_back(clock: Clock) -> None:
    class Choosy(InMemoryLoader):
        async def load(self, tenant_id: UUID) -> object:  # type: ignore[override]
            if tenant_id == OTHER_TENANT:
                raise Unavailable("its KEK is away")
            return await super().load(tenant_id)

    loader = Choosy(tenant(), tenant(tenant_id=OTHER_TENANT))
    directory = Directory(loader, Workshop(EgressPolicy(), clock, random.Random(0)))  # type: ignore[arg-type]
    await directory.refresh()
    loader.snapshots[TENANT] = tenant(revision=2)
    directory.changed("pool", OTHER_TENANT)
    directory.changed("pool", TENANT)
    await directory.refresh()
    assert directory.get(TENANT).revision == 2  # type: ignore[union-attr]


async def test_keys_that_cannot_be_used_are_left_out() -> None:
    snapshot = tenant(
        pool(
            "main",
            key("ok", "https://api.example.com"),
            key("private", "http://10.0.0.1"),
            key("meta", "http://169.254.169.254"),
            key("crlf", "https://api.example.com", secret="a\r\nx: y"),
            key("unknown", None, provider="nobody"),
            key("nourl", None),
        )
    )
    directory = Directory(InMemoryLoader(snapshot), Workshop(EgressPolicy(), Clock(), random.Random(0)))
    await directory.refresh()
    found = directory.get(TENANT)
    assert found is not None
    assert [target.name for target in found.pools["main"].targets.values()] == ["ok"]


async def test_looks_are_shared_by_those_who_came_before_them(
    directory: Directory, loader: InMemoryLoader, clock: Clock
) -> None:
    await directory.start()
    loader.snapshots[TENANT] = tenant(revision=2)
    await asyncio.gather(*(directory.look_again(TENANT) for _ in range(20)))
    assert directory.get(TENANT).revision == 2  # type: ignore[union-attr]
    assert loader.loads == 1
    clock.now += 0.25
    first = asyncio.create_task(directory.look_again(TENANT))
    await until(None)
    loader.snapshots[TENANT] = tenant(revision=3)
    clock.now += 0.25
    await directory.look_again(TENANT)
    assert directory.get(TENANT).revision == 3, "a look that began before is not enough"  # type: ignore[union-attr]
    await first


async def test_a_loader_that_hangs_holds_nobody_for_long(clock: Clock) -> None:
    class Hanging(InMemoryLoader):
        asked = 0

        async def revision(self, tenant_id: UUID) -> int | None:
            self.asked += 1
            await asyncio.Event().wait()
            return None

    loader = Hanging(tenant())
    directory = Directory(loader, Workshop(EgressPolicy(), clock, random.Random(0)), poll_s=3600)
    await directory.start()
    await asyncio.gather(directory.look_again(TENANT), directory.look_again(TENANT))
    await directory.look_again(TENANT)
    assert loader.asked == 1
    clock.now += 2
    await directory.look_again(TENANT)
    assert loader.asked == 2
    await directory.close()
