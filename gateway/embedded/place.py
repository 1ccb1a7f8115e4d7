"""Chooses the directory that the embedded server really uses, with modes under which its account can enter."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from gateway.embedded.binaries import Account, reachable_by

LOCATION: Final = "location"
"""The file in the asked-for directory that names the real one, when they differ."""

_ELSEWHERE: Final = Path("/var/lib/llm-proxy")


def settle(directory: Path, account: Account | None) -> Path:
    """Return the directory to use instead of `directory`, or itself; both exist afterwards.

    Under root, a checkout may lie where no other account can enter (root's home): the data then moves to a directory
    of its own, named in `location`, so that removing the asked-for directory still starts afresh. The modes of
    directories that are not ours are never widened.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if account is None:
        return directory
    location = directory / LOCATION
    if location.exists():
        return Path(location.read_text().strip())
    _let_in(directory, account)
    if reachable_by(account, directory):
        return directory
    _ELSEWHERE.mkdir(parents=True, exist_ok=True, mode=0o755)
    elsewhere = _ELSEWHERE / secrets.token_hex(8)
    elsewhere.mkdir(mode=0o700)
    write_private(elsewhere / "belongs-to", f"{directory}\n")
    _let_in(elsewhere, account)
    write_private(location, f"{elsewhere}\n")
    return elsewhere


def write_private(path: Path, text: str) -> None:
    """Write a file that only we can read, all or nothing."""
    fresh = path.with_name(path.name + ".part")
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    fresh.rename(path)


def _let_in(directory: Path, account: Account) -> None:
    os.chown(directory, 0, account.gid)
    directory.chmod(0o710)
