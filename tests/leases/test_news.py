"""Early exchanges and notices are bounded; notices tell ids alone, and arrive over a real Postgres."""

from __future__ import annotations

import asyncio
import json
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from auth.errors import Unavailable
from gateway.balancing.hints import Hint
from gateway.database import Postgres
from gateway.leases.news import AGAIN_S, HEAR_S, LOOK_S, MAX_HEARD, MAX_NOTICES, MAX_TOLD, News
from gateway.leases.notices import CHANNEL, encode, parse, tag
from gateway.leases.postgres_store import PostgresLeaseStore
from gateway.leases.row import Row
from gateway.leases.tenant_word import TENANT_ROW
from tests.conftest import TestDatabase
from tests.leases.world import QUOTA, TENANT, World

OTHER = UUID(int=2)
KEYS = [(TENANT, str(number)) for number in range(1_000)]


def test_news_are_looked_for_and_told_only_so_often() -> None:
    news = News()
    assert news.is_time_to_look(10.0)
    assert not news.is_time_to_look(10.0 + 0.9 * LOOK_S)
    news.tell(KEYS[0])
    assert news.take_told(10.0) == [KEYS[0]]
    assert not news.may_tell(KEYS[0], 10.0 + 0.9 * AGAIN_S)
    assert news.may_tell(KEYS[0], 10.0 + 1.1 * AGAIN_S)
    assert news.may_tell(KEYS[1], 10.0)


def test_of_much_that_is_to_be_told_and_heard_some_goes_at_a_time() -> None:
    news = News()
    for key in KEYS:
        news.tell(key)
        news.announced(key)
    assert news.take_told(1.0) == KEYS[:MAX_TOLD]
    assert news.take_told(2.0) == KEYS[MAX_TOLD : 2 * MAX_TOLD]
    assert news.take_heard(1.0) == KEYS[:MAX_HEARD]
    assert news.early_at(is_in_use=False) == 1.0 + HEAR_S
    assert news.take_heard(1.0 + 0.9 * HEAR_S) == []
    assert news.take_heard(1.0 + HEAR_S) == KEYS[MAX_HEARD : 2 * MAX_HEARD]
    news.exchanged_all(3.0)
    assert news.take_told(4.0) == news.take_heard(4.0) == []
    assert news.early_at(is_in_use=True) == 3.0 + LOOK_S


def test_who_hears_very_many_notices_sends_none_for_the_rest_of_the_second() -> None:
    news = News()
    for _ in range(MAX_NOTICES - 1):
        news.noticed(7.2)
    assert news.may_announce(7.9)
    news.noticed(7.9)
    assert not news.may_announce(7.95)
    assert news.may_announce(8.0)


def test_a_notice_tells_ids_alone_and_of_one_tenant() -> None:
    rows = [str(uuid4()), TENANT_ROW]
    payloads = encode([(TENANT, rows[0]), (OTHER, "theirs"), (TENANT, rows[1])], tag("host-1/4711/abc"))
    first, second = map(json.loads, payloads)
    assert first == {"tenant_id": str(TENANT), "rows": rows, "by": tag("host-1/4711/abc")}
    assert second == {"tenant_id": str(OTHER), "rows": ["theirs"], "by": first["by"]}
    assert "host-1" not in payloads[0]


def test_a_notice_is_never_longer_than_postgres_takes() -> None:
    ids = [str(uuid4()) for _ in range(1_000)]
    payloads = encode([(TENANT, each) for each in ids], tag("x"))
    assert max(map(len, payloads)) < 8_000
    assert len(payloads) <= 8
    assert [row for each in payloads if (notice := parse(each)) for row in notice.rows] == ids


@pytest.mark.parametrize("payload", ["", "{", "[]", "7", '{"rows": ["a"]}', '{"tenant_id": "x", "rows": [], "by": ""}'])
async def test_a_notice_that_is_not_understood_is_passed_over(payload: str) -> None:
    assert parse(payload) is None
    world = World()
    process = world.add(1.0)
    await world.run(2.0)
    process.driver.heard(payload)


