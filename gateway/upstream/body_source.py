"""A request body that is not all there yet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol, runtime_checkable


@runtime_checkable
class BodySource(Protocol):
    """A body that is produced while it is sent; `length` in bytes, None = chunked. It can be sent once only."""

    @property
    def length(self) -> int | None:
        """Bytes in all, when known before the first chunk."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the chunks; an exception ends the request and reaches whoever awaits the answer."""
