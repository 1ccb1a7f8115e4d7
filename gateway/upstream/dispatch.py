"""Drives one `Exchange`: does the IO its steps ask for and reports what came of it.

All retry and failover logic is in `gateway.balancing.exchange`; here is only the doing. Whatever happens, the exchange
is brought to its end, so its lease is observed exactly once: by `Answer.finish`, by leaving `async with answer`, or,
when this code is cancelled because the caller is gone, on the way out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import field, replace
from types import TracebackType
from typing import Protocol, Self

from gateway.balancing.decision import Lease
from gateway.balancing.error_hints import with_body
from gateway.balancing.exchange import Exchange
from gateway.balancing.hints import parse_hint
from gateway.balancing.outcome import Outcome, OutcomeKind, TokenUsage
from gateway.balancing.steps import (
    Answered,
    Broke,
    CallerGone,
    Committed,
    ErrorInStream,
    Event,
    Fail,
    Failure,
    Finished,
    NotParked,
    Pause,
    Relay,
    Send,
    Step,
    Woke,
)
from gateway.balancing.value_type import value_type
from gateway.upstream.classify import BODY_DECIDES, PEEK_BYTES, classify, classify_error
from gateway.upstream.errors import UpstreamError
from gateway.upstream.message import Deadlines, Origin, UpstreamRequest
from gateway.upstream.preview import PREVIEW_S, judge, judge_json
from gateway.upstream.race import race
from gateway.upstream.response import UpstreamResponse

MIN_TOTAL_S = 0.001
PEEK_S = 2.0
"""How long the body of an error may take before the status alone decides."""


@value_type(frozen=True, slots=True)
class Prepared:
    """A lease turned into a request: where to, what, and how to read the limits in the answer's headers.

    `deadlines.total_s` bounds all attempts and pauses together: a later attempt gets what is left of it.
    """

    origin: Origin
    request: UpstreamRequest
    hint_style: str = "generic"
    deadlines: Deadlines = field(default_factory=Deadlines)


class Sender(Protocol):
    """What dispatch needs of `ConnectionPool`."""

    async def send(self, origin: Origin, request: UpstreamRequest, deadlines: Deadlines) -> UpstreamResponse:
        """Send and return at the answer's head, or raise an UpstreamError."""


Clock = Callable[[], float]
Park = Callable[[Pause], Awaitable[bool]]
"""Waits out a pause: True when it is over, False when there was no room to wait."""


class Answer:
    """The provider's answer on its way to the caller; `kind` is OK or what the relayed error was classified as.

    Use it as `async with answer:`; read with `read` or `chunks`, then `finish`. Leaving the block unfinished counts as
    the caller having gone.
    """

    __slots__ = (
        "_attempted_at", "_buffer", "_clock", "_committed", "_exchange", "_finished", "_response", "first_byte_s",
        "headers", "kind", "lease", "status", "streaming",
    )  # fmt: skip

    def __init__(
        self, exchange: Exchange, lease: Lease, response: UpstreamResponse, *, buffer: bytes, kind: OutcomeKind,
        streaming: bool, first_byte_s: float, attempted_at: float, clock: Clock,
    ) -> None:  # fmt: skip
        self.lease = lease
        self.status = response.status
        self.headers = response.headers
        self.kind = kind
        self.first_byte_s = first_byte_s
        self.streaming = streaming
        self._exchange = exchange
        self._response = response
        self._buffer = buffer
        self._attempted_at = attempted_at
        self._clock = clock
        self._committed = self._finished = False

    @property
    def has_bytes(self) -> bool:
        """Tell whether `read` would return at once with bytes."""
        return bool(self._buffer) or self._response.held_bytes > 0

    def forget_headers(self) -> None:
        """Let go of the headers: they were read, and the body may take minutes."""
        self.headers = []
        self._response.forget_head()

    async def read(self) -> bytes:
        """Return the next body bytes, b"" at the end; an UpstreamError has been reported to the exchange already."""
        if not self._committed:
            self._committed = True
            self._exchange.step(Committed(), self._clock())
        if self._buffer:
            buffer, self._buffer = self._buffer, b""
            return buffer
        try:
            return await self._response.read()
        except UpstreamError as exc:
            self._end(Broke(classify_error(exc)))
            raise

    async def peek(self) -> bytes:
        """Return the body's beginning and leave it in place: up to `PEEK_BYTES`, or what came within `PEEK_S`."""
        try:
            async with asyncio.timeout(PEEK_S):
                while len(self._buffer) < PEEK_BYTES and (data := await self._response.read()):
                    self._buffer += data
        except (UpstreamError, TimeoutError):
            pass  # whoever reads on meets it again
        return self._buffer

    async def peek_until(self, decide: Callable[[bytes, bool], bool | None], within_s: float) -> bool:
        """Read on until `decide` (of the beginning, and whether it is all) is sure; what was read is left in place."""
        ended = False
        with suppress(UpstreamError, TimeoutError):  # whoever reads on meets it again
            async with asyncio.timeout(within_s):
                while (verdict := decide(self._buffer, ended)) is None:
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
        if aborted:
            self._end(CallerGone(usage))
        elif error is not None and self._committed:
            self._end(ErrorInStream(error))
        else:
            now = self._clock()
            total_s = max(0.0, now - self._attempted_at)
            self._end(Finished(Outcome(self.kind, self.status, self.first_byte_s, total_s, usage)))

    def _end(self, event: Event) -> None:
        if self._finished:
            return
        self._finished = True
        self._response.close()
        if not self._exchange.is_over:
            self._exchange.step(event, self._clock())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(aborted=True)


