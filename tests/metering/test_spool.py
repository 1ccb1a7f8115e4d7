"""The usage spool: nothing that was recorded is lost or stored twice, whatever dies, fills up or is away."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.metering.event import UsageEvent
from gateway.metering.recorder import UsageRecorder
from gateway.metering.spool import RETRY_S, Flush, UsageSpool
from gateway.metering.store import InMemoryUsageStore
from tests.metering.rows import usage_row

SMALL = 64 * 1024


class Disk:
    """Spools over one directory, as the processes of one host make them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now = 0.0

    def spool(self, max_bytes: int = 64 * SMALL, flush: Flush = os.fdatasync) -> UsageSpool:
        return UsageSpool(self.directory, max_bytes=max_bytes, clock=lambda: self.now, segment_bytes=SMALL, flush=flush)

    @contextmanager
    def full(self) -> Iterator[None]:
        """No segment can be made meanwhile: a file would be larger than this process may make one."""
        had = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL - 1, had[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, had)

    def files(self) -> list[Path]:
        return sorted(self.directory.glob("*.usage"))


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "spool")


def recorded(recorder: UsageRecorder, count: int) -> list[UsageEvent]:
    rows = [usage_row() for _ in range(count)]
    for row in rows:
        recorder.record(row)
    return rows


async def settle(recorder: UsageRecorder) -> None:
    """Do what the writing task does, until nothing is left or the store refuses."""
    while recorder.buffered and await recorder.flush():
        pass
    while await recorder.replay():
        pass


