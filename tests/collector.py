"""What only the collector of cycles would free: it is looked for here, and there should be none of it."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def collector_off() -> Iterator[list[Any]]:
    """Collect nothing meanwhile; what only the collector could free is given at the end."""
    found: list[Any] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def of_the_gateway(objects: list[Any]) -> Counter[str]:
    """Count those whose types, or whose code, are the program's."""
    named = (
        f"frame of {each.f_code.co_name}" if isinstance(each, FrameType) else type(each).__qualname__
        for each in objects
        if (each.f_globals["__name__"] if isinstance(each, FrameType) else type(each).__module__).startswith("gateway.")
    )
    return Counter(named)
