"""Keeps the embedded PostgreSQL of `llm-proxy dev` alive: a server that was killed or crashed is started again."""

from __future__ import annotations

import logging
import threading
from typing import Final, Protocol

from auth.errors import Unavailable

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S: Final = 30.0


class Mortal(Protocol):
    """A server that can be brought back; `EmbeddedPostgres` is one."""

    def revive(self) -> bool:
        """Start it again if it died; tell whether that was needed. Raises `Unavailable`."""
        ...


class Revival(threading.Thread):
    """Looks every `every_s` seconds until `close`; after a start that failed it waits twice as long each time."""

    def __init__(self, server: Mortal, *, every_s: float = 0.5) -> None:
        super().__init__(name="postgres-revival", daemon=True)
        self._server = server
        self._every_s = every_s
        self._closed = threading.Event()

    def run(self) -> None:
        """Look until closed."""
        pause_s = self._every_s
        while not self._closed.wait(pause_s):
            try:
                revived = self._server.revive()
            except Unavailable as error:
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                log.error(
                    "the embedded PostgreSQL died and does not start again; trying again",
                    extra={"reason": error.public, "hint": error.hint, "again_in_s": pause_s},
                )
                continue
            pause_s = self._every_s
            if revived:
                log.warning("the embedded PostgreSQL died and was started again; nothing committed is lost")

    def close(self) -> None:
        """Stop looking; returns when no start is under way any more."""
        self._closed.set()
        self.join()
