"""The life of a key version: one table of states and what may follow. Pure.

    pending ──► created ──► probing ──► current ──► draining ──► disabled ──► revoked
       │           │           │           ▲            │            │
       ├──► failed ◄───────────┘           └────────────┴────────────┘   (roll back while it lives)
       └──► orphaned

- pending: the intent is stored, the provider has not been asked, or its answer is not known. No secret yet.
- created: the provider made it and its envelope is stored. probing: being tried against the provider.
- current: new requests use it; a key has at most one. draining: requests that started with it may finish.
- disabled: refused by the gateway, and by the provider where it can; can come back.
- revoked: gone for good, envelope erased. failed: never became usable, nothing is left at the provider.
- orphaned: may exist at the provider, and someone must look.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from auth.errors import Conflict


class VersionState(StrEnum):
    """Where a key version stands."""

    PENDING = "pending"
    CREATED = "created"
    PROBING = "probing"
    CURRENT = "current"
    DRAINING = "draining"
    DISABLED = "disabled"
    REVOKED = "revoked"
    FAILED = "failed"
    ORPHANED = "orphaned"


S = VersionState

NEXT: Final[Mapping[VersionState, frozenset[VersionState]]] = MappingProxyType(
    {
        S.PENDING: frozenset({S.CREATED, S.FAILED, S.ORPHANED}),
        S.CREATED: frozenset({S.PROBING, S.CURRENT, S.FAILED, S.ORPHANED, S.REVOKED}),
        S.PROBING: frozenset({S.CURRENT, S.FAILED, S.ORPHANED, S.REVOKED}),
        S.CURRENT: frozenset({S.DRAINING, S.DISABLED, S.REVOKED}),
        S.DRAINING: frozenset({S.DISABLED, S.CURRENT, S.REVOKED, S.ORPHANED}),
        S.DISABLED: frozenset({S.REVOKED, S.CURRENT, S.ORPHANED}),
        S.ORPHANED: frozenset({S.CREATED, S.REVOKED}),
        S.FAILED: frozenset(),
        S.REVOKED: frozenset(),
    }
)

USABLE: Final = frozenset({S.CURRENT, S.DRAINING})
"""A request that started with one of these may finish with it."""

IN_FLIGHT: Final = frozenset({S.PENDING, S.CREATED, S.PROBING})
"""A rotation is under way: no second one begins."""

ERASED: Final = frozenset({S.REVOKED, S.FAILED})
"""States whose envelope is removed from the database."""


def may_follow(old: VersionState, new: VersionState) -> bool:
    """Tell whether the table lets `old` become `new`."""
    return new in NEXT[old]


def follow(old: VersionState, new: VersionState) -> VersionState:
    """Return `new`, or raise `Conflict` when the table forbids the step."""
    if not may_follow(old, new):
        allowed = ", ".join(sorted(NEXT[old])) or "nothing: this state is final"
        raise Conflict(
            f"A {old} key version cannot become {new}.",
            hint=f"What may follow {old}: {allowed}. Read the key's versions and choose one whose state allows it.",
        )
    return new
