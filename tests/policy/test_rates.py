"""Rates over several processes: all together admit the limit, and two more for each further process at the most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auth.details import Limit
from gateway.database import Postgres
from gateway.policy.allowance import InMemoryAllowances, Taken
from gateway.policy.limits import Exceeded, Need
from gateway.policy.rate_sharing import RateSharing
from gateway.policy.rate_store import InMemoryRates, PostgresRates, RateStore, purge_rates
from gateway.policy.rates import RateLog

NOON = 1_800_000_000.0


class Process:
    """One gateway process as far as rates go."""

    def __init__(self, store: RateStore, clock: Callable[[], float] = lambda: NOON) -> None:
        self.clock = clock
        self.rates = RateLog()
        self.keeper = InMemoryAllowances(rates=self.rates)
        self.sharing = RateSharing(
            self.rates, store, lambda uses: self.keeper.learn(uses, now=self.clock()), clock=clock
        )

    def use(self, limit: Limit, tokens: int = 0, *, used: int | None = None, sent: bool = True) -> bool:
        found = self.keeper.take([limit], Need(tokens, 0), now=self.clock())
        if isinstance(found, Exceeded):
            return False
        self.keeper.settle(found, tokens=tokens if used is None else used, nanos=0, sent=sent, now=self.clock())
        return True

    def burst(self, limit: Limit, tokens: int = 0) -> int:
        """Ask until it is refused; return how often it was not."""
        admitted = 0
        while self.use(limit, tokens):
            admitted += 1
        return admitted


Stores = Callable[[], RateStore]


@pytest.fixture(params=["memory", "postgres"])
def store(request: pytest.FixtureRequest) -> Stores:
    """Give every process a store of its own over what is shared."""
    if request.param == "memory":
        told: list[Any] = []
        return lambda: InMemoryRates(told)
    database: Postgres = request.getfixturevalue("database")
    return lambda: PostgresRates(database)


async def fleet(store: Stores, count: int, clock: Callable[[], float] = lambda: NOON) -> list[Process]:
    """Return processes that know of each other."""
    found = [Process(store(), clock) for _ in range(count)]
    for _ in range(2):
        for each in found:
            assert await each.sharing.exchange()
    return found


RPM = Limit("jti:0", rpm=60)


async def test_one_process_alone_has_it_all_at_once(store: Stores) -> None:
    (one,) = await fleet(store, 1)
    assert one.burst(RPM) == 60


async def test_a_burst_in_all_at_once_is_no_more_than_the_limit(store: Stores) -> None:
    processes, admitted = await fleet(store, 4), 0
    for _ in range(20):
        admitted += sum(each.burst(RPM) for each in processes)
        for each in processes:
            await each.sharing.exchange()
    assert 60 <= admitted <= 66


async def test_one_busy_process_gets_to_the_limit_within_seconds(store: Stores) -> None:
    one, *others = await fleet(store, 4)
    admitted = []
    for _ in range(60):
        admitted.append(one.burst(RPM))
        for each in (one, *others):
            await each.sharing.exchange()
    assert admitted[0] == 3
    assert sum(admitted) == 60
    assert sum(each.burst(RPM) for each in others) == 0


async def test_a_large_request_fits_where_nothing_was_admitted_yet(store: Stores) -> None:
    one, two = await fleet(store, 2)
    tpm = Limit("jti:0", tpm=1000)
    assert one.use(tpm, 900)
    assert not one.use(tpm, 100), "only as much as fits in the share"
    await one.sharing.exchange()
    await two.sharing.exchange()
    assert not two.use(tpm, 200)
    assert two.use(tpm, 100)


async def test_what_was_given_back_is_told_too(store: Stores) -> None:
    one, two = await fleet(store, 2)
    both = Limit("jti:0", rpm=1, tpm=100)
    assert one.use(both, 100, used=0, sent=False)
    held = one.keeper.take([both], Need(50, 50), now=NOON)
    assert isinstance(held, Taken)
    await one.sharing.exchange()
    await two.sharing.exchange()
    assert not two.use(both, 1)
    one.keeper.settle(held, tokens=0, nanos=0, sent=False, now=NOON)
    await one.sharing.exchange()
    await two.sharing.exchange()
    assert two.use(both, 100)


async def test_a_process_that_starts_knows_the_last_minute(store: Stores) -> None:
    (one,) = await fleet(store, 1)
    assert one.burst(RPM) == 60
    await one.sharing.exchange()
    started = Process(store())
    await started.sharing.exchange()
    assert started.burst(RPM) == 0


async def test_an_outage_forgets_nothing_that_still_counts() -> None:
    shared, now = InMemoryRates(), [NOON]
    one, two = await fleet(lambda: InMemoryRates(shared.told), 2, lambda: now[0])
    store = one.sharing._store
    assert isinstance(store, InMemoryRates)
    store.broken = ConnectionError()
    assert one.use(RPM)
    assert not await one.sharing.exchange()
    assert one.burst(RPM) == 59, "it counts alone"
    assert not await one.sharing.exchange()
    store.broken = None
    assert await one.sharing.exchange()
    await two.sharing.exchange()
    assert two.burst(RPM) == 0
    now[0] += 62
    assert two.burst(RPM) == 7


async def test_told_uses_are_purged(database: Postgres) -> None:
    store = PostgresRates(database)
    async with database.platform() as connection:
        await connection.execute(
            "insert into token_rate_use (process, uses, recorded_at) values ($1, '[]', now() - interval '2 minutes')",
            uuid4(),
        )
    await store.exchange(uuid4(), [], everything=True)
    await purge_rates(database)
    async with database.platform() as connection:
        assert await connection.fetchval("select count(*) from token_rate_use") == 1


@settings(max_examples=60, deadline=None)
@given(
    rpm=st.integers(1, 60),
    epochs=st.lists(
        st.tuples(st.permutations(range(3)), st.lists(st.integers(0, 2), max_size=40), st.sampled_from([0.25, 30.0])),
        max_size=25,
    ),
)
async def test_no_minute_holds_more_than_the_limit_and_two_for_each_further_process(
    rpm: int, epochs: list[tuple[list[int], list[int], float]]
) -> None:
    """In each epoch every process exchanges once, in any order and at any moment among the requests."""
    now = [NOON]
    told: list[Any] = []
    processes = await fleet(lambda: InMemoryRates(told), 3, lambda: now[0])
    limit, admitted = Limit("jti:0", rpm=rpm), list[float]()
    for order, requests, lasts_s in epochs:
        now[0] += lasts_s
        if lasts_s > 1:  # nobody asks for long: everybody exchanges meanwhile
            for each in (*processes, *processes):
                await each.sharing.exchange()
        pause = len(requests) // 3 + 1
        for place, which in enumerate(requests):
            if place % pause == 0 and place // pause < len(order):
                await processes[order[place // pause]].sharing.exchange()
            if processes[which].use(limit):
                admitted.append(now[0])
        for place in range(-(-len(requests) // pause), len(order)):
            await processes[order[place]].sharing.exchange()
    for at in admitted:
        assert sum(at <= each < at + 60 for each in admitted) <= rpm + 4
