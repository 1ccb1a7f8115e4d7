"""Where the process runs is where callers are, unless the pool says another region."""

from __future__ import annotations

from uuid import UUID

import pytest

from gateway.balancing.strategies.geographic import Geographic
from gateway.proxy.pool_settings import read_settings, strategy_of
from tenants.snapshot import PoolSnapshot


@pytest.mark.parametrize(
    ("pool_says", "process_says", "expected"),
    [
        (None, None, None),
        (None, "eu-west-1", "eu-west-1"),
        ("us-east-1", "eu-west-1", "us-east-1"),
        ("us-east-1", None, "us-east-1"),
    ],
)
def test_home_region(pool_says: str | None, process_says: str | None, expected: str | None) -> None:
    options = {"home_region": pool_says} if pool_says else {}
    pool = PoolSnapshot(
        pool_id=UUID(int=1),
        name="main",
        strategy="geographic",
        is_default=True,
        settings={"strategy_options": options},
        keys=(),
        quotas=(),
    )

    strategy = strategy_of(pool, read_settings(pool, "acme"), "acme", process_says)

    assert isinstance(strategy, Geographic)
    assert strategy.home_region == expected