CHILD = """
import os, signal, sys, time
from pathlib import Path
from gateway.metering.recorder import UsageRecorder
from gateway.metering.spool import UsageSpool
from gateway.metering.store import InMemoryUsageStore
from tests.metering.rows import usage_row
spool = UsageSpool(Path(sys.argv[1]), max_bytes=1 << 22, clock=time.monotonic, segment_bytes=1 << 16)
recorder = UsageRecorder(InMemoryUsageStore(), spool=spool)
for number in range(int(sys.argv[2])):
    recorder.record(usage_row(request_id=str(number)))
print("recorded", flush=True)
if sys.argv[3] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


def child(disk: Disk, count: int, then: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(disk.directory), str(count), then],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"recorded\n"
    return process


async def test_what_a_killed_process_had_recorded_is_stored_by_the_next(disk: Disk) -> None:
    with child(disk, 1000, "kill") as process:
        assert process.wait(10) == -signal.SIGKILL
    assert len(disk.files()) > 1, "more than one segment"
    store, spool = InMemoryUsageStore(), disk.spool()
    spool.adopt()
    await settle(UsageRecorder(store, spool=spool))
    assert sorted(int(row.request_id) for row in store.rows.values()) == list(range(1000))
    assert disk.files() == []
    assert spool.recovered == 1000


async def test_segments_of_a_living_process_are_its_own(disk: Disk) -> None:
    with child(disk, 5, "wait") as process:
        spool = disk.spool()
        spool.adopt()
        assert spool.backlog() is None
        process.kill()
    spool.adopt()
    segment = spool.backlog()
    assert segment is not None
    assert segment.spilled == 5
    spool.close()


async def test_a_healthy_process_writes_over_the_same_file(disk: Disk) -> None:
    store, spool = InMemoryUsageStore(), disk.spool()
    recorder = UsageRecorder(store, spool=spool)
    for _ in range(30):
        recorded(recorder, 50)
        await settle(recorder)
    assert len(store.rows) == 1500
    assert len(disk.files()) == 1
    assert spool.bytes_held == SMALL
    await recorder.close()
    assert disk.files() == [], "nothing is left behind when all is stored"


async def test_what_the_memory_has_no_room_for_is_read_from_disk_again(disk: Disk) -> None:
    store, spool = InMemoryUsageStore(), disk.spool()
    recorder = UsageRecorder(store, max_rows=10, batch_size=4, spool=spool)
    store.broken = ConnectionError("away")
    rows = recorded(recorder, 500)
    await settle(recorder)
    assert (recorder.buffered, recorder.dropped, len(store.rows)) == (10, 0, 0)
    store.broken = None
    await settle(recorder)
    assert set(store.rows) == {row.id for row in rows}
    assert (recorder.dropped, recorder.buffered) == (0, 0)
    rows += recorded(recorder, 3)
    await settle(recorder)
    assert set(store.rows) == {row.id for row in rows}


@pytest.mark.parametrize("written_before", [0, 5, 400])
async def test_what_had_no_room_goes_to_the_disk_when_it_has(disk: Disk, written_before: int) -> None:
    store, spool = InMemoryUsageStore(), disk.spool()
    recorder = UsageRecorder(store, batch_size=max(written_before, 1), spool=spool)
    rows = recorded(recorder, 700)
    with disk.full():
        rows += recorded(recorder, 700)
    refused = spool.unspooled
    assert refused > 500
    rows += recorded(recorder, 10)
    assert spool.unspooled == refused + 10, "not asked again at once"
    if written_before:
        assert await recorder.flush()
    disk.now += RETRY_S
    await recorder.place()
    assert spool.unspooled == refused + 10, "each row is counted once"

    # The process dies here; its locks are let go of by its end, which a spool's close does as well.
    spool.close()
    successor = UsageRecorder(store, spool=(left := disk.spool()))
    left.adopt()
    await settle(successor)
    assert set(store.rows) == {row.id for row in rows}


async def test_a_row_is_looked_for_on_disk_where_it_was_put_later(disk: Disk) -> None:
    store, spool = InMemoryUsageStore(), disk.spool()
    recorder = UsageRecorder(store, max_rows=300, spool=spool)
    with disk.full():
        rows = recorded(recorder, 300)
    disk.now += RETRY_S
    await recorder.place()
    rows += recorded(recorder, 300)
    assert recorder.dropped == 0, "those that left the memory are on the disk"
    await settle(recorder)
    assert set(store.rows) == {row.id for row in rows}
    assert spool.bytes_held <= SMALL, "nothing is kept for rows that are stored"


async def test_a_shutdown_puts_on_disk_what_had_no_room_before(disk: Disk) -> None:
    store, spool = InMemoryUsageStore(), disk.spool()
    store.broken = ConnectionError("away")
    recorder = UsageRecorder(store, spool=spool)
    with disk.full():
        rows = recorded(recorder, 20)
    disk.now += RETRY_S
    await recorder.close()
    store.broken = None
    successor = UsageRecorder(store, spool=(left := disk.spool()))
    left.adopt()
    await settle(successor)
    assert set(store.rows) == {row.id for row in rows}


async def test_a_shutdown_while_the_store_is_away_leaves_the_rows_for_the_next(disk: Disk) -> None:
    store = InMemoryUsageStore()
    store.broken = ConnectionError("away")
    recorder = UsageRecorder(store, max_rows=10, spool=disk.spool())
    rows = recorded(recorder, 40)
    await recorder.close()
    store.broken = None
    spool = disk.spool()
    spool.adopt()
    await settle(UsageRecorder(store, spool=spool))
    assert set(store.rows) == {row.id for row in rows}


async def test_beyond_its_bound_rows_are_in_memory_alone_and_counted(disk: Disk) -> None:
    store, spool = InMemoryUsageStore(), disk.spool(max_bytes=2 * SMALL)
    recorder = UsageRecorder(store, max_rows=1000, spool=spool)
    rows = recorded(recorder, 600)
    assert 0 < spool.unspooled < 600
    assert spool.bytes_held <= 2 * SMALL
    await settle(recorder)
    assert set(store.rows) == {row.id for row in rows}, "memory had room for them"
    assert recorder.dropped == 0
    before = spool.unspooled
    disk.now += RETRY_S
    recorded(recorder, 5)
    assert spool.unspooled == before, "there is room again"


def test_a_small_spool_is_taken_and_given_back_in_parts(disk: Disk) -> None:
    spool = UsageSpool(disk.directory, max_bytes=16 * SMALL, clock=lambda: disk.now)
    recorder = UsageRecorder(InMemoryUsageStore(), spool=spool)
    recorded(recorder, 1)
    assert spool.bytes_held == SMALL
    recorded(recorder, SMALL // 100)
    assert spool.bytes_held > SMALL
    assert spool.unspooled == 0


FULL = """
import resource, sys, time
from pathlib import Path
from gateway.metering.recorder import UsageRecorder
from gateway.metering.spool import UsageSpool
from gateway.metering.store import InMemoryUsageStore
from tests.metering.rows import usage_row
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
spool = UsageSpool(Path(sys.argv[1]), max_bytes=1 << 22, clock=time.monotonic)
recorder = UsageRecorder(InMemoryUsageStore(), spool=spool)
for _ in range(100):
    recorder.record(usage_row())
