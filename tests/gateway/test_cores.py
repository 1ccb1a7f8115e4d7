"""`LLM_PROXY_WORKERS=auto` in a container with a CPU limit: as many workers as the limit pays for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.cores import limited_cores, usable_cores
from gateway.setting_values import workers

SEEN = len(os.sched_getaffinity(0))


def version_2(folder: Path, limit: str) -> Path:
    (folder / "cpu.max").write_text(f"{limit}\n")
    return folder


def version_1(folder: Path, quota: str, period: str) -> Path:
    (folder / "cpu").mkdir()
    (folder / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu" / "cpu.cfs_period_us").write_text(f"{period}\n")
    return folder


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", None), ("400000 100000", 4), ("150000 100000", 1), ("50000 100000", 1), ("nonsense", None)],
)
def test_the_limit_in_whole_cores(tmp_path: Path, limit: str, cores: int | None) -> None:
    assert limited_cores(version_2(tmp_path, limit)) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", None), ("300000", 3), ("20000", 1)])
def test_the_former_cgroups_tell_it_in_two_files(tmp_path: Path, quota: str, cores: int | None) -> None:
    assert limited_cores(version_1(tmp_path, quota, "100000")) == cores


def test_neither_more_than_the_limit_nor_than_there_are(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == SEEN, "no limit is told"
    assert usable_cores(version_2(tmp_path, "100000 100000")) == 1
    assert usable_cores(version_2(tmp_path, f"{100_000 * (SEEN + 7)} 100000")) == SEEN


def test_auto_is_what_may_be_used() -> None:
    assert workers("auto") == usable_cores()
