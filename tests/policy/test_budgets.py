"""Budgets over several processes: what one spends the others know, restarts and outages forget nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from uuid_utils.compat import uuid7

from auth.details import Limit
from gateway.database import Postgres
from gateway.jobs import maintenance_jobs
from gateway.policy.allowance import InMemoryAllowances, Taken
from gateway.policy.budget_sharing import BudgetSharing
from gateway.policy.budget_store import BudgetStore, InMemoryBudgets, PostgresBudgets
from gateway.policy.budgets import BudgetBook, Spend, Total, period_end, period_ends_in, period_of
from gateway.policy.limits import NANOS, Exceeded, Need

NOON = datetime(2100, 12, 31, 12, 0, tzinfo=UTC).timestamp()
TENANT = UUID(int=0)  # the platform tenant, which every database has
CENT = NANOS // 100


class Process:
    """One gateway process as far as budgets go."""

    def __init__(self, store: BudgetStore, clock: Callable[[], float] = lambda: NOON) -> None:
        self.book = BudgetBook()
        self.keeper = InMemoryAllowances(book=self.book)
        self.sharing = BudgetSharing(self.book, store, clock=clock)

    def use(self, limit: Limit, cents: int, *, estimate: int | None = None, now: float = NOON) -> bool:
        """Ask for a request and let it end at once; tells whether it was admitted."""
        need = Need(cost_nanos=(cents if estimate is None else estimate) * CENT)
        found = self.keeper.take([limit], need, now=now, tenant_id=TENANT)
        if isinstance(found, Exceeded):
            return False
        self.keeper.settle(found, tokens=1, nanos=cents * CENT, sent=True, now=now)
        return True


def dollar(bucket: str = "jti:0", period: Any = "day") -> Limit:
    return Limit(bucket, budget_usd=1.0, budget_period=period)


Stores = Callable[[], BudgetStore]


@pytest.fixture(params=["memory", "postgres"])
def store(request: pytest.FixtureRequest) -> Stores:
    """Give every process a store of its own over what is shared."""
    if request.param == "memory":
        shared: dict[Any, Any] = {}
        return lambda: InMemoryBudgets(shared)
    database: Postgres = request.getfixturevalue("database")
    return lambda: PostgresBudgets(database)


async def test_a_budget_is_one_over_all_processes_and_restarts(store: Stores) -> None:
    one, two = Process(store()), Process(store())
    assert one.use(dollar(), 60)
    assert await one.sharing.exchange()
    assert await two.sharing.exchange()
    assert not two.use(dollar(), 50)
    assert two.use(dollar(), 30)
    await two.sharing.exchange()
    await one.sharing.exchange()
    assert not one.use(dollar(), 20)
    started_again = Process(store())
    await started_again.sharing.exchange()
    assert not started_again.use(dollar(), 20)
    assert started_again.use(dollar(), 10)
    assert not started_again.use(dollar(), 1)
    assert one.use(dollar("another:0"), 100)


async def test_reservations_of_others_count_until_they_are_corrected(store: Stores) -> None:
    one, two = Process(store()), Process(store())
    held = one.keeper.take([dollar()], Need(cost_nanos=90 * CENT), now=NOON, tenant_id=TENANT)
    assert isinstance(held, Taken)
    await one.sharing.exchange()
    await two.sharing.exchange()
    assert not two.use(dollar(), 20)
    one.keeper.settle(held, tokens=1, nanos=5 * CENT, sent=True, now=NOON)
    await one.sharing.exchange()
    await two.sharing.exchange()
    assert two.use(dollar(), 90)


@pytest.mark.parametrize("period", ["hour", "day", "month"])
async def test_the_next_period_begins_anew_for_all(store: Stores, period: Any) -> None:
    clock = [NOON]
    one, two = Process(store(), lambda: clock[0]), Process(store(), lambda: clock[0])
    assert one.use(dollar(period=period), 100)
    for each in (one, two):
        await each.sharing.exchange()
    assert not two.use(dollar(period=period), 1)
    ends_in = period_ends_in(period, NOON)
    assert ends_in is not None
    clock[0] += ends_in
    assert two.use(dollar(period=period), 70, now=clock[0])
    for each in (two, one):
        await each.sharing.exchange()
    assert not one.use(dollar(period=period), 40, now=clock[0])
    assert one.use(dollar(period=period), 30, now=clock[0])


async def test_a_process_behind_in_time_takes_nothing_from_the_new_period(store: Stores) -> None:
    late, ahead = store(), store()
    index = period_of("hour", NOON)
    await ahead.exchange([Spend(TENANT, "b:0", "hour", index + 1, 7, period_end("hour", index + 1))], everything=True)
    told = await late.exchange([Spend(TENANT, "b:0", "hour", index, 900, period_end("hour", index))], everything=True)
    assert told == [Total("b:0", "hour", index + 1, 7)]


async def test_an_outage_forgets_nothing() -> None:
    store = InMemoryBudgets()
    one, two = Process(store), Process(InMemoryBudgets(store.shared))
    assert one.use(dollar(), 40)
    store.broken = ConnectionError()
    assert not await one.sharing.exchange()
    assert one.use(dollar(), 40)
    assert not one.use(dollar(), 40), "it goes on by what it knows"
    assert not await one.sharing.exchange()
    store.broken = None
    assert await one.sharing.exchange()
    assert await one.sharing.exchange()
    assert await two.sharing.exchange()
    assert store.shared["jti:0", "day"][1] == 80 * CENT
    assert not two.use(dollar(), 30)


async def test_only_what_changed_is_read_again(database: Postgres) -> None:
    writer, reader = PostgresBudgets(database), PostgresBudgets(database)
    spend = [Spend(TENANT, f"{number}:0", "total", 0, 1, None) for number in range(3)]
    await writer.exchange(spend, everything=True)
    assert len(await reader.exchange([], everything=True)) == 3
    async with database.platform() as connection:
        await connection.execute("update token_budget set recorded_at = now() - interval '1 hour'")
    await writer.exchange(spend[:1], everything=False)
    assert await reader.exchange([], everything=False) == [Total("0:0", "total", 0, 2)]


async def test_a_deleted_tenants_spending_holds_nobody_up(database: Postgres) -> None:
    store = PostgresBudgets(database)
    gone = Spend(uuid7(), "gone:0", "total", 0, 1, None)
    told = await store.exchange([gone, Spend(TENANT, "here:0", "total", 0, 2, None)], everything=True)
    assert told == [Total("here:0", "total", 0, 2)]


async def test_what_nobody_needs_is_purged(database: Postgres) -> None:
    async with database.platform() as connection:
        await connection.executemany(
            "insert into token_budget (tenant_id, bucket, period, index, nanos, ends_at, recorded_at)"
            " values ($1, $2, $3, 0, 1, now() + $4::int * interval '1 day', now() - $5::int * interval '1 day')",
            [
                (TENANT, "over:0", "day", -2, 2),
                (TENANT, "runs:0", "day", 1, 0),
                (TENANT, "old-token:0", "total", None, 401),
                (TENANT, "token:0", "total", None, 300),
                (TENANT, "lpc_client:0", "total", None, 4000),
            ],
        )
    job = next(each for each in maintenance_jobs(database) if each.name == "budgets")
    await job.run()
    async with database.platform() as connection:
        kept = await connection.fetch("select bucket from token_budget order by bucket")
    assert [row["bucket"] for row in kept] == ["lpc_client:0", "runs:0", "token:0"]


def test_the_book_is_bounded() -> None:
    book = BudgetBook(max_budgets=10)
    for number in range(50):
        book.spend(f"{number}:0", "total", 0, 5, TENANT)
    assert len(book) == 10
    assert book.spent("49:0", "total", NOON) == 5
    assert len(book.hand_out()) == 10
    book.learn([Total("over:0", "hour", period_of("hour", NOON) - 1, 5)])
    book.forget_ended(NOON)
    assert len(book) == 9


@given(st.floats(0, 4e9), st.sampled_from(["hour", "day", "month"]))
def test_periods_follow_each_other_without_gap(now: float, period: Any) -> None:
    index = period_of(period, now)
    end = period_end(period, index)
    assert end is not None
    assert now < end
    assert period_of(period, end) == index + 1
    assert period_of(period, end - 0.001) == index


class Fleet(RuleBasedStateMachine):
    """Three processes spend, exchange, fail and restart at will; the shared total is what was spent, to the nano."""

    def __init__(self) -> None:
        super().__init__()
        self.shared: dict[Any, Any] = {}
        self.processes = [self.start() for _ in range(3)]
        self.spent = 0
        self.lost = 0

    def start(self) -> tuple[BudgetBook, list[Spend]]:
        book = BudgetBook()
        book.learn(Total("b", "total", 0, nanos) for _, nanos in self.shared.values())
        return book, []

    @rule(which=st.integers(0, 2), nanos=st.integers(-50, 100))
    def spend(self, which: int, nanos: int) -> None:
        book, _ = self.processes[which]
        nanos = max(nanos, -book.spent("b", "total", NOON))
        book.spend("b", "total", 0, nanos, TENANT)
        self.spent += nanos

    @rule(which=st.integers(0, 2), arrives=st.booleans())
    def exchange(self, which: int, arrives: bool) -> None:
        book, _ = self.processes[which]
        spends = book.hand_out()
        book.spend("b", "total", 0, 1, TENANT)  # while the exchange is under way
        self.spent += 1
        if not arrives:
            book.kept(spends)
            return
        for each in spends:
            index, nanos = self.shared.get(("b", "total"), (0, 0))
            self.shared["b", "total"] = index, nanos + each.nanos
        book.settled(spends)
        book.learn([Total("b", "total", 0, nanos) for _, nanos in self.shared.values()])

    @rule(which=st.integers(0, 2))
    def restart(self, which: int) -> None:
        book, _ = self.processes[which]
        for each in book.hand_out():  # a clean end says what is left
            index, nanos = self.shared.get(("b", "total"), (0, 0))
            self.shared["b", "total"] = index, nanos + each.nanos
        self.processes[which] = self.start()

    @invariant()
    def nothing_is_lost_or_counted_twice(self) -> None:
        shared = self.shared.get(("b", "total"), (0, 0))[1]
        unsaid = sum(sum(each.nanos for each in _peek(book)) for book, _ in self.processes)
        assert shared + unsaid == self.spent


def _peek(book: BudgetBook) -> list[Spend]:
    spends = book.hand_out()
    book.kept(spends)
    return spends


TestFleet = Fleet.TestCase
