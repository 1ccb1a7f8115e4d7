"""Where the rows of shared quotas are kept: a protocol, and its in-memory twin.

A row is read, changed by `row.exchange`, and put back if nobody else has put it back meanwhile. Nothing is locked in
between: a process that is stopped half-way holds nobody up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

Key = tuple[UUID, str]
"""A quota: its tenant, its id."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A row as it stands: `version` is 1 or more."""

    version: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Swap:
    """Put `state` in place of the row that stood at `before` (0: there was none)."""

    key: Key
    before: int
    version: int
    state: bytes


class LeaseStore(Protocol):
    """Keeps rows; raises `auth.errors.Unavailable` or TimeoutError when it cannot be reached."""

    async def read(self, keys: Sequence[Key]) -> tuple[float, dict[Key, Stored]]:
        """Give the store's own time (Unix seconds), and those of the rows that exist."""

    async def swap(self, swaps: Sequence[Swap]) -> set[Key]:
        """Put rows back, each for itself; give those that still stood at `before`."""

    async def announce(self, notices: Sequence[str]) -> None:
        """Have all processes hear these notices (`notices.encode`), as far as they listen."""

    async def close(self) -> None:
        """Let go of what the store holds open."""


class InMemoryLeaseStore:
    """The twin: a dictionary, and a clock of its own, `ahead_s` of what it was made with.

    `broken` set to an exception makes every call fail with it, `listeners` hear what is announced.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.rows: dict[Key, Stored] = {}
        self.broken: Exception | None = None
        self.ahead_s = 0.0
        self.listeners: list[Callable[[str], None]] = []
        self.reads = self.swaps = self.notices = 0
        self._clock = clock

    async def read(self, keys: Sequence[Key]) -> tuple[float, dict[Key, Stored]]:
        """See `LeaseStore.read`."""
        await asyncio.sleep(0)
        if self.broken is not None:
            raise self.broken
        self.reads += 1
        return self._clock() + self.ahead_s, {key: found for key in keys if (found := self.rows.get(key)) is not None}

    async def swap(self, swaps: Sequence[Swap]) -> set[Key]:
        """See `LeaseStore.swap`."""
        await asyncio.sleep(0)
        if self.broken is not None:
            raise self.broken
        self.swaps += 1
        done: set[Key] = set()
        for swap in swaps:
            stands = self.rows.get(swap.key)
            if (0 if stands is None else stands.version) == swap.before:
                self.rows[swap.key] = Stored(swap.version, swap.state)
                done.add(swap.key)
        return done

    async def announce(self, notices: Sequence[str]) -> None:
        """See `LeaseStore.announce`."""
        await asyncio.sleep(0)
        if self.broken is not None:
            raise self.broken
        self.notices += len(notices)
        for notice in notices:
            for listener in self.listeners:
                listener(notice)

    async def close(self) -> None:
        """See `LeaseStore.close`."""
