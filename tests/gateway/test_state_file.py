"""The sealed state's file: pods that share a volume, and have the same process id each, write it side by side."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.database import Postgres
from gateway.state_file import StateFile
from tenants.keyring import LocalKeyring
from tenants.sealed_state import open_state
from tests.conftest import TestDatabase

ISSUER = "https://llm.example.com"
PODS = 4


@pytest.fixture
async def postgres(test_database: TestDatabase) -> AsyncIterator[Postgres]:
    found = Postgres(test_database.url, max_size=PODS)
    yield found
    await found.close()


@pytest.fixture
def keyring() -> LocalKeyring:
    return LocalKeyring([bytes(range(32))])


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


async def test_pods_that_write_at_once_do_not_meet_in_one_file(
    tmp_path: Path, postgres: Postgres, keyring: LocalKeyring
) -> None:
    path = tmp_path / "state"
    later = tmp_path.stat().st_mtime + 1_800  # so that none finds the other's state newer than the change
    pods = [StateFile(path, keyring, ISSUER, max_age_s=60.0, unix_clock=lambda: later) for _ in range(PODS)]
    for _ in range(20):
        path.unlink(missing_ok=True)
        assert await asyncio.gather(*(pod.write(postgres) for pod in pods)) == [True] * PODS
        await open_state(path.read_bytes(), keyring, ISSUER)
    assert names(tmp_path) == ["state"]


async def test_what_a_killed_writer_left_is_taken_away_after_an_hour(
    tmp_path: Path, postgres: Postgres, keyring: LocalKeyring
) -> None:
    now = 1_900_000_000.0
    for name, age_s in ((".state.left", 3_700.0), (".state.now", 60.0), ("state.mine", 9_000.0)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (now - age_s, now - age_s))
    file = StateFile(tmp_path / "state", keyring, ISSUER, max_age_s=60.0, unix_clock=lambda: now)

    assert await file.write(postgres)

    assert names(tmp_path) == [".state.now", "state", "state.mine"]
