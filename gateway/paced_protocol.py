"""The strict protocol that parses no further ahead than requests may wait: one read can hold thousands of them.

A request that waits costs up to a hundred times its bytes. So a read is parsed up to as many ends of heads as there are
places in the line; the rest stays bytes, nothing more is read, and each answer makes room for the next part.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

from uvicorn.protocols.http.flow_control import FlowControl

from gateway.strict_protocol import StrictProtocol

MAX_PIPELINED: Final = 8
"""While fewer wait the connection is read on: only who reads learns that the caller has left."""
SMALL_READ_BYTES: Final = 1024
"""A read that is not longer is parsed whole: some fifty requests at most."""
LARGE_READ_BYTES: Final = 16 * 1024
"""In a read that is longer it is not worth while to look for a single request."""
_HEAD_END: Final = re.compile(rb"\r\n\r\n")


def part_end(data: bytes, at: int, heads: int) -> int:
    """Return where the part of `data` from `at` ends that holds at most `heads` ends of a request's head.

    A body may look as if it held some: then the part is shorter than it could be.
    """
    for _ in range(heads):
        at = data.find(b"\r", at)  # the fastest way through a body: most hold none
        found = _HEAD_END.search(data, at) if at >= 0 else None
        if found is None:
            return len(data)
        at = found.end()
    return at


class PacedFlow(FlowControl):
    """uvicorn's, but nothing is read while `is_full`: an ASGI application that waits for a disconnect asks for it."""

    is_full = False

    def resume_reading(self) -> None:
        """Read on, unless what was read already waits."""
        if self.read_paused and not self.is_full:
            super().resume_reading()


class PacedProtocol(StrictProtocol):
    """One caller's connection; who overrides `data_received` calls `pace` where many requests may have come at once."""

    flow: PacedFlow

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection."""
        super().connection_made(transport)
        self.flow = PacedFlow(transport)
        self._unparsed = b""
        self._at = 0

    def pace(self, data: bytes) -> None:
        """Parse `data`, behind what is held, as far as there are places in the line; hold the rest."""
        self._unparsed = self._unparsed[self._at :] + data if self._unparsed else data
        self._at = 0
        self.parse_on()

    def parse_on(self) -> None:
        """Parse what is held as far as there are places in the line; pause or resume reading by what is left."""
        data, at, waiting = self._unparsed, self._at, self.pipeline
        while at < len(data) and len(waiting) < MAX_PIPELINED:
            end = part_end(data, at, MAX_PIPELINED - len(waiting))
            super().data_received(data[at:end] if at or end < len(data) else data)
            at = end
            if self.refusal is not None or self.lingers:
                at = len(data)  # no more is parsed
        flow = self.flow
        if at < len(data):
            self._unparsed, self._at = data, at
            flow.is_full = True
            flow.pause_reading()
            return
        self._unparsed, self._at = b"", 0
        flow.is_full = False
        if len(waiting) >= MAX_PIPELINED:
            flow.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of what was not parsed."""
        self._unparsed = b""
        super().connection_lost(exc)