async def dispatch(
    exchange: Exchange,
    prepare: Callable[[Lease], Prepared],
    pool: Sender,
    *,
    clock: Clock,
    park: Park,
    unix_clock: Clock = time.time,
) -> Answer | Failure:
    """Bring one request to an answer worth relaying, or to the failure to tell the caller about.

    `clock` is the exchange's monotonic clock in seconds. Cancel it when the caller disconnects: the upstream request is
    ended with it. Exceptions of a body source or of `prepare` pass through; the lease is given back in every case.
    """
    driver = _Driver(exchange, prepare, pool, clock=clock, park=park, unix_clock=unix_clock)
    try:
        step = exchange.start(driver.started_at)
        while True:
            # The two steps of a request that goes well are told by their type: matching costs more than what they do.
            if isinstance(step, Send) and exchange.overdue_at is None:
                if driver.response is not None:
                    driver.drop()
                step = exchange.step(await driver.send(step.lease), clock())
            elif isinstance(step, Relay):
                event = await driver.preview() if driver.kind is OutcomeKind.OK and not driver.previewed else None
                if event is None:
                    return driver.answer(step.lease)
                step = exchange.step(event, clock())
            elif isinstance(step, Fail):
                driver.drop()
                return step.failure
            else:
                step = await driver.seldom(step)
    except BaseException:
        driver.drop()
        if not exchange.is_over:
            exchange.step(CallerGone(), clock())
        raise


