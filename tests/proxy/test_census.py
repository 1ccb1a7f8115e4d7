"""The sums over all pools are those of the pools."""

from __future__ import annotations

import random

from gateway.proxy.census import Census
from gateway.proxy.directory import Directory, InMemoryLoader
from gateway.proxy.runtime import Workshop
from gateway.upstream.guard import EgressPolicy
from tests.proxy.harness import OTHER_TENANT, TENANT, key, pool, tenant

URL = "http://127.0.0.1:9"


async def test_it_counts_every_pool_of_every_tenant_anew() -> None:
    loader = InMemoryLoader(
        tenant(pool("main", key("a", URL)), pool("spare", key("b", URL))),
        tenant(pool("main", key("c", URL)), tenant_id=OTHER_TENANT),
    )
    directory = Directory(
        loader, Workshop(EgressPolicy(allow_private=True), lambda: 0.0, random.Random(0)), poll_s=3600
    )
    await directory.refresh()
    census = Census(lambda: directory)
    assert census.sums.tenants == 0
    for number, runtime in enumerate(each for one in directory for each in one.pools.values()):
        runtime.queue.tally.served += 1
        runtime.queue.tally.waited_s += 0.5
        runtime.queue.tally.full += number
    for _ in range(2):
        await census.take()
        sums = census.sums
        assert (sums.tenants, sums.waiting, sums.oldest_s) == (2, 0, 0.0)
        assert (sums.queues.served, sums.queues.waited_s) == (3, 1.5)
        assert sums.turned_away == {"full": 3, "too_late": 0, "expired": 0, "displaced": 0, "left": 0}
    loader.snapshots = {TENANT: loader.snapshots[TENANT]}
    directory.changed("*", None)
    await directory.refresh()
    await census.take()
    assert census.sums.tenants == 1


async def test_what_was_counted_of_a_pool_stays_when_the_pool_goes() -> None:
    hedged = {"hedging": {"share": 0.05}, "right_size": True}
    loader = InMemoryLoader(
        tenant(pool("main", key("a", URL), settings=hedged)),
        tenant(pool("main", key("c", URL)), tenant_id=OTHER_TENANT),
    )
    directory = Directory(
        loader, Workshop(EgressPolicy(allow_private=True), lambda: 0.0, random.Random(0)), poll_s=3600
    )
    await directory.refresh()
    census = Census(lambda: directory)
    gone, stays = (next(iter(one.pools.values())) for one in sorted(directory, key=lambda one: one.tenant_id))
    await census.take()
    assert gone.hedging is not None
    assert gone.sizing is not None
    gone.queue.tally.served, gone.queue.tally.left, stays.queue.tally.served = 7, 2, 1
    gone.hedging.won, gone.hedging.est_input_tokens, gone.hedging.est_cost_nanos = 3, 40, 9
    gone.sizing.sized, gone.sizing.truncated = 5, 1
    before = (8, 2, 3, 40, 9, {"whole": 4, "truncated": 1})

    async def counted() -> tuple[object, ...]:
        await census.take()
        sums = census.sums
        return (
            sums.queues.served,
            sums.turned_away["left"],
            sums.hedges["won"],
            sums.hedge_tokens["input"],
            sums.hedge_cost_nanos,
            sums.sized,
        )

    assert await counted() == before
    loader.snapshots[TENANT] = tenant(pool("main", key("a", URL)), revision=2)
    directory.changed("*", None)
    await directory.refresh()
    runtime = directory.get(TENANT)
    assert runtime is not None
    assert runtime.pools["main"].hedging is None, "the settings were taken back"
    assert await counted() == before
    loader.snapshots = {OTHER_TENANT: loader.snapshots[OTHER_TENANT]}
    directory.changed("*", None)
    await directory.refresh()
    for _ in range(2):
        assert await counted() == before
