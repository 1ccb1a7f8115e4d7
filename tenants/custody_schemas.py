"""Shapes of /api/v1/custody."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from msgspec import Struct


class CustodySliceIn(Struct, frozen=True, forbid_unknown_fields=True):
    """Where to go on: `next_cursor` of the slice before, null to begin."""

    cursor: str | None = None


class ReencryptIn(Struct, frozen=True, forbid_unknown_fields=True):
    """Whose data key is to be replaced, and where to go on."""

    tenant_id: UUID
    cursor: str | None = None


class CustodySlice(Struct, frozen=True):
    """A slice of a custody job: how many were done in it, how many are left, and which failed, with the reason.

    `shredded` names tenants whose share was destroyed and whose rows came back with a backup: nothing of theirs opens.
    `unchecked` counts spare wraps that only the break-glass key opens.
    """

    done: int
    left: int
    failed: dict[str, str]
    next_cursor: str | None = None
    shredded: dict[str, str] = {}
    unchecked: int = 0


class KekOut(Struct, frozen=True):
    """A key-encryption key: how many data keys it wraps, first or as the spare, and what its provider calls it.

    `share+` in front of the URI: the tenants' shares lie on top.
    """

    uri: str
    role: str
    data_keys: int
    status: str


class KekList(Struct, frozen=True):
    """The key-encryption keys in use; `current` wraps new data keys, `spare` a second time; `shares` is their store."""

    current: str
    items: list[KekOut]
    spare: str | None = None
    shares: str | None = None


class ShreddedOut(Struct, frozen=True):
    """A deleted tenant. `done_at` null: its share is still to be destroyed, `error` says why that failed last.

    `covers_backups`: no backup of the database holds anything of it that opens, but for those made before the shares
    were introduced. `restored`: its rows are back from a backup; delete it again.
    """

    tenant_id: UUID
    slug: str
    requested_at: datetime | None
    done_at: datetime | None
    covers_backups: bool
    restored: bool
    error: str | None = None


class ShreddedList(Struct, frozen=True):
    """Every deleted tenant that the database or the store of shares knows of."""

    items: list[ShreddedOut]
