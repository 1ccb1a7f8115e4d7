"""A directory on a disk that a test fills and makes room on again, while processes use it.

Under root it is a small file system in a mount namespace, which really has no block left. Elsewhere the kernel limits
how large the processes' files may become: room for a new segment is refused just so, with another error number.
"""

from __future__ import annotations

import errno
import resource
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Protocol

_MIB = 1 << 20
_SIZE_MIB = 12
"""Room for one segment of the spool, and not for two."""
_UNSHARE = ("unshare", "--mount", "--")


class Disk(Protocol):
    """`directory` is where processes started `within` find it; `seen` is the same place for the test."""

    directory: Path
    seen: Path
    within: Sequence[str]

    def fill(self, pid: int | None = None) -> None:
        """Leave no room, for the process that runs and those that start."""

    def make_room(self, pid: int) -> None:
        """Give the room back."""


@cache
def can_mount() -> bool:
    """Tell whether this machine lets us make a mount namespace with a file system of its own."""
    tried = subprocess.run(
        [*_UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/tmp"], capture_output=True, check=False, cwd="/"
    )
    return tried.returncode == 0


class SmallFileSystem:
    """A tmpfs, filled by one file."""

    def __init__(self, directory: Path, holder: int) -> None:
        self.directory = directory
        self.seen = Path(f"/proc/{holder}/root") / directory.relative_to("/")
        self.within: Sequence[str] = ("nsenter", "--target", str(holder), "--mount", "--")
        self._filler = self.seen / "filler"

    def fill(self, pid: int | None = None) -> None:
        """See `Disk`: write until the kernel says that there is no space left."""
        with self._filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def make_room(self, pid: int) -> None:
        """See `Disk`."""
        self._filler.unlink()


class FileLimit:
    """The soft limit of a file's size: below a segment's, above those of the logs."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = self.seen = directory
        self.within: Sequence[str] = ()

    def fill(self, pid: int | None = None) -> None:
        """See `Disk`."""
        self.within = ("prlimit", f"--fsize={_MIB}:", "--")
        if pid is not None:
            self._limit(pid, _MIB)

    def make_room(self, pid: int) -> None:
        """See `Disk`."""
        self.within = ()
        self._limit(pid, resource.RLIM_INFINITY)

    def _limit(self, pid: int, most: int) -> None:
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, hard))


@contextmanager
def small_file_system(directory: Path) -> Iterator[Disk]:
    """Mount one at `directory`; it is gone with its namespace."""
    directory.mkdir()
    script = f"mount -t tmpfs -o size={_SIZE_MIB}m,mode=700 tmpfs '{directory}' && echo ready && exec sleep infinity"
    with subprocess.Popen([*_UNSHARE, "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as holder:
        assert holder.stdout is not None
        try:
            said = holder.stdout.readline()
            assert said == b"ready\n", said
            yield SmallFileSystem(directory, holder.pid)
        finally:
            holder.kill()


@contextmanager
def file_limit(directory: Path) -> Iterator[Disk]:
    """Use `directory` under a limit; needs no rights."""
    yield FileLimit(directory)
