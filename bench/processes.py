"""Starts what is measured, on a core of its own, and reads what it used from /proc."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

MEASURED_CORE = 0
"""What is measured runs here, alone; the provider and the load share the next core."""
OTHER_CORE = 1


def pinned(core: int | str, command: Sequence[str]) -> list[str]:
    """Give `command` so that it and its children run on `core`, where there are two and the system can do it.

    Several cores are a list as `taskset` takes it, such as `0-3`.
    """
    if (os.cpu_count() or 1) < 2 or shutil.which("taskset") is None:
        return list(command)
    return ["taskset", "-c", str(core), *command]


@contextmanager
def staying_on(core: int) -> Iterator[None]:
    """Keep what is started inside on `core`, where there are two and the system can do it."""
    if (os.cpu_count() or 1) < 2 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """Give a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Running:
    """A process and its children; `stop` ends them all."""

    def __init__(
        self, command: Sequence[str], *, core: int | str, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                pinned(core, command),
                stdout=sink,
                stderr=sink,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    def wait_for_port(self, port: int, timeout_s: float = 180.0) -> None:
        """Return when something listens on `port`; SystemExit with the log when the process has ended before."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        self.stop()
        raise SystemExit(f"did not start: {self.log.read_text(errors='replace')[-2000:]}")

    @property
    def pids(self) -> list[int]:
        """Give the process and all below it."""
        found = [self._process.pid]
        for pid in found:
            try:
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    found += [int(child) for child in (thread / "children").read_text().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def cpu_s(self) -> float:
        """Give the user and system time of all threads so far: the scheduler's own count, in nanoseconds."""
        return sum(_cpu_s(pid) for pid in self.pids)

    def memory_mb(self) -> float:
        """Give the resident memory in MiB; pages that several processes share are counted once (Pss)."""
        return sum(_memory_kb(pid) for pid in self.pids) / 1024

    def stop(self) -> None:
        """End it, by SIGTERM, then by SIGKILL."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


def _cpu_s(pid: int) -> float:
    total = 0.0
    for thread in _threads(pid):
        try:
            total += int((thread / "schedstat").read_text().split()[0]) / 1e9
        except (FileNotFoundError, ProcessLookupError, IndexError):
            continue
    return total


def _threads(pid: int) -> Iterable[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except FileNotFoundError:
        return ()


def _memory_kb(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass
    return 0