class _Driver:
    """The loop over steps; holds the response that a `Relay` would hand over."""

    __slots__ = (
        "attempted_at", "buffer", "clock", "exchange", "first_byte_s", "is_stream", "kind", "park", "pool", "prepare",
        "previewed", "response", "started_at", "unix_clock",
    )  # fmt: skip

    def __init__(
        self,
        exchange: Exchange,
        prepare: Callable[[Lease], Prepared],
        pool: Sender,
        *,
        clock: Clock,
        park: Park,
        unix_clock: Clock,
    ) -> None:
        self.exchange = exchange
        self.prepare = prepare
        self.pool = pool
        self.clock = clock
        self.park = park
        self.unix_clock = unix_clock
        self.response: UpstreamResponse | None = None
        self.buffer = b""
        self.kind = OutcomeKind.OK
        self.previewed = self.is_stream = False
        self.first_byte_s = self.attempted_at = 0.0
        self.started_at = clock()

    def drop(self) -> None:
        """Close the response that is not going to be relayed."""
        response, self.response = self.response, None
        if response is not None:
            response.close()

    async def seldom(self, step: Step) -> Step:
        """Do what is seldom needed: wait, or send to two keys at once."""
        self.drop()
        match step:
            case Send(lease):
                following, twin = await race(self.exchange, lease, self.twin, clock=self.clock)
                self.adopt(twin)
                return following
            case Pause():
                parked = await self.park(step)
                return self.exchange.step(Woke() if parked else NotParked(), self.clock())
            case _:
                raise AssertionError("the exchange ended without an answer or a failure")

    async def attempt(self, lease: Lease) -> Answered | Broke:
        """Send and read on until the answer is known to be one: what a race is decided by."""
        event = await self.send(lease)
        if isinstance(event, Broke) or event.kind is not OutcomeKind.OK:
            return replace(event, lease=lease)
        found = await self.preview()
        self.previewed = True
        if isinstance(found, Broke):
            return replace(found, lease=lease)
        return replace(event, kind=self.kind, first_byte_s=self.first_byte_s, lease=lease)

    def twin(self) -> _Driver:
        """Return a driver of the same exchange for one attempt of a race."""
        twin = _Driver(
            self.exchange, self.prepare, self.pool, clock=self.clock, park=self.park, unix_clock=self.unix_clock
        )
        twin.started_at = self.started_at
        return twin

    def adopt(self, twin: _Driver) -> None:
        """Take over the attempt of `twin`, which holds nothing any more."""
        self.response, twin.response = twin.response, None
        self.buffer, self.kind, self.previewed = twin.buffer, twin.kind, twin.previewed
        self.is_stream = twin.is_stream
        self.first_byte_s, self.attempted_at = twin.first_byte_s, twin.attempted_at

    async def send(self, lease: Lease) -> Answered | Broke:
        """Make one attempt, up to the answer's head."""
        self.previewed = False
        prepared = self.prepare(lease)
        started_at = self.attempted_at = self.clock()
        deadlines = prepared.deadlines
        if len(self.exchange.attempts) > 1 or self.exchange.paused_s:
            left_s = deadlines.total_s - (started_at - self.started_at)
            deadlines = replace(deadlines, total_s=max(left_s, MIN_TOTAL_S))
        try:
            response = self.response = await self.pool.send(prepared.origin, prepared.request, deadlines)
        except UpstreamError as exc:
            return Broke(classify_error(exc))
        self.buffer = b""
        self.is_stream = _is_event_stream(response)
        if response.status in BODY_DECIDES:
            await self._peek_error(response)
        kind = self.kind = classify(response.status, self.buffer)
        self.first_byte_s = self.clock() - started_at
        told = response.shape.limits(prepared.hint_style, response.values)
        hint = None if told is None else parse_hint(told, prepared.hint_style, now_unix=self.unix_clock())
        if kind is OutcomeKind.RATE_LIMITED and self.buffer:
            hint = with_body(hint, self.buffer)
        return Answered(response.status, kind, hint, self.first_byte_s)

    async def _peek_error(self, response: UpstreamResponse) -> None:
        try:
            if response.ended:
                self.buffer = await response.read()
                return
            async with asyncio.timeout(PEEK_S):
                while len(self.buffer) < PEEK_BYTES and (data := await response.read()):
                    self.buffer += data
        except (UpstreamError, TimeoutError):
            return  # the status alone decides; relaying it would raise the same error again

    async def preview(self) -> Broke | ErrorInStream | None:
        """Read what comes first; None when it may go to the caller."""
        response = self.response
        assert response is not None
        try:
            is_stream = self.is_stream
            patience_until = self.clock() + PREVIEW_S
            while True:
                data = await response.read()
                if data:
                    self.buffer = self.buffer + data if self.buffer else data
                verdict = judge(self.buffer) if is_stream else judge_json(self.buffer, ended=not data)
                if verdict is None and data and self.clock() < patience_until:
                    continue
                if is_stream and data:
                    self.first_byte_s = self.clock() - self.attempted_at
                if verdict is None or verdict is OutcomeKind.OK:
                    return None
                self.kind = verdict
                return ErrorInStream(verdict)
        except UpstreamError as exc:
            self.drop()
            return Broke(classify_error(exc))

    def answer(self, lease: Lease) -> Answer:
        """Hand the response over."""
        response, self.response = self.response, None
        assert response is not None
        return Answer(
            self.exchange,
            lease,
            response,
            buffer=self.buffer,
            kind=self.kind,
            streaming=self.is_stream,
            first_byte_s=self.first_byte_s,
            attempted_at=self.attempted_at,
            clock=self.clock,
        )


def _is_event_stream(response: UpstreamResponse) -> bool:
    at = response.shape.content_type
    return at >= 0 and response.values[at][:17].lower() == b"text/event-stream"