print(recorder.buffered, spool.unspooled, recorder.dropped, spool.bytes_held)
"""


def test_a_disk_that_takes_nothing_stops_no_request(disk: Disk) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(disk.directory)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split() == ["100", "100", "0", "0"]
    assert "the disk takes no segment" in done.stderr
    assert done.stderr.count("\n") == 1, "said once, not a hundred times"
    assert disk.files() == []


NO_DESCRIPTORS = """
import os, resource, sys, time
from pathlib import Path
from gateway.metering.spool import UsageSpool
spool = UsageSpool(Path(sys.argv[1]), max_bytes=1 << 20, clock=time.monotonic)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
free = os.dup(0)
os.close(free)
resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
spool.adopt()
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
spool.adopt()
print(spool.backlog().spilled)
"""


def test_a_spool_that_cannot_be_listed_is_looked_at_again_later(disk: Disk) -> None:
    recorder = UsageRecorder(InMemoryUsageStore(), spool=(left := disk.spool()))
    recorded(recorder, 3)
    left.close()
    done = subprocess.run(
        [sys.executable, "-c", NO_DESCRIPTORS, str(disk.directory)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split() == ["3"], done.stderr
    assert done.stderr == "the usage spool cannot be listed\n"


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
async def test_any_course_of_events_stores_each_row_once(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = random.Random(seed)
    disk = Disk(tmp_path_factory.mktemp("course"))
    store = InMemoryUsageStore()
    rows: list[UsageEvent] = []

    def started() -> UsageRecorder:
        spool = disk.spool()
        spool.adopt()
        return UsageRecorder(store, max_rows=rng.choice((3, 20, 1000)), batch_size=rng.choice((1, 7, 50)), spool=spool)

    recorder = started()
    moves: list[Callable[[], object]] = [
        lambda: rows.extend(recorded(recorder, rng.randrange(1, 200))),
        lambda: setattr(store, "broken", None),
        lambda: setattr(store, "broken", ConnectionError("away")),
    ]
    for _ in range(rng.randrange(3, 12)):
        rng.choice(moves)()
        if rng.random() < 0.5:
            await settle(recorder)
        if rng.random() < 0.2:
            await recorder.close()
            recorder = started()
    store.broken = None
    await settle(recorder)
    assert set(store.rows) == {row.id for row in rows}
    assert recorder.dropped == 0
    await recorder.close()
    assert disk.files() == []


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_damaged_files_give_what_is_whole_and_never_fail(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    disk = Disk(tmp_path_factory.mktemp("damaged"))
    spool = disk.spool()
    rows = [usage_row() for _ in range(20)]
    for row in rows:
        spool.append(row)
    assert spool.close() == 20
    (file,) = disk.files()
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, 8000))
    content[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    cut = data.draw(st.sampled_from([len(content), 5000, 9, 3, 0]))
    file.write_bytes(bytes(content[:cut]))
    again = disk.spool()
    again.adopt()
    segment = again.backlog()
    found = list(segment.rows()) if segment is not None else []
    assert [row.id for row in found] == [row.id for row in rows[: len(found)]]
    again.close()


async def test_requests_go_on_while_the_disk_takes_its_time(disk: Disk) -> None:
    begun, go = threading.Event(), threading.Event()
    flushed: list[int] = []

    def slowly(file: int) -> None:
        begun.set()
        assert go.wait(10)
        flushed.append(os.fstat(file).st_size)  # it is the same file still

    store, spool = InMemoryUsageStore(), disk.spool(flush=slowly)
    recorder = UsageRecorder(store, spool=spool)
    recorded(recorder, 200)
    syncing = asyncio.create_task(asyncio.to_thread(spool.sync))
    assert await asyncio.to_thread(begun.wait, 10)
    recorded(recorder, 200)
    await settle(recorder)
    assert len(store.rows) == 400
    assert len(disk.files()) == 1, "what is stored is gone, also what was being flushed"
    with socket.socket(), socket.socket():  # would take the number of a file that was closed too early
        go.set()
        await syncing
    assert set(flushed) == {SMALL}
    assert spool.close() == 0
    assert disk.files() == []
    assert not any(str(disk.directory) in str(each.readlink()) for each in open_files()), "every file was closed"


def open_files() -> list[Path]:
    return [each for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]


def test_what_the_disk_refuses_is_flushed_again(disk: Disk) -> None:
    tried: list[int] = []

    def fails_once(file: int) -> None:
        tried.append(file)
        if len(tried) == 1:
            raise OSError("the disk is away")

    spool = disk.spool(flush=fails_once)
    assert spool.append(usage_row()) is not None
    with pytest.raises(OSError, match="away"):
        spool.sync()
    spool.sync()
    spool.sync()
    assert len(tried) == 2
    assert spool.close() == 1


def test_only_the_owner_may_read_it(disk: Disk) -> None:
    spool = disk.spool()
    spool.append(usage_row())
    (file,) = disk.files()
    assert file.stat().st_mode & 0o777 == 0o600
    assert disk.directory.stat().st_mode & 0o777 == 0o700
    spool.close()
