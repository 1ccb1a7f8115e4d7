"""The short form of `make chaos`: every fault once, in a fixed order, over one worker and over two."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.course import possible
from tests.chaos.faults import FAULTS
from tests.chaos.run import unleash

ONE_WORKER = possible(1)
OTHERS_KILLED = {("SIGTERM", "serve"), ("kill -9", "control")}
TWO_WORKERS = [name for name, fault in FAULTS.items() if fault.place == "a process" or name == "Postgres down"]
SUPERVISOR = {(name, "gateway") for name in ("kill -9", "SIGTERM", "SIGHUP", "SIGSTOP and SIGCONT")}
SAVED = 100


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("seed", "workers", "faults", "struck"), [(1, 1, ONE_WORKER, OTHERS_KILLED), (34, 2, TWO_WORKERS, SUPERVISOR)]
)
async def test_each_fault_once(
    tmp_path: Path, seed: int, workers: int, faults: list[str], struck: set[tuple[str, str]]
) -> None:
    outcome = await unleash(tmp_path, seed, faults=faults, pace_s=1.0, workers=workers)
    assert outcome.violations == []
    assert {name for name, _ in outcome.struck} == set(faults)
    assert struck <= outcome.struck, "another seed is wanted"
    assert outcome.saved > SAVED, "calls were under way while faults were on"


def test_no_fault_is_left_out() -> None:
    assert {*ONE_WORKER, *TWO_WORKERS} == set(FAULTS)
