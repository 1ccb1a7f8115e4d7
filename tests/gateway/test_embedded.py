"""The embedded server: owner and joiners, every kind of sudden death, passwords, wrong programs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from auth.secret import Secret
from gateway.embedded.binaries import NoBinaries, find_binaries
from gateway.embedded.postgres import UNSAFE_BUT_FAST, EmbeddedFailed, EmbeddedPostgres

OWNER = """
import sys, time
from pathlib import Path
from gateway.embedded.postgres import EmbeddedPostgres, UNSAFE_BUT_FAST
server = EmbeddedPostgres(Path(sys.argv[1]), settings=UNSAFE_BUT_FAST)
server.start()
print(server.owner, server.process_id, flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="llm-proxy-embedded-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def make(directory: Path) -> EmbeddedPostgres:
    return EmbeddedPostgres(directory, settings=UNSAFE_BUT_FAST)


def spawn(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def told(process: subprocess.Popen[str]) -> tuple[bool, int | None]:
    assert process.stdout is not None
    owner, pid = process.stdout.readline().split()
    return owner == "True", None if pid == "None" else int(pid)


def end(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=30)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_dead(pid: int) -> None:
    limit = time.monotonic() + 20
    while alive(pid):
        assert time.monotonic() < limit, "the server outlived its owner"
        time.sleep(0.01)


def query(url: str, statement: str) -> object:
    async def run() -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(run())


def test_data_survives_a_restart_and_a_second_process_joins(directory: Path) -> None:
    with make(directory) as server:
        address = server.start()
        assert server.owner
        query(address.url(), "create table kept as select 1")
        joiner = make(directory)
        assert joiner.start() == address
        assert not joiner.owner
        joiner.stop()
        assert query(address.url(), "select count(*) from kept") == 1
    with make(directory) as server:
        assert query(server.start().url(), "select count(*) from kept") == 1


def test_passwords_are_asked_for_and_kept_private(directory: Path) -> None:
    with make(directory) as server:
        address = server.start()
        with pytest.raises(asyncpg.InvalidPasswordError):
            query(address.url(password=Secret("wrong")), "select 1")
        assert address.password.reveal() not in repr(address)
        for name in ("password", "connection.json", "postgres.log", "owner.lock"):
            assert (directory / name).stat().st_mode & 0o077 == 0, name
        assert (directory / "data").stat().st_mode & 0o077 == 0
        assert directory.stat().st_mode & 0o007 == 0


def test_simultaneous_starters_make_one_owner(directory: Path) -> None:
    processes = [spawn(directory) for _ in range(3)]
    answers = [told(process) for process in processes]
    assert sorted(owner for owner, _ in answers) == [False, False, True]
    for process, (owner, _) in sorted(zip(processes, answers, strict=True), key=lambda pair: pair[1][0]):
        del owner
        end(process)


def test_a_killed_owner_takes_its_server_along(directory: Path) -> None:
    process = spawn(directory)
    _, pid = told(process)
    assert pid is not None
    process.kill()
    end(process)
    wait_dead(pid)
    with make(directory) as server:
        server.start()
        assert server.owner


def test_everything_killed_at_once_starts_again(directory: Path) -> None:
    process = spawn(directory)
    _, pid = told(process)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    process.kill()
    end(process)
    with make(directory) as server:
        assert query(server.start().url(), "select 1") == 1


def test_a_killed_server_comes_back_where_it_was(directory: Path) -> None:
    with EmbeddedPostgres(directory) as server:  # with the safe settings: what was committed must be there
        address = server.start()
        query(address.url(), "create table kept as select 1")
        assert not server.revive()
        before = server.process_id
        assert before is not None
        os.kill(before, signal.SIGKILL)
        limit = time.monotonic() + 20
        while not server.revive():
            assert time.monotonic() < limit, "its death was not seen"
        assert server.process_id != before
        assert query(address.url(), "select count(*) from kept") == 1
        assert not server.revive()
    assert not server.revive()


def test_a_stale_pid_file_is_cleared(directory: Path) -> None:
    with make(directory) as server:
        server.start()
    for content in ("", "not a number\n", "999999999\n", f"{os.getpid()}\n"):
        (directory / "data" / "postmaster.pid").write_text(content)
        with make(directory) as server:
            assert query(server.start().url(), "select 1") == 1


def test_a_stale_pid_file_that_names_another_program_does_not_end_it(directory: Path) -> None:
    with make(directory) as server:
        server.start()
    other = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()", "postgres.py"], stdin=subprocess.PIPE
    )
    (directory / "data" / "postmaster.pid").write_text(f"{other.pid}\n")
    with make(directory) as server:
        server.start()
        assert other.poll() is None
    assert other.stdin is not None
    other.stdin.close()
    assert other.wait(20) == 0


def test_a_half_made_data_directory_is_never_used(directory: Path) -> None:
    (directory / "data.new").mkdir()
    (directory / "data.new" / "PG_VERSION").write_text("18\n")
    with make(directory) as server:
        assert query(server.start().url(), "select 1") == 1


def test_another_major_version_is_refused(directory: Path) -> None:
    with make(directory) as server:
        server.start()
    (directory / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedFailed, match="made by PostgreSQL 9"):
        make(directory).start()


def test_a_stale_address_is_not_believed(directory: Path) -> None:
    note = {"port": 1, "password": "x", "socket_directory": None}
    (directory / "connection.json").write_text(json.dumps(note))
    with make(directory) as server:
        assert server.start().port != 1


def test_wrong_programs_are_named(tmp_path: Path) -> None:
    with pytest.raises(NoBinaries, match="EMBEDDED_PG_BIN"):
        find_binaries(tmp_path)
