"""A network and mount namespace of its own for a process: its addresses, its /etc/hosts, the roots that it trusts.

So a process runs as it would on the internet: it resolves with the system's own resolver and connects to addresses that
it takes for public ones, while the other ends are sockets of the test. Needs root.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
_UNSHARE = ("unshare", "--net", "--mount", "--")
T = TypeVar("T")


@cache
def can_isolate() -> bool:
    """Tell whether this machine lets us make namespaces."""
    if not all(shutil.which(each) for each in ("unshare", "nsenter", "ip", "mount")):
        return False
    made = subprocess.run([*_UNSHARE, "ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    return made.returncode == 0


@dataclass(frozen=True)
class Isolated:
    """The namespaces, held open by the process `pid`."""

    pid: int
    hosts: Path

    @property
    def within(self) -> tuple[str, ...]:
        """A program with arguments that starts another in here."""
        return ("nsenter", "--target", str(self.pid), "--net", "--mount", "--")

    def name(self, names: Mapping[str, Sequence[str]]) -> None:
        """Let each name lead to its addresses, from now on and no others."""
        lines = [f"{address} {name}\n" for name, addresses in names.items() for address in addresses]
        # In place: the file that was mounted is this very inode.
        self.hosts.write_text("127.0.0.1 localhost\n" + "".join(lines))

    def listen(self, address: str, port: int) -> socket.socket:
        """Return a listening socket in here."""
        return self._inside(lambda: socket.create_server((address, port), backlog=128))

    def swallow(self, address: str, port: int) -> socket.socket:
        """Return a UDP socket in here that takes what it is sent and says nothing."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.bind((address, port))
            return made

        return self._inside(make)

    def connect(self, port: int, timeout_s: float = 30.0) -> socket.socket:
        """Return a connection to a port of this loopback."""
        return self._inside(lambda: socket.create_connection(("127.0.0.1", port), timeout=timeout_s))

    def _inside(self, make: Callable[[], T]) -> T:
        """Run `make` in a thread that has moved in here: a socket stays where it was made."""

        def move() -> T:
            handle = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(handle)
            return make()

        with ThreadPoolExecutor(1) as executor:
            return executor.submit(move).result()


@contextmanager
def isolated(directory: Path, addresses: Sequence[str], mounts: Mapping[Path, Path]) -> Iterator[Isolated]:
    """Make the namespaces, with `addresses` beside 127.0.0.1; `mounts` maps a file to what is seen in its place."""
    hosts = directory / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    steps = ["ip link set lo up", *(f"ip addr add {address}/32 dev lo" for address in addresses)]
    steps += [f"mount --bind '{new}' '{old}'" for old, new in {Path("/etc/hosts"): hosts, **mounts}.items()]
    script = " && ".join([*steps, "echo ready", "exec sleep infinity"])
    with subprocess.Popen([*_UNSHARE, "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as holder:
        assert holder.stdout is not None
        try:
            said = holder.stdout.readline()
            assert said == b"ready\n", said
            yield Isolated(holder.pid, hosts)
        finally:
            holder.kill()
