"""The garbage collector of a process that serves: what lives as long as the process is not looked at again and again.

A request makes a few hundred container objects and frees them by reference count. With many requests in flight
CPython's default threshold of 700 means several collections in each turn of the event loop, and now and then one over
all modules and tenants. Measured: a fifth of a relayed request's CPU.
"""

from __future__ import annotations

import gc

THRESHOLDS = (10_000, 20, 100)
"""Net new objects before the young are looked at (well below a millisecond), and how many times that for the older."""
_LOOKED_AT = 1_000_000
"""With more objects than this a last look, for the little that imports left behind, is not worth its second."""


def begin() -> None:
    """Collect nothing while the process starts: what it makes then stays, and looking at it again and again is half
    of the time that a hundred thousand keys take to load.
    """
    gc.disable()


def settle() -> None:
    """Take all that the start has left out of collection, and collect from now on, but less often than by default."""
    if gc.get_count()[0] < _LOOKED_AT:
        gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    gc.enable()
