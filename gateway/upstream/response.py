"""The provider's answer while it arrives: a head, then body bytes that one reader takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from gateway.upstream.errors import UpstreamBroken
from gateway.upstream.head_shape import HeadShape, shape_of

HIGH_WATER_BYTES = 256 * 1024
"""Body bytes held for a slow reader before the socket is no longer read."""
PIECE_BYTES = 64
"""What a piece of a body takes beside its bytes: a chunk may hold two of them."""
DISCARD_BYTES = 64 * 1024
DISCARD_S = 1.0
"""How much of an unwanted answer is read to keep its connection: beyond it a new connection is cheaper."""


_NO_HEAD: HeadShape = shape_of(())


class Feeder(Protocol):
    """The connection behind an answer."""

    def resume(self) -> None:
        """Read on after the reader has taken what was held."""

    def hurry(self, timeout_s: float) -> None:
        """End the exchange within `timeout_s`."""

    def abort(self) -> None:
        """End the connection."""


class UpstreamResponse:
    """`status`, `shape` (of the head) and the headers' `values` are set before the caller sees it. `held_bytes` is the
    memory that body bytes take which nobody has read.

    One reader calls `read` until b"" and may stop early with `aclose`; cancelling `read` ends the connection. What had
    arrived before an error is still delivered, then the error is raised.
    """

    __slots__ = (
        "_discarded",
        "_done",
        "_error",
        "_feeder",
        "_loop",
        "_parts",
        "_take",
        "_waiter",
        "failed",
        "held_bytes",
        "shape",
        "status",
        "values",
    )

    def __init__(self, feeder: Feeder, loop: asyncio.AbstractEventLoop) -> None:
        self.status = 0
        self.shape = _NO_HEAD
        self.values: tuple[bytes, ...] = ()
        self.held_bytes = 0
        self._feeder = feeder
        self._loop = loop
        self._parts: list[bytes] = []
        self._done = False
        self.failed = False
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._take: Callable[[bytes], bool] | None = None
        self._discarded: int | None = None

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers with lower-case names, in order, repeats kept; made anew."""
        return list(zip(self.shape.names, self.values, strict=True))

    @property
    def is_event_stream(self) -> bool:
        """Tell whether it says to be one."""
        at = self.shape.content_type
        return at >= 0 and self.values[at][:17].lower() == b"text/event-stream"

    def forget_head(self) -> None:
        """Let go of the headers: they were read, and the body may take minutes."""
        self.shape, self.values = _NO_HEAD, ()

    @property
    def ended(self) -> bool:
        """Tell whether the whole answer has arrived: its connection is free again or gone."""
        return self._done or self.failed

    def take_error(self) -> BaseException:
        """Return why the answer broke off, for whoever raises it; later ones only learn that it did.

        It is not kept: its traceback leads to frames that hold this answer, and only the collector would free all that.
        """
        error, self._error = self._error, None
        return error or UpstreamBroken("the answer has broken off")

    async def read(self) -> bytes:
        """Return all body bytes that have arrived, waiting for at least one; b"" at the end.

        Raises UpstreamTimeout or UpstreamBroken when the answer broke off.
        """
        while not (parts := self._parts):
            if self.failed:
                raise self.take_error()
            if self._done:
                return b""
            try:
                await self.changed()
            except asyncio.CancelledError:
                self._feeder.abort()
                raise
        if len(parts) == 1:
            data = parts.pop()
        else:
            data = b"".join(parts)
            parts.clear()
        if self.held_bytes > HIGH_WATER_BYTES and not self._done:
            self._feeder.resume()
        self.held_bytes = 0
        return data

    async def pour(self, take: Callable[[bytes], bool]) -> None:
        """Hand bytes to `take` as they arrive, and return when `read` has to go on.

        That is at the end, at an error, and for what `take` declines: then it returns False and has taken nothing.

        So a piece goes on without a turn of the reader's task, which costs more than all that is done with the piece.
        """
        self._take = take
        try:
            while not (self._parts or self._done or self.failed):
                await self.changed()
        except asyncio.CancelledError:
            self._feeder.abort()
            raise
        finally:
            self._take = None

    async def arrives(self, until: float) -> bool:
        """Tell whether `read` would return, or raise, at once; waits for that until then (the loop's time) at most.

        Unlike a `read` that is given up this ends nothing: whoever reads on gets all that comes.
        """
        try:
            async with asyncio.timeout_at(until):
                while not (self._parts or self._done or self.failed):
                    await self.changed()
        except TimeoutError:
            return False
        except asyncio.CancelledError:
            self._feeder.abort()
            raise
        return True

    async def aclose(self) -> None:
        """Stop reading. The rest of a short error answer is thrown away as it comes; otherwise the connection ends."""
        self.close()

    def close(self) -> None:
        """Do what `aclose` does, from a callback or a `finally` without await."""
        if self._done or self.failed or self._discarded is not None:
            return
        self._parts.clear()
        self.held_bytes = 0
        if self.status < 400:
            self._feeder.abort()
            return
        self._discarded = 0
        self._feeder.hurry(DISCARD_S)

    # --- the connection's side

    def changed(self) -> asyncio.Future[None]:
        """Return a future that is done with the next change: bytes, the head, the end, an error."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            raise RuntimeError("an answer has one reader")
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def feed(self, data: bytes) -> None:
        """Take a piece of the body."""
        if self._discarded is not None:
            self._discarded += len(data)
            if self._discarded > DISCARD_BYTES:
                raise UpstreamBroken("the rest of the unwanted answer is too long to read")
            return
        self._parts.append(data)
        self.held_bytes += len(data) + PIECE_BYTES

    def wake(self) -> None:
        """Tell the reader that something has changed, unless it is bytes that are taken at once."""
        take = self._take
        if take is not None:
            parts = self._parts
            if not parts:
                return
            if take(parts[0] if len(parts) == 1 else b"".join(parts)):
                parts.clear()
                self.held_bytes = 0
                return
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def complete(self) -> None:
        """Mark the end of the answer."""
        self._done, self._take = True, None
        self.wake()

    def fail(self, error: BaseException) -> None:
        """Mark that the answer broke off."""
        if not self._done and not self.failed:
            self.failed, self._error, self._take = True, error, None
        self.wake()
