"""The end of a process that was told to end and does not: a watchdog outside the event loop and the interpreter."""

from __future__ import annotations

import faulthandler
import os
import sys
from typing import Final

BEYOND_S: Final = 3.0
"""The orderly ways come first, also where the machine is busy."""


def end_within(seconds: float) -> None:
    """End this process by force when it still runs `seconds` and a little from now, its stacks on stderr (exit code 1).

    A later call replaces an earlier one. It holds also while the loop is blocked or the interpreter waits for threads
    at its exit; the kernel's own waits (a disk that is gone) it cannot end.
    """
    log = sys.stderr or os.open(os.devnull, os.O_WRONLY)  # a process may be started without one
    faulthandler.dump_traceback_later(seconds + BEYOND_S, exit=True, file=log)
