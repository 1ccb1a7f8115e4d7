"""The short form of `make chaos`: every fault once or so, in a fixed order."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.run import unleash


async def test_twenty_seconds_of_it(tmp_path: Path) -> None:
    assert await unleash(tmp_path, seed=7, seconds=20.0, pace_s=1.0) == []
