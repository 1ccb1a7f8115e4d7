"""Drives one `Exchange`: does the IO its steps ask for and reports what came of it.

All retry and failover logic is in `gateway.balancing.exchange`; here is only the doing. Whatever happens, the exchange
is brought to its end, so its lease is observed exactly once: by `Answer.finish`, by leaving `async with answer`, or,
when this code is cancelled because the caller is gone, on the way out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

import msgspec

from gateway.balancing.decision import Lease
from gateway.balancing.error_hints import with_body
from gateway.balancing.exchange import Exchange
from gateway.balancing.hints import parse_hint
from gateway.balancing.outcome import OutcomeKind
from gateway.balancing.steps import (
    Answered,
    Broke,
    CallerGone,
    Fail,
    Failure,
    NotParked,
    Pause,
    Relay,
    Send,
    Woke,
)
from gateway.upstream.answer import Answer, BeginBy, Clock
from gateway.upstream.classify import classify_error
from gateway.upstream.errors import UpstreamError, is_unsent
from gateway.upstream.message import Deadlines, Origin, UpstreamRequest
from gateway.upstream.race import race
from gateway.upstream.response import UpstreamResponse

__all__ = ["MIN_TOTAL_S", "Answer", "BeginBy", "Park", "Prepared", "Sender", "dispatch"]

MIN_TOTAL_S = 0.001


class Prepared(msgspec.Struct, frozen=True):
    """A lease turned into a request: where to, what, and how to read the limits in the answer's headers.

    `deadlines.total_s` bounds all attempts and pauses together: a later attempt gets what is left of it.
    """

    origin: Origin
    request: UpstreamRequest
    hint_style: str = "generic"
    deadlines: Deadlines = Deadlines()


class Sender(Protocol):
    """What dispatch needs of `ConnectionPool`."""

    async def send(self, origin: Origin, request: UpstreamRequest, deadlines: Deadlines) -> UpstreamResponse:
        """Send and return at the answer's head, or raise an UpstreamError."""


Park = Callable[[Pause], Awaitable[bool]]
"""Waits out a pause: True when it is over, False when there was no room to wait."""


async def dispatch(
    exchange: Exchange,
    prepare: Callable[[Lease], Prepared],
    pool: Sender,
    *,
    clock: Clock,
    park: Park,
    unix_clock: Clock = time.time,
    begin_by: BeginBy | None = None,
) -> Answer | Failure:
    """Bring one request to an answer worth relaying, or to the failure to tell the caller about.

    `clock` is the exchange's monotonic clock in seconds; an answer that has not begun by `begin_by` is given up.
    Cancel it when the caller disconnects: the upstream request is
    ended with it. Exceptions of a body source or of `prepare` pass through; the lease is given back in every case.
    """
    started_at = clock()
    send = partial(
        _attempt,
        exchange,
        prepare,
        pool,
        clock=clock,
        unix_clock=unix_clock,
        started_at=started_at,
        begin_by=begin_by,
    )

    def begun(lease: Lease) -> _Runner:
        return _Runner(partial(send, prepared=prepare(lease)), begin_by)

    answer: Answer | None = None
    try:
        step = exchange.start(started_at)
        while True:
            # The two steps of a request that goes well are told by their type: matching costs more than what they do.
            if isinstance(step, Send) and not exchange.hedges:
                if answer is not None:
                    answer.drop()
                event, answer = await send(step.lease)
                step = exchange.step(event, clock())
            elif isinstance(step, Relay):
                assert answer is not None
                unsure = answer.kind is OutcomeKind.OK and not answer.is_previewed
                found = await answer.preview(begin_by) if unsure else None
                if found is None:
                    return answer
                step = exchange.step(found, clock())
            else:
                if answer is not None:
                    answer.drop()
                    answer = None
                match step:
                    case Send(lease):
                        step, runner = await race(exchange, lease, begun, clock=clock)
                        answer, runner.answer = runner.answer, None
                    case Pause():
                        parked = await park(step)
                        step = exchange.step(Woke() if parked else NotParked(), clock())
                    case Fail(failure):
                        return failure
                    case _:
                        raise AssertionError("the exchange ended without an answer or a failure")
    except BaseException:
        if answer is not None:
            answer.drop()
        if not exchange.is_over:
            exchange.step(CallerGone(), clock())
        raise


async def _attempt(
    exchange: Exchange,
    prepare: Callable[[Lease], Prepared],
    pool: Sender,
    lease: Lease,
    *,
    clock: Clock,
    unix_clock: Clock,
    started_at: float,
    begin_by: BeginBy | None,
    prepared: Prepared | None = None,
) -> tuple[Answered | Broke, Answer | None]:
    """Make one attempt, up to the answer's head; `started_at`: when the first one of the exchange was begun.

    `prepared` is what `prepare` has made of the lease already.
    """
    prepared = prepare(lease) if prepared is None else prepared
    attempted_at = clock()
    deadlines = prepared.deadlines
    if len(exchange.attempts) > 1 or exchange.paused_s:
        left_s = deadlines.total_s - (attempted_at - started_at)
        deadlines = replace(deadlines, total_s=max(left_s, MIN_TOTAL_S))
    sending = pool.send(prepared.origin, prepared.request, deadlines)
    try:
        if begin_by is None:
            response = await sending
        else:
            async with asyncio.timeout(max(0.0, begin_by.at - attempted_at)):
                response = await sending
    except UpstreamError as exc:
        return Broke(classify_error(exc)), None
    except TimeoutError as exc:
        if begin_by is None:
            raise
        return begin_by.missed(lease, clock() - attempted_at, was_sent=not is_unsent(exc)), None
    answer = Answer(exchange, lease, response, attempted_at, clock)
    try:
        told = response.shape.limits(prepared.hint_style, response.values)
        hint = None if told is None else parse_hint(told, prepared.hint_style, now_unix=unix_clock())
        if not 200 <= response.status < 300:
            body = await answer.classify()
            if body and answer.kind is OutcomeKind.RATE_LIMITED:
                hint = with_body(hint, body)
    except BaseException:
        answer.drop()
        raise
    return Answered(answer.status, answer.kind, hint, answer.first_byte_s), answer


_Attempt = Callable[[Lease], Awaitable[tuple[Answered | Broke, Answer | None]]]


class _Runner:
    """One attempt of a race; holds the answer that came of it."""

    __slots__ = ("_begin_by", "_send", "answer")

    def __init__(self, send: _Attempt, begin_by: BeginBy | None) -> None:
        self._send = send
        self._begin_by = begin_by
        self.answer: Answer | None = None

    async def attempt(self, lease: Lease) -> Answered | Broke:
        """Send and read on until the answer is known to be one: what a race is decided by."""
        event, answer = await self._send(lease)
        self.answer = answer
        if answer is None or isinstance(event, Broke) or answer.kind is not OutcomeKind.OK:
            return replace(event, lease=lease)
        found = await answer.preview(self._begin_by)
        if isinstance(found, Broke):
            return replace(found, lease=lease)
        return replace(event, kind=answer.kind, first_byte_s=answer.first_byte_s, lease=lease)

    def drop(self) -> None:
        """Close what it holds."""
        if self.answer is not None:
            self.answer.drop()
