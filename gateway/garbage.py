"""The garbage collector of a process that serves: what lives as long as the process is not looked at again and again.

A request makes a few hundred container objects and frees them by reference count. With many requests in flight
CPython's default threshold of 700 means several collections in each turn of the event loop, and now and then one over
all modules and tenants. Measured: a fifth of a relayed request's CPU.
"""

from __future__ import annotations

import gc

THRESHOLDS = (10_000, 20, 100)
"""Net new objects before the young are looked at (well below a millisecond), and how many times that for the older."""


def settle() -> None:
    """Collect once, take all that is left out of collection, and collect less often from now on."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
