"""What one process was taught all others take over: names, outages, beliefs; a mistake of one passes."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
import pytest

from auth.errors import Unavailable
from gateway.balancing.charging import Dimension
from gateway.balancing.decision import Ask, Picked
from gateway.balancing.outcome import OutcomeKind
from gateway.leases.facts import PEAK_S, say
from gateway.leases.row import Row
from gateway.leases.store import InMemoryLeaseStore, Swap
from gateway.leases.tenant_word import TENANT_ROW
from tests.leases.pools import UNIX, Process
from tests.leases.world import TENANT

OTHER = UUID(int=2)


class World:
    def __init__(self, processes: int = 2) -> None:
        self.now = 1000.0
        self.store = InMemoryLeaseStore(lambda: self.now + UNIX)
        self.processes = [Process(self, str(number)) for number in range(processes)]

    async def second(self, seconds: float = 1.0) -> None:
        self.now += seconds
        for process in self.processes:
            await process.driver.exchange()

    async def two_in_use(self) -> tuple[Process, Process]:
        for process in self.processes:
            process.ask("d")
        await self.second(2.0)
        one, two = self.processes
        return one, two


async def test_a_name_that_one_was_told_makes_quotas_one_in_all() -> None:
    world = World()
    one, two = await world.two_in_use()
    one.answered("a", "acme")
    two.answered("b", "acme")
    await world.second()
    await world.second()
    for process in (one, two):
        assert process.counted_as == {"q-a": None, "q-b": "q-a", "q-c": None, "q-d": None}
    # The key was moved: whoever is answered so first tells the others.
    two.answered("b", "other")
    await world.second()
    await world.second()
    assert one.counted_as["q-b"] is None


async def test_an_address_that_failed_for_one_is_left_alone_by_all_until_one_gets_through() -> None:
    world = World()
    one, two = await world.two_in_use()
    one.fail()
    assert one.outages == {"https://one.test"}
    await world.second(0.3)
    assert two.outages == {"https://one.test"}
    one.pool.revive("a")
    await world.second()
    assert two.outages == set()


async def test_where_it_works_an_outage_of_others_is_not_believed_until_it_ends() -> None:
    world = World()
    one, two = await world.two_in_use()
    one.fail()
    two.ask("a")
    await world.second(0.3)
    assert one.outages
    assert not two.outages
    breaker = one.pool.commons()["https://one.test"].breaker
    breaker.until, breaker.streak = world.now + 30.0, breaker.streak + 1
    await world.second(0.4)
    assert not two.outages
    await world.second(1.0)
    assert two.outages, "nothing has worked here for a second"


async def test_an_outage_ends_by_itself_where_nobody_says_so() -> None:
    world = World()
    one, two = await world.two_in_use()
    one.fail()
    await world.second(0.3)
    assert two.outages
    world.processes.remove(one)
    await world.second(2.0)
    assert two.outages == set()
    two.ask("a")
    await world.second()
    assert two.pool.commons()["https://one.test"].tripped is False


async def test_one_that_hears_of_an_outage_late_has_one_request_at_a_time_try() -> None:
    world = World()
    one, two = await world.two_in_use()
    one.fail()
    await one.driver.exchange()
    world.now += 3.0
    await two.driver.exchange()
    assert two.pool.view(world.now).outages == {"https://one.test": "half_open"}
    two.send("a")
    ask = Ask("m", dialect="openai", excluded=frozenset("acd"))
    assert not isinstance(two.pool.acquire(ask, now=world.now), Picked)


async def test_the_keys_of_a_quota_that_were_all_rejected_are_out_in_all() -> None:
    world = World()
    one, two = await world.two_in_use()
    for process in (one, two):
        for key in "abc":
            process.answered(key, "acme")
    await world.second()
    one.fail(OutcomeKind.AUTH_REJECTED)
    await world.second(0.3)
    assert "quota q-a" in two.outages


async def test_beliefs_about_a_limiter_go_to_all() -> None:
    world = World()
    one, two = await world.two_in_use()
    assert one.learner("d").hear("factor|rpm", 0.5, world.now, UNIX)
    one.learner("d").phases[Dimension.RPM] = 1234.5
    await world.second()
    await world.second()
    assert two.limit("d") == 3000.0
    assert two.learner("d").phases == {Dimension.RPM: 1234.5}
    assert two.learner("d").hear("factor|rpm", 0.8, world.now, UNIX)
    await world.second()
    await world.second()
    assert one.limit("d") == pytest.approx(4800.0)


async def test_the_highest_peak_that_any_has_seen_is_the_limit_while_it_is_said() -> None:
    world = World()
    one, two = await world.two_in_use()

    def see(process: Process, peak: float) -> None:
        for minute in range(4):
            as_of = world.now - 240.0 + 61.0 * minute
            process.learner("d").remained(Dimension.RPM, peak - 1.0, peak, as_of, 60.0, refused=False)
        process.ledger("d").refit(world.now)

    see(one, 900.0)
    see(two, 400.0)
    await world.second()
    await world.second()
    assert (one.limit("d"), two.limit("d")) == (900.0, 900.0)
    world.processes.remove(one)
    for _ in range(int(PEAK_S / 5.0) + 2):
        two.ask("d")
        await world.second(5.0)
    assert two.limit("d") == 400.0


async def test_what_was_learned_while_the_store_was_away_is_told_when_it_is_back() -> None:
    world = World()
    one, two = await world.two_in_use()
    world.store.broken = Unavailable("away")
    one.answered("a", "acme")
    one.answered("b", "acme")
    assert one.learner("d").hear("factor|rpm", 0.5, world.now, UNIX)
    await world.second()
    assert one.counted_as["q-b"] == "q-a"
    assert two.counted_as != one.counted_as
    world.store.broken = None
    await world.second()
    await world.second()
    assert two.counted_as == one.counted_as
    assert two.limit("d") == 3000.0


async def test_another_tenant_hears_nothing_of_it() -> None:
    world = World()
    stranger = Process(world, "stranger", OTHER)
    world.processes.append(stranger)
    stranger.ask("d")
    one = world.processes[0]
    one.answered("a", "acme")
    one.answered("b", "acme")
    one.fail()
    await world.second()
    await world.second()
    assert stranger.outages == set()
    assert stranger.counted_as["q-b"] is None


@pytest.mark.parametrize(
    "value", [None, 7, "x", [], [1], ["a", "b", "c"], [[], {}], {"until": 1}, ["openai", 3], float("1e308")]
)
async def test_a_word_of_another_version_is_kept_and_does_no_harm(value: Any) -> None:
    world = World()
    one, two = await world.two_in_use()
    names = ["named|q-a", "outage|https://one.test", "outage|quota q-a", "something else|x", "breaker|a"]
    names += ["told||rpm", "cool|", "peak||rpm", "lesson||factor|rpm", "lesson||phase|nonsense", "lesson||probe|next"]
    for key in [(TENANT, TENANT_ROW), (TENANT, "q-d")]:
        stored = world.store.rows.get(key)
        row = Row() if stored is None else msgspec.json.decode(stored.state, type=Row)
        row.facts = say(row.facts, dict.fromkeys(names, value), "a later version", world.now + UNIX)
        row.version += 1
        before = 0 if stored is None else stored.version
        assert await world.store.swap([Swap(key, before, row.version, msgspec.json.encode(row))])
    one.answered("a", "acme")
    await world.second()
    await world.second()
    assert two.driver.failures == one.driver.failures == 0
    stored = world.store.rows[TENANT, TENANT_ROW]
    assert "something else|x" in msgspec.json.decode(stored.state, type=Row).facts


async def test_a_tenant_that_has_nothing_to_say_has_no_row_of_its_own() -> None:
    world = World()
    await world.two_in_use()
    await world.second()
    assert (TENANT, TENANT_ROW) not in world.store.rows
