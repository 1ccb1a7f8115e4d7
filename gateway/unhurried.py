"""Goes through very many things on the event loop without holding requests up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final, TypeVar

Item = TypeVar("Item")

SLICE_S: Final = 0.0005
"""So long the loop may be kept before others have their turn."""
_AT_ONCE: Final = 16


async def unhurried(items: Iterable[Item], *, clock: Callable[[], float] = time.perf_counter) -> AsyncIterator[Item]:
    """Yield `items`, letting the loop turn about every `SLICE_S`; they must bear that it does (a copy, a list)."""
    began, left = clock(), _AT_ONCE
    for item in items:
        yield item
        left -= 1
        if not left:
            left = _AT_ONCE
            if clock() - began > SLICE_S:
                await asyncio.sleep(0)
                began = clock()
