"""Shapes of /api/v1/custody."""

from __future__ import annotations

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
    """A slice of a custody job: how many were done in it, how many are left, and which failed, with the reason."""

    done: int
    left: int
    failed: dict[str, str]
    next_cursor: str | None = None


class KekOut(Struct, frozen=True):
    """A key-encryption key: how many data keys it wraps, and whether its provider calls it enabled."""

    uri: str
    data_keys: int
    status: str


class KekList(Struct, frozen=True):
    """The key-encryption keys in use; `current` wraps new data keys."""

    current: str
    items: list[KekOut]
