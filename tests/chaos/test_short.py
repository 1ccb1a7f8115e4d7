"""The short form of `make chaos`: every fault once, in a fixed order."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.course import possible
from tests.chaos.faults import FAULTS
from tests.chaos.run import unleash

ONE_WORKER = possible(1)
TWO_WORKERS = [name for name, fault in FAULTS.items() if fault.place == "a process" or name == "Postgres down"]
SAVED = 200


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("seed", "workers", "faults"), [(7, 1, ONE_WORKER), (11, 2, TWO_WORKERS)])
async def test_each_fault_once(tmp_path: Path, seed: int, workers: int, faults: list[str]) -> None:
    outcome = await unleash(tmp_path, seed, faults=faults, pace_s=1.0, workers=workers)
    assert outcome.violations == []
    assert outcome.faults == set(faults)
    assert outcome.saved > SAVED, "calls were under way while faults were on"


def test_no_fault_is_left_out() -> None:
    assert {*ONE_WORKER, *TWO_WORKERS} == set(FAULTS)