async def test_notices_of_rows_that_are_not_in_use_here_cost_nothing() -> None:
    world = World()
    process = world.add(1.0)
    await world.run(2.0)
    due_at = process.driver.desk.early_at()
    for key in [(TENANT, "another"), (OTHER, "quota"), (OTHER, TENANT_ROW)]:
        (payload,) = encode([key], tag("somebody"))
        process.driver.heard(payload)
    assert process.driver.desk.early_at() == due_at


async def test_ones_own_notices_are_passed_over() -> None:
    world = World()
    for _ in range(2):
        world.add(5.0)
    await world.run(2.0)
    reads = world.store.reads
    one = world.processes[0]
    one.ledger.cooldown.hear(world.now + 20.0, world.now)
    one.ledger.cooldown.refused(Hint(retry_after_s=20.0), world.now, world.now)
    await one.driver.exchange()
    assert world.store.notices == 1
    assert world.store.reads == reads + 1
    assert one.driver.desk.news.take_heard(world.now) == []


async def test_a_notice_that_cannot_be_sent_harms_no_lease() -> None:
    world = World()
    one, two = world.add(5.0), world.add(5.0)
    await world.run(2.0)
    announce = world.store.announce

    async def full(notices: object) -> None:
        raise asyncpg.ProgramLimitExceededError("too many notifications in the NOTIFY queue")

    world.store.announce = full  # type: ignore[method-assign]
    one.ledger.cooldown.hear(world.now + 20.0, world.now)
    await world.run(1.4)
    assert one.driver.unannounced > 0
    assert (one.driver.failures, one.driver.is_away) == (0, False)
    assert two.ledger.cooldown.until > world.now + 10.0
    world.store.announce = announce  # type: ignore[method-assign]


async def test_while_the_store_is_away_nothing_is_told_or_read_early() -> None:
    world = World()
    one, two = world.add(5.0), world.add(5.0)
    await world.run(2.0)
    world.store.broken = Unavailable("away")
    one.ledger.cooldown.hear(world.now + 30.0, world.now)
    await world.run(3.0)
    assert two.ledger.cooldown.until < world.now
    world.store.broken = None
    await world.run(2.2)
    assert two.ledger.cooldown.until > world.now + 20.0


async def test_notices_arrive_over_postgres(test_database: TestDatabase, database: Postgres) -> None:
    heard: list[str] = []
    arrived = asyncio.Event()

    def take(payload: str) -> None:
        heard.append(payload)
        if len(heard) == 2:
            arrived.set()

    ready = asyncio.Event()
    listening = asyncio.create_task(database.listen(lambda _: ready.set(), also={CHANNEL: take}))
    await ready.wait()
    postgres = Postgres(test_database.url)
    store = PostgresLeaseStore(postgres)
    payloads = encode([(TENANT, "a"), (OTHER, TENANT_ROW)], tag("x"))
    await store.announce(payloads)
    async with asyncio.timeout(20.0):
        await arrived.wait()
    assert heard == payloads
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await store.close()
    await postgres.close()


async def test_who_reads_a_row_with_something_left_to_say_goes_on_holding_its_part() -> None:
    """What an exchange that failed would have told is still to be told when another process announces something."""
    world = World()
    one, _ = world.add(5.0), world.add(5.0)
    await world.run(3.0)
    world.store.broken = Unavailable("away")
    one.ledger.cooldown.hear(world.now + 20.0, world.now)
    await one.driver.exchange()
    world.store.broken = None
    (payload,) = encode([(TENANT, QUOTA)], tag("somebody"))
    one.driver.heard(payload)
    world.now += HEAR_S
    await one.driver.exchange(everything=False)
    row = msgspec.json.decode(world.store.rows[TENANT, QUOTA].state, type=Row)
    assert row.lessees["process 0"].holdings
    assert any(name.startswith("cool|") for name in row.facts)
