"""What the management API lets pools be set to is what the data path reads, member by member."""

from __future__ import annotations

import msgspec
import pytest

from gateway.balancing.fallback import Cause, Rung
from gateway.balancing.hedging import HedgePolicy
from gateway.proxy import pool_settings as read
from tenants import pool_schemas as written
from tests.proxy.harness import pool

EVERYTHING = written.PoolSettings(
    failover=False,
    retry=written.RetrySettings(max_attempts=7, budget_ratio=0.5, max_pause_s=9.0),
    deadlines=written.Deadlines(connect_s=1.0, first_byte_s=2.0, idle_s=3.0, total_s=4.0),
    model_aliases={"fast": "gpt-4o-mini"},
    max_waiting=5,
    strategy_options=written.StrategyOptions(
        weight_by="price", threshold=0.2, overflow_daily=True, home_region="eu-west-1", cache_affinity=True
    ),
    fallbacks=[
        written.Fallback(pool="b", models={"x": "y"}, on=["content_policy"], after_s=2.0),
        written.Fallback(model="z"),
    ],
    hedging=written.Hedging(share=0.1, headroom=0.3, least_s=1.0),
    late_lane=written.LateLane(after_s=5.0, by_priority={"2": 60.0}),
    health_check_s=30.0,
    explain_share=0.25,
    right_size=True,
    premium_reserve=0.3,
)


def roundtrip(settings: written.PoolSettings) -> read.PoolSettings:
    stored = msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(settings)))
    return read.read_settings(pool("main", settings=stored), "acme")


def test_every_member_that_may_be_written_is_read() -> None:
    found = roundtrip(EVERYTHING)
    assert set(written.PoolSettings.__struct_fields__) <= set(read.PoolSettings.__struct_fields__)
    assert all(getattr(EVERYTHING, name) is not msgspec.UNSET for name in written.PoolSettings.__struct_fields__)
    assert (found.failover, found.max_waiting, found.right_size, found.explain_share) == (False, 5, True, 0.25)
    assert found.premium_reserve == 0.3
    assert (found.health_check_s, found.model_aliases) == (30.0, {"fast": "gpt-4o-mini"})
    assert found.retry == read.RetrySettings(7, 0.5, 9.0)
    assert found.deadlines == read.DeadlineSettings(1.0, 2.0, 3.0, 4.0)
    assert found.rungs == (
        Rung("b", None, frozenset({Cause.CONTENT_POLICY}), {"x": "y"}, 2.0),
        Rung(None, "z", frozenset({Cause.CAPACITY, Cause.OUTAGE})),
    )
    assert found.hedge_policy == HedgePolicy(0.1, 0.3, 1.0)
    assert [found.late_after_s(priority) for priority in (1, 2)] == [5.0, 60.0]
    assert found.strategy_options.overflow_daily
    assert found.strategy_options.home_region == "eu-west-1"


def test_nothing_written_is_every_default() -> None:
    assert roundtrip(written.PoolSettings()) == read.PoolSettings()


@pytest.mark.parametrize("settings", [{"hedging": 5}, {"fallbacks": [{"on": ["luck"]}]}, {"retry": None}])
def test_what_cannot_be_read_serves_on_with_defaults(settings: dict[str, object]) -> None:
    assert read.read_settings(pool("main", settings=settings), "acme") == read.PoolSettings()
