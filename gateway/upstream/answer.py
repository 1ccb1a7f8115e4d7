"""The provider's answer to one attempt: looked at first, to tell whether it is one, then on its way to the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

from gateway.balancing.decision import Lease
from gateway.balancing.exchange import Exchange
from gateway.balancing.outcome import Outcome, OutcomeKind, TokenUsage
from gateway.balancing.steps import Broke, CallerGone, ErrorInStream
from gateway.upstream.classify import BODY_DECIDES, PEEK_BYTES, classify, classify_error
from gateway.upstream.errors import UpstreamError
from gateway.upstream.preview import PREVIEW_S, judge, judge_json
from gateway.upstream.response import UpstreamResponse

PEEK_S = 2.0
"""How long the beginning of a body may take: of an error, before the status alone decides."""

Clock = Callable[[], float]


class BeginBy(NamedTuple):
    """`at` (the clock's seconds) an answer must have begun; `kind_of` says what an attempt is that has not.

    It is given the key's id, the seconds that the attempt has had, and whether the request went out.
    """

    at: float
    kind_of: Callable[[str, float, bool], OutcomeKind]

    def missed(self, lease: Lease, had_s: float, *, was_sent: bool = True) -> Broke:
        """Give what came of the attempt on `lease` that has not begun to answer."""
        return Broke(self.kind_of(lease.endpoint.id, had_s, was_sent))


class Answer:
    """The provider's answer on its way to the caller; `kind` is OK or what the relayed error was classified as.

    Use it as `async with answer:`; read with `read` or `chunks`, then `finish`. Leaving the block unfinished counts as
    the caller having gone.
    """

    __slots__ = (
        "_attempted_at", "_buffer", "_clock", "_committed", "_exchange", "_finished", "_response", "first_byte_s",
        "is_previewed", "kind", "lease", "status", "streaming",
    )  # fmt: skip

    def __init__(
        self, exchange: Exchange, lease: Lease, response: UpstreamResponse, attempted_at: float, clock: Clock
    ) -> None:
        self.lease = lease
        self.status = response.status
        self.kind = OutcomeKind.OK
        self.streaming = response.is_event_stream
        self.first_byte_s = clock() - attempted_at
        self._exchange = exchange
        self._response = response
        self._buffer = b""
        self._attempted_at = attempted_at
        self._clock = clock
        self.is_previewed = self._committed = self._finished = False

    # --- before it is relayed

    async def classify(self) -> bytes:
        """Find out `kind` where the status is not a good one, and return what of the body was read for it."""
        body = await self.peek() if self.status in BODY_DECIDES else b""
        self.kind = classify(self.status, body)
        return body

    async def peek(self, within_s: float = PEEK_S) -> bytes:
        """Return the body's beginning and leave it in place: `PEEK_BYTES`, or less that came within the time."""
        response = self._response
        try:
            if response.ended:
                self._buffer += await response.read()
                return self._buffer
            until = asyncio.get_running_loop().time() + within_s
            while len(self._buffer) < PEEK_BYTES and await response.arrives(until) and (data := await response.read()):
                self._buffer += data
        except UpstreamError:
            pass  # whoever reads on meets it again
        return self._buffer

    async def preview(self, begin_by: BeginBy | None = None) -> Broke | ErrorInStream | None:
        """Read what comes first; None when it may go to the caller.

        One that has not begun by `begin_by` is given up: a head is no beginning yet, nor are signs of life.
        """
        response = self._response
        self.is_previewed = True
        try:
            while True:
                if begin_by is not None:
                    left_s = max(0.0, begin_by.at - self._clock())
                    if not await response.arrives(asyncio.get_running_loop().time() + left_s):
                        return begin_by.missed(self.lease, self._clock() - self._attempted_at)
                data = await response.read()
                if data:
                    self._buffer = self._buffer + data if self._buffer else data
                verdict = judge(self._buffer) if self.streaming else judge_json(self._buffer, ended=not data)
                if verdict is None and data and self._clock() < self._attempted_at + self.first_byte_s + PREVIEW_S:
                    continue
                if self.streaming and data:
                    self.first_byte_s = self._clock() - self._attempted_at
                if verdict is None or verdict is OutcomeKind.OK:
                    return None
                self.kind = verdict
                return ErrorInStream(verdict)
        except UpstreamError as exc:
            return Broke(classify_error(exc))

    def drop(self) -> None:
        """Let go of it: it is not going to be relayed, and whoever drives the exchange brings that to its end."""
        self._finished = True
        self._response.close()

    # --- while it is relayed

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers with lower-case names, in order, repeats kept; made anew."""
        return self._response.headers

    def headers_among(self, wanted: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
        """Give those of the headers whose names are `wanted`, a set that the program knows; made anew."""
        return self._response.shape.among(wanted, self._response.values)

    @property
    def has_bytes(self) -> bool:
        """Tell whether `read` would return at once with bytes."""
        return bool(self._buffer) or self._response.held_bytes > 0

    @property
    def is_whole(self) -> bool:
        """Tell whether all of the body is here: one `read` returns it at once, and it is not empty."""
        response = self._response
        is_here = bool(self._buffer) != (response.held_bytes > 0)
        return is_here and response.ended and not response.failed

    def forget_headers(self) -> None:
        """Let go of the headers: they were read, and the body may take minutes."""
        self._response.forget_head()

    async def read(self) -> bytes:
        """Return the next body bytes, b"" at the end; an UpstreamError has been reported to the exchange already."""
        if not self._committed:
            self._committed = True
            self._exchange.commit()
        if self._buffer:
            buffer, self._buffer = self._buffer, b""
            return buffer
        try:
            return await self._response.read()
        except UpstreamError as exc:
            if self._may_end():
                self._exchange.step(Broke(classify_error(exc)), self._clock())
            raise

    async def pour(self, take: Callable[[bytes], bool]) -> None:
        """See `UpstreamResponse.pour`; after a first `read`."""
        if not self._buffer:
            await self._response.pour(take)

    async def peek_until(self, decide: Callable[[bytes, bool], bool | None], within_s: float) -> bool:
        """Read on until `decide` (of the beginning, and whether it is all) is sure; what was read is left in place."""
        ended, until = False, asyncio.get_running_loop().time() + within_s
        with suppress(UpstreamError):  # whoever reads on meets it again
            while (verdict := decide(self._buffer, ended)) is None:
                if not await self._response.arrives(until):
                    return False
                data = await self._response.read()
                self._buffer, ended = self._buffer + data, not data
            return verdict
        return False

    async def finish(
        self, usage: TokenUsage | None = None, *, aborted: bool = False, error: OutcomeKind | None = None
    ) -> None:
        """End it: `usage` settles the reservation, `aborted` the caller is gone, `error` what a stream's
        error event was. Only the first call counts.
        """
        self.close(usage, aborted=aborted, error=error)

    def close(
        self, usage: TokenUsage | None = None, *, aborted: bool = False, error: OutcomeKind | None = None
    ) -> None:
        """Do what `finish` does, from a callback or a `finally` without await."""
        if not self._may_end():
            return
        now = self._clock()
        if aborted:
            self._exchange.step(CallerGone(usage), now)
        elif error is not None and self._committed:
            self._exchange.step(ErrorInStream(error), now)
        else:
            total_s = max(0.0, now - self._attempted_at)
            self._exchange.finish(Outcome(self.kind, self.status, self.first_byte_s, total_s, usage), now)

    def _may_end(self) -> bool:
        """Close the response; tell whether the exchange is still to be told why: the first time, if it is not over."""
        if self._finished:
            return False
        self._finished = True
        self._response.close()
        return not self._exchange.is_over

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(aborted=True)
