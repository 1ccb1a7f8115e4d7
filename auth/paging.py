"""Cursor pagination over time-ordered ids (UUIDv7): pages stay right while rows are added and removed."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

from auth.errors import Invalid

DEFAULT_LIMIT = 50
MAX_LIMIT = 200

T = TypeVar("T")

_PREFIX = b"c1"  # the cursor's format: an old cursor is refused clearly after the order changes


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list: `next_cursor` is None on the last page."""

    items: tuple[T, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class PageAsk:
    """What a caller asked for: up to `limit` items whose id is greater than `after` (None: from the start)."""

    limit: int = DEFAULT_LIMIT
    after: UUID | None = None

    @property
    def fetch(self) -> int:
        """How many rows to select: one more than the page, which tells whether another page follows."""
        return self.limit + 1


def page_ask(limit: int | None = None, cursor: str | None = None) -> PageAsk:
    """Read the query parameters `limit` (1 to 200, default 50) and `cursor`; `Invalid` says which one is wrong."""
    wanted = DEFAULT_LIMIT if limit is None else limit
    if not 1 <= wanted <= MAX_LIMIT:
        raise Invalid(
            f"limit must be between 1 and {MAX_LIMIT}.",
            hint=f"Leave limit out for {DEFAULT_LIMIT} items a page.",
            errors=(("/limit", f"must be between 1 and {MAX_LIMIT}"),),
        )
    return PageAsk(limit=wanted, after=decode_cursor(cursor) if cursor else None)


def cut_page(rows: Sequence[T], ask: PageAsk, *, key: Callable[[T], UUID]) -> Page[T]:
    """Make a page of up to `ask.fetch` rows, selected in ascending order of `key` after `ask.after`."""
    items = tuple(rows[: ask.limit])
    more = len(rows) > ask.limit
    return Page(items=items, next_cursor=encode_cursor(key(items[-1])) if more else None)


def encode_cursor(last: UUID) -> str:
    """Return the opaque cursor that continues after the item with id `last`."""
    return base64.urlsafe_b64encode(_PREFIX + last.bytes).rstrip(b"=").decode()


def decode_cursor(cursor: str) -> UUID:
    """Return the id that `cursor` continues after; `Invalid` if it is not one of ours."""
    try:
        raw = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
    except (UnicodeEncodeError, binascii.Error):
        raw = b""
    if len(raw) != len(_PREFIX) + 16 or not raw.startswith(_PREFIX) or encode_cursor(UUID(bytes=raw[2:])) != cursor:
        raise Invalid(
            "The cursor is not valid.",
            hint="Pass next_cursor of the previous page unchanged, or leave cursor out to start again.",
            errors=(("/cursor", "is not a cursor of this list"),),
        )
    return UUID(bytes=raw[2:])
