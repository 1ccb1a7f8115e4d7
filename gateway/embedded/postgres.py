"""Runs a private PostgreSQL beside the gateway: one command, nothing to install, nothing left behind.

What it promises: one server a directory however many processes ask for it (the first owns it, the others join);
SCRAM passwords on every connection; no server outlives its owner, even one that was killed; a directory that was killed
in any state starts again; a half-made data directory is never used.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from auth.errors import Unavailable
from auth.secret import Secret
from gateway.embedded.binaries import CLEAN_ENVIRONMENT, Account, Binaries, copy_for, find_binaries
from gateway.embedded.orphan import wait_for_orphan
from gateway.embedded.place import settle, write_private

SUPERUSER = "llm_proxy_owner"
_POLL_S = 0.01
_LONGEST_SOCKET_PATH = 90
_ACCEPTS = ("ready", "standby")
"""What `postmaster.pid` says of a server that takes connections; the data may be those of a standby."""

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

UNSAFE_BUT_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "scram_iterations": "1"}
"""Settings for throw-away test servers: data does not survive a power cut."""


class EmbeddedFailed(Unavailable):
    """The embedded PostgreSQL could not be started; `debug` holds the end of its log."""

    code = "embedded_postgres_failed"


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens and the superuser's password."""

    port: int
    password: Secret
    socket_directory: str | None

    def url(self, database: str = "postgres", user: str = SUPERUSER, password: Secret | None = None) -> str:
        """Return a `postgresql://` URL; it carries the password and is never logged."""
        word = (password or self.password).reveal()
        return f"postgresql://{quote(user)}:{quote(word, safe='')}@127.0.0.1:{self.port}/{quote(database)}"


