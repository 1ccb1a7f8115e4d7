"""The sealed state on disk: written while Postgres answers, read by a process that starts while it does not.

`tenants/sealed_state.py` says what is in it and why nobody can read or change it. Here is when it is written: soon
after a change, and every ten minutes for its age, but never for more than a hundredth of the process's time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from auth.errors import Fault
from auth.storage import Connections
from gateway.database import Change
from tenants.datakeys import DataKeys
from tenants.errors import KekUnavailable, SealBroken
from tenants.keyring import KeyWrapper
from tenants.sealed_state import FileKey, State, make_file_key, open_state, read_state, seal_state

log = logging.getLogger(__name__)

SETTLE_S: Final = 2.0
"""How long after a change the state is written: changes come in bursts."""
REFRESH_S: Final = 600.0
_PAUSE_RATIO: Final = 100.0
_RETRY_S: Final = 15.0
_LEFT_S: Final = 3600.0
"""How old a half-written file is whose writer will not come back to it."""
_TOLD_ELSEWHERE: Final = frozenset({"audit_event", "usage_event", "oauth_client", "client_secret"})
"""Tables of which the state holds nothing."""
_AT_ONCE: Final = 16


class StateFile:
    """One file of one machine's processes; whoever finds it written since the last change lets it be.

    `max_age_s` bounds how old a state may be to start from: tokens revoked since then are good again while Postgres is
    away. `unix_clock` gives Unix seconds, `clock` monotonic ones.
    """

    def __init__(
        self,
        path: Path,
        wrapper: KeyWrapper,
        issuer: str,
        *,
        max_age_s: float,
        unix_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._wrapper = wrapper
        self._issuer = issuer
        self._max_age_s = max_age_s
        self._unix_clock = unix_clock
        self._clock = clock
        self._file_key: FileKey | None = None
        self._dirty = asyncio.Event()
        self._dirty.set()
        self._changed_at = unix_clock()
        self._written_at: float | None = None
        self.writes = 0
        self.failures = 0

    @property
    def age_s(self) -> float | None:
        """How old the state is that this process wrote or found written; None: none yet."""
        return None if self._written_at is None else max(0.0, self._unix_clock() - self._written_at)

    def changed(self, change: Change) -> None:
        """Take one notice of a committed change."""
        if change.table not in _TOLD_ELSEWHERE:
            self._changed_at = self._unix_clock()
            self._dirty.set()

    async def load(self) -> State | None:
        """Read the state to start from; None, with the reason in the log, when there is none that may be used."""
        try:
            blob = await asyncio.to_thread(self._path.read_bytes)
            async with asyncio.timeout(10):
                state = await open_state(blob, self._wrapper, self._issuer)
        except FileNotFoundError:
            log.warning("there is no sealed state to start from", extra={"file": str(self._path)})
            return None
        except (SealBroken, Fault, OSError, TimeoutError) as error:
            log.error("the sealed state cannot be used", extra={"file": str(self._path), "reason": str(error)})
            return None
        age_s = self._unix_clock() - state.taken_at
        if age_s > self._max_age_s:
            log.error("the sealed state is too old to start from", extra={"file": str(self._path), "age_s": age_s})
            return None
        self._written_at = state.taken_at
        return state

    async def run(self, connections: Connections) -> None:
        """Write for ever; run it as a task and cancel it."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await self._dirty.wait()
            await asyncio.sleep(SETTLE_S)
            self._dirty.clear()
            began = self._clock()
            try:
                await self.write(connections)
            except Exception as error:  # noqa: BLE001 - a loop's boundary: the former state stays
                self.failures += 1
                self._dirty.set()
                log.warning("the sealed state was not written", extra={"reason": repr(error)})
                await asyncio.sleep(_RETRY_S)
            await asyncio.sleep(_PAUSE_RATIO * (self._clock() - began))

    async def write(self, connections: Connections) -> bool:
        """Write the state of now; False if another process has done so since the last change."""
        found = await asyncio.to_thread(self._found)
        if found is not None and found > self._changed_at and self._unix_clock() - found < REFRESH_S:
            self._written_at = found
            return False
        state = await read_state(connections, now=self._unix_clock())
        if self._file_key is None or self._file_key.wrapped.kek_uri != self._wrapper.uri:
            self._file_key = await make_file_key(self._wrapper)
        await asyncio.to_thread(self._replace, state, self._file_key)
        self._written_at = state.taken_at
        self.writes += 1
        return True

    def _found(self) -> float | None:
        try:
            return self._path.stat().st_mtime
        except OSError:
            return None

    def _replace(self, state: State, file_key: FileKey) -> None:
        # Written beside it and renamed: whoever starts meanwhile reads a whole one. Pods that share a volume have one
        # process id all, and hear of a change at the same moment: the name is each writer's own.
        self._clear()
        descriptor, name = tempfile.mkstemp(prefix=self._beside, dir=self._path.parent)
        beside = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(seal_state(state, file_key, self._issuer))
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
        finally:
            beside.unlink(missing_ok=True)

    @property
    def _beside(self) -> str:
        return f".{self._path.name}."

    def _clear(self) -> None:
        """Take away what writers left that were killed."""
        for each in self._path.parent.glob(f"{self._beside}*"):
            with suppress(OSError):  # another does the same
                if self._unix_clock() - each.stat().st_mtime > _LEFT_S:
                    each.unlink()


async def preload(data_keys: DataKeys, state: State) -> None:
    """Have the state's data keys unwrapped, so that its provider keys open without the database."""
    wanted = {row["data_key_id"] for rows in state.rows.keys.values() for row in rows}
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(index: int) -> None:
        each = state.data_keys[index]
        async with gate:
            # One that does not open leaves its tenant's keys out; the loader says so.
            with suppress(SealBroken, KekUnavailable, Fault):
                await data_keys.adopt(each.tenant_id, each.id, each.wrapped)

    await asyncio.gather(*(one(index) for index, each in enumerate(state.data_keys) if each.id in wanted))


def when(unix: float) -> str:
    """Write a moment for people."""
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="seconds")
