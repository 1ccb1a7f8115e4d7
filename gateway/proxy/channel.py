"""One caller's request and the way back to it, free of any server's types.

The data path is written against this protocol alone: `asgi_channel` fulfils it under any ASGI server, and
`gateway.relay_channel` over a connection of our own server, without ASGI between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gateway.proxy.head import RequestHead

HeaderList = list[tuple[bytes, bytes]]


_LENGTH_DIGITS = 20
"""Those of 2^64, the bound of servers' parsers; what stands before them can only be zeros."""


def length_of(value: bytes) -> int | None:
    """Read a `content-length` that a parser has let pass, with any white space and zeros around; None for none."""
    digits = value.strip(b" \t")[-_LENGTH_DIGITS:]
    return int(digits) if digits.isdigit() else None


class CallerGone(Exception):
    """The caller disconnected: there is nobody left to answer."""


class Channel(Protocol):
    """A request head, then body in, head out, chunks out.

    `method` is upper case; `raw_path` the path as sent, percent-encoding and all, without the query; `length` what its
    `content-length` says, None without one; `certificate` the `x5t#S256` of the caller's TLS certificate (RFC 8705), ""
    without one; `task` what serves it, where the server has made a task for that; `ends_by` (monotonic seconds) when a
    caller that is still taking the answer is dropped. `head` may be other requests' as well, of the same connection: it
    is not to be changed.
    """

    method: str
    raw_path: bytes
    query: bytes
    head: RequestHead
    length: int | None
    certificate: str
    task: asyncio.Task[None] | None
    ends_by: float

    @property
    def peer(self) -> str:
        """The address of the other end of the connection, "" when there is none."""

    @property
    def body_over(self) -> bool:
        """Tell whether `receive` has returned the body's last bytes."""

    async def receive(self) -> bytes:
        """Return the next bytes of the body, b"" at its end and ever after. Raises CallerGone."""

    def forget(self) -> None:
        """Forget the head: there is an answer, and it will take long."""

    async def answer(self, status: int, headers: bytes, body: bytes, *, closes: bool = False) -> None:
        """Send a whole answer, whose `headers` tell the length of `body`; see `send_head`."""

    async def send_head(
        self, status: int, headers: bytes, *, length: int = -1, closes: bool = False, hold: bool = False
    ) -> None:
        """Send status and headers; once, before any chunk.

        `headers` are lines, `name: value CRLF` each. `length` is what their `content-length` says, -1 without one;
        `closes`: they hold `connection: close`. `hold`: bytes follow at once, so they may leave together.
        """

    async def send(self, chunk: bytes) -> None:
        """Send body bytes; waits while the caller reads more slowly than we write, till `ends_by`."""

    @property
    def is_free(self) -> bool:
        """Tell whether `pass_on` may be called."""

    def pass_on(self, chunk: bytes) -> None:
        """Do what `send` does where it need not wait, after a first `send`."""

    async def finish(self, last: bytes = b"") -> None:
        """Send the last bytes and end the answer in good order."""

    def abort(self) -> None:
        """End the connection without ending the answer, so that the caller sees that it is cut."""

    def on_gone(self, call: Callable[[], None]) -> None:
        """Have `call` called, at most once, when the caller disconnects after its body was read to the end.

        Before that `receive` raises CallerGone.
        """

    def close(self) -> None:
        """Stop watching for the disconnect; the request is over."""