class EmbeddedPostgres:
    """A supervisor of one server in `directory`; a context manager, blocking, to be used off the event loop.

    `binaries` overrides where the programs are looked for; `settings` are extra server settings (`-c name=value`).
    """

    def __init__(
        self,
        directory: Path,
        *,
        binaries: Path | None = None,
        settings: Mapping[str, str] | None = None,
        start_timeout_s: float = 30.0,
        stop_timeout_s: float = 20.0,
    ) -> None:
        self._directory = directory.absolute()
        self._chosen = binaries
        self._settings = {**_SETTINGS, **(settings or {})}
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._account = _unprivileged_account() if os.geteuid() == 0 else None
        self._root = self._directory
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._running: tuple[Binaries, Address] | None = None

    @property
    def owner(self) -> bool:
        """Tell whether this object started the server and will stop it."""
        return self._process is not None

    @property
    def process_id(self) -> int | None:
        """The server's process id, when this object owns it."""
        return self._process.pid if self._process is not None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self) -> Address:
        """Start the server, or join the one that another process runs in this directory.

        Raises `EmbeddedFailed` or `NoBinaries`, both with the mend in the hint.
        """
        self._root = settle(self._directory, self._account)
        deadline = time.monotonic() + self._start_timeout_s
        while not self._try_lock():
            joined = self._join()
            if joined is not None:
                return joined
            if time.monotonic() > deadline:
                raise EmbeddedFailed(
                    "Another process holds the embedded database but does not answer.",
                    hint=f"Stop the process that holds {self._root / 'owner.lock'}, then start again.",
                )
            time.sleep(_POLL_S)
        try:
            return self._own(deadline)
        except BaseException:
            self.stop()
            raise

    def revive(self) -> bool:
        """Start our server again, where it was, if it died; tell whether that was needed.

        Raises `EmbeddedFailed`, after which it may be called again. Not to be called while `stop` is.
        """
        if self._running is None or self._process is None or self._process.poll() is None:
            return False
        binaries, address = self._running
        deadline = time.monotonic() + self._start_timeout_s
        self._release_guard()
        wait_for_orphan(self._data / "postmaster.pid", deadline)
        self._launch_in_time(binaries, address.password, deadline, port=address.port)
        return True

    def stop(self) -> None:
        """Stop the server if it is ours: fast shutdown, so that the next start needs no recovery. Idempotent."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(self._stop_timeout_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGQUIT)
                process.wait(self._stop_timeout_s)
        self._release_guard()
        if process is not None:
            self._note.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def log_file(self) -> Path:
        """Where the server writes its log."""
        return self._root / "postgres.log"

    @property
    def _note(self) -> Path:
        return self._root / "connection.json"

    @property
    def _data(self) -> Path:
        return self._root / "data"

    def _as_account(self) -> dict[str, Any]:
        return self._account.popen_arguments() if self._account is not None else {}

    def _give(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.uid, self._account.gid)

    def _try_lock(self) -> bool:
        handle = os.open(self._root / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        self._lock = handle
        return True

    def _join(self) -> Address | None:
        try:
            note = json.loads(self._note.read_text())
            address = Address(note["port"], Secret(note["password"]), note["socket_directory"])
            with socket.create_connection(("127.0.0.1", address.port), timeout=1):
                return address
        except (OSError, ValueError, KeyError):
            return None

    def _own(self, deadline: float) -> Address:
        self._note.unlink(missing_ok=True)
        binaries = find_binaries(self._chosen)
        if self._account is not None:
            binaries = copy_for(self._account, binaries, self._root / "binaries")
        wait_for_orphan(self._data / "postmaster.pid", deadline)
        if not (self._data / "PG_VERSION").exists():
            self._create(binaries)
        self._check_version(binaries)
        password = Secret((self._root / "password").read_text().strip())
        address = self._launch_in_time(binaries, password, deadline)
        self._running = (binaries, address)
        note = {
            "host": "127.0.0.1",
            "port": address.port,
            "user": SUPERUSER,
            "password": password.reveal(),
            "socket_directory": address.socket_directory,
        }
        write_private(self._note, json.dumps(note))
        return address

    def _create(self, binaries: Binaries) -> None:
        """Make the data directory under another name and rename it: a crash leaves the old state or the new one."""
        fresh = self._root / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        self._give(fresh)
        password = secrets.token_urlsafe(32)
        write_private(self._root / "password", password + "\n")
        handed = self._root / "password.new"
        write_private(handed, password + "\n")
        self._give(handed)
        locale = ["--locale=C"]
        if binaries.major >= 17:
            locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        made = subprocess.run(
            [
                *(binaries.program("initdb"), "-D", str(fresh), "-U", SUPERUSER, "-A", "scram-sha-256"),
                *("--pwfile", str(handed), "-E", "UTF8", "--no-instructions", *locale),
                *(["--no-sync"] if self._settings.get("fsync") == "off" else []),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=CLEAN_ENVIRONMENT,
            **self._as_account(),
        )
        handed.unlink()
        if made.returncode != 0:
            raise EmbeddedFailed(
                "The embedded database could not be created.",
                hint=f"Check that {self._root} is on a local disk with free space, or set DATABASE_URL.",
                debug=made.stderr[-800:],
            )
        fresh.rename(self._data)

    def _check_version(self, binaries: Binaries) -> None:
        stored = (self._data / "PG_VERSION").read_text().strip()
        if stored != str(binaries.major):
            raise EmbeddedFailed(
                f"The data directory was made by PostgreSQL {stored}; the programs found are {binaries.major}.",
                hint=f"Point EMBEDDED_PG_BIN at PostgreSQL {stored}, or dump and reload; for a fresh start remove "
                f"{self._root}.",
            )

    def _launch_in_time(
        self, binaries: Binaries, password: Secret, deadline: float, *, port: int | None = None
    ) -> Address:
        while (address := self._launch(binaries, password, deadline, port or _free_port())) is None:
            time.sleep(0.1)
        return address

    def _launch(self, binaries: Binaries, password: Secret, deadline: float, port: int) -> Address | None:
        """Start the server and wait until it accepts; None: it lost a race (port, old backend), try again."""
        sockets = self._root / "socket"
        sockets.mkdir(mode=0o700, exist_ok=True)
        self._give(sockets)
        with_socket = len(str(sockets)) < _LONGEST_SOCKET_PATH
        settings = {**self._settings, "unix_socket_directories": str(sockets) if with_socket else "", "port": str(port)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        handle = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            start = os.fstat(handle).st_size
            self._process = subprocess.Popen(
                [binaries.program("postgres"), "-D", str(self._data), *options],
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=handle,
                start_new_session=True,
                cwd="/",
                env=CLEAN_ENVIRONMENT,
                **self._as_account(),
            )
        finally:
            os.close(handle)
        # Whoever holds the other end of this pipe dies, even by SIGKILL, the guard reads the end and stops the server.
        # Unlike PR_SET_PDEATHSIG it follows the process and not the thread that happened to start the server.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", 'read _; kill -INT "$0"', str(self._process.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
            env=CLEAN_ENVIRONMENT,
            **self._as_account(),
        )
        while not self._ready():
            if self._process.poll() is not None:
                self._raise_unless_passing(self._read_log(start), deadline)
                return None
            if time.monotonic() > deadline:
                raise EmbeddedFailed(
                    f"The embedded database was not ready within {self._start_timeout_s:g} s.",
                    hint=f"Read {self.log_file}; a recovery after a crash may need longer: start again.",
                )
            time.sleep(_POLL_S)
        return Address(port, password, str(sockets) if with_socket else None)

    def _ready(self) -> bool:
        if self._process is None:
            return False
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7].strip() in _ACCEPTS

    def _read_log(self, start: int) -> str:
        with self.log_file.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")

    def _raise_unless_passing(self, log: str, deadline: float) -> None:
        passing = ("already in use", "still in use", "could not bind", "lock file")
        if any(words in log for words in passing) and time.monotonic() < deadline:
            self._release_guard()
            return
        raise EmbeddedFailed(
            "The embedded database stopped while starting.",
            hint=f"Read {self.log_file}; it says why.",
            debug=log[-800:],
        )

    def _release_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is None:
            return
        guard.kill()  # before its pipe closes: it must not signal a process id that may be in use again
        guard.wait()
        if guard.stdin is not None:
            guard.stdin.close()


def _unprivileged_account() -> Account:
    for name in ("postgres", "nobody", "daemon"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedFailed(
        "PostgreSQL refuses to run as root and this machine has no unprivileged account for it.",
        hint="Add one (useradd --system postgres), run as an ordinary user, or set DATABASE_URL.",
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
