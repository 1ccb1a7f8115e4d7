"""A DPoP proof is good once: exactly within a process, and in all of them as soon as its use was told."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.dpop import KEPT_S, SKEW_S, WINDOW_S, Proof, ProofCache
from auth.proof_sharing import ProofSharing, purge_proofs
from gateway.database import DatabaseAway, Postgres
from tests.conftest import TestDatabase

NOW = 1_800_000_000.0


def proof(jti: str, jkt: str = "key", issued: float = NOW) -> Proof:
    return Proof(jkt, jti, issued + WINDOW_S + SKEW_S, None)


class Process:
    """One process: its cache and its sharing over the database that it listens to."""

    def __init__(self, database: Postgres) -> None:
        self.cache = ProofCache()
        self.sharing = ProofSharing(self.cache, database, clock=lambda: NOW)

    def use(self, name: str) -> bool:
        return self.cache.first_use(proof(name), now=NOW)


async def test_what_one_process_saw_the_others_refuse(database: Postgres) -> None:
    one, two = Process(database), Process(database)
    assert one.use("a")
    assert one.use("b")
    assert not one.use("a")
    await one.sharing.exchange()
    await two.sharing.exchange()
    assert not two.use("a")
    assert not two.use("b")
    assert two.use("c")
    await two.sharing.exchange()
    await one.sharing.exchange()
    assert not one.use("c")
    started_again = Process(database)
    await started_again.sharing.exchange()
    assert [started_again.use(name) for name in "abcd"] == [False, False, False, True]


async def test_a_database_whose_clock_was_set_back_hides_no_use(
    database: Postgres, test_database: TestDatabase
) -> None:
    one, two = Process(database), Process(database)
    assert one.use("before")
    await one.sharing.exchange()
    owner = await asyncpg.connect(test_database.owner_url)
    await owner.execute("update used_proofs set recorded_at = recorded_at + interval '1 hour'")
    await owner.close()
    await two.sharing.exchange()
    assert one.use("after")
    await one.sharing.exchange()
    await two.sharing.exchange()
    assert not two.use("after")


async def test_a_notice_brings_it_within_moments(database: Postgres) -> None:
    one, two = Process(database), Process(database)
    works = (
        one.sharing.run(),
        two.sharing.run(),
        database.listen(lambda change: two.sharing.changed(change.table)),
    )
    tasks = [asyncio.create_task(work) for work in works]
    try:
        async with asyncio.timeout(20):
            while len(two.cache) == 0:
                one.use("a")
                await asyncio.sleep(0.01)
        assert not two.use("a")
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


class Away:
    """A database that does not answer."""

    def tenant(self, tenant_id: UUID) -> AbstractAsyncContextManager[Any]:
        raise DatabaseAway("away")

    def platform(self) -> AbstractAsyncContextManager[Any]:
        raise DatabaseAway("away")


async def test_an_outage_delays_and_loses_nothing(database: Postgres) -> None:
    one, two = Process(database), Process(database)
    assert one.use("a")
    one.sharing._connections = Away()
    with pytest.raises(DatabaseAway):
        await one.sharing.exchange()
    assert not one.use("a")
    one.sharing._connections = database
    await one.sharing.exchange()
    await two.sharing.exchange()
    assert not two.use("a")


async def test_no_tenant_sees_the_uses_and_old_ones_go(database: Postgres) -> None:
    one = Process(database)
    one.use("a")
    await one.sharing.exchange()
    async with database.tenant(UUID(int=0)) as connection:
        assert await connection.fetchval("select count(*) from used_proofs") == 0
    async with database.platform() as connection:
        assert await connection.fetchval("select octet_length(digests) from used_proofs") == 16
        await connection.execute(
            "insert into used_proofs (process, digests, expires_at) values ($1, '', now())", UUID(int=1)
        )
    await purge_proofs(database)
    async with database.platform() as connection:
        assert await connection.fetchval("select count(*) from used_proofs") == 1


def test_a_full_cache_refuses_rather_than_forgets() -> None:
    cache = ProofCache(capacity=3)
    assert [cache.first_use(proof(str(n)), now=NOW) for n in range(4)] == [True, True, True, False]
    assert not cache.first_use(proof("0"), now=NOW)
    cache.learn([bytes(16)], now=NOW)
    assert len(cache) == 3
    assert cache.first_use(proof("4"), now=NOW + 2 * KEPT_S)


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 20)), max_size=80))
def test_no_proof_is_good_twice_while_it_is_young(steps: list[tuple[float, int]]) -> None:
    cache, now, used = ProofCache(), NOW, dict[int, float]()
    for wait_s, name in steps:
        now += wait_s
        # The latest moment at which the same proof would still pass its own check of `iat`.
        young = name in used and now <= used[name] + KEPT_S
        accepted = cache.first_use(proof(str(name)), now=now)
        assert not (young and accepted)
        if accepted:
            used[name] = now
    assert len(cache) <= 21
