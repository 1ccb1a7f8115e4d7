"""Deals with a server that an earlier, killed owner left behind in a data directory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from auth.errors import Unavailable
from gateway.embedded.binaries import CLEAN_ENVIRONMENT

_PATIENCE_S = 2.0
_POLL_S = 0.02
_PROGRAMS = ("postgres", "postmaster")


class OrphanStays(Unavailable):
    """A server of an earlier run still holds the data directory and does not stop."""

    code = "embedded_postgres_orphan"


def wait_for_orphan(pid_file: Path, deadline: float) -> None:
    """Return once no live server uses the directory of `pid_file`; the caller holds the owner's lock.

    An orphan gets two seconds to finish by itself (its guard has told it), then a fast shutdown. A zombie, or a
    process id that now belongs to another program, counts as dead: PostgreSQL would refuse to start over either.
    `deadline` is on the monotonic clock.
    """
    patience = time.monotonic() + _PATIENCE_S
    told = False
    while (process_id := _read_pid(pid_file)) is not None:
        if not _is_live_server(process_id):
            pid_file.unlink(missing_ok=True)
            return
        now = time.monotonic()
        if now > deadline:
            raise OrphanStays(
                f"PostgreSQL process {process_id} of an earlier run does not stop.",
                hint=f"Stop it (kill -INT {process_id}) and start again.",
            )
        if now > patience and not told:
            told = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGINT)
        time.sleep(_POLL_S)


def _read_pid(pid_file: Path) -> int | None:
    try:
        return int(pid_file.read_text().split("\n", 1)[0])
    except FileNotFoundError:
        return None
    except ValueError:
        pid_file.unlink(missing_ok=True)  # cut short by a crash: names nobody
        return None


def _is_live_server(process_id: int) -> bool:
    state, program = _describe(process_id)
    return bool(state) and not state.startswith("Z") and Path(program).name in _PROGRAMS


def _describe(process_id: int) -> tuple[str, str]:
    """Return its state and the program it runs; both empty when there is no such process."""
    proc = Path("/proc")
    if (proc / "self").exists():
        try:
            state = (proc / str(process_id) / "stat").read_text().rsplit(")", 1)[1].split()[0]
            program = (proc / str(process_id) / "cmdline").read_text().split("\0")[0]
        except OSError:
            return "", ""
        return state, program
    listed = subprocess.run(
        ["ps", "-o", "stat=,comm=", "-p", str(process_id)],
        capture_output=True,
        text=True,
        check=False,
        env=CLEAN_ENVIRONMENT,
    )
    state, _, program = listed.stdout.strip().partition(" ")
    return state, program.strip()
