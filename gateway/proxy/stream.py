"""Relays the provider's answer: each piece goes on as it comes, with backpressure, and is read for usage in passing."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from gateway.balancing.outcome import OutcomeKind
from gateway.metering.sse import AnswerTap, read_whole, says_truncated
from gateway.proxy.channel import Channel, HeaderList
from gateway.proxy.dialects import Shape, error_event
from gateway.proxy.faults import RequestFault, UpstreamFailed, UpstreamSlow
from gateway.proxy.headers import RETURNED, with_capped_delays
from gateway.proxy.record import RequestRecord
from gateway.proxy.screen import KeyScreen, blanked
from gateway.upstream.classify import classify_error
from gateway.upstream.dispatch import Answer
from gateway.upstream.errors import UpstreamError, UpstreamTimeout
from gateway.upstream.message import header_lines

_ATTEMPTS = tuple(b"x-llm-proxy-attempts: %d\r\n" % count for count in range(32))
_WORDS = {kind: kind.value for kind in OutcomeKind}
"""`value` of an enum is looked up in Python, at the cost of two calls."""


def answer_head(answer: Answer, record: RequestRecord) -> tuple[bytes, int]:
    """Return the header lines that the caller gets with `answer`, and the length that they tell, -1 if none."""
    headers = answer.headers_among(RETURNED)
    told = dict(headers)
    length = told.get(b"content-length", b"")
    if answer.status >= 400:
        headers = with_capped_delays(headers, now_unix=record.unix)
    identifier = record.request_id.encode()
    if b"x-request-id" not in told and b"request-id" not in told:
        headers.append((b"x-request-id", identifier))
    headers.append((b"x-llm-proxy-request-id", identifier))
    if record.explanation is not None:
        headers.append((b"x-llm-proxy-explain", record.explanation))
    if record.told is not None:
        headers += record.told
    if record.waited_s:
        headers += queue_headers(record)
    target = record.target
    lines = header_lines(headers) + (target.answer_lines if target else b"") + _ATTEMPTS[min(record.attempts, 31)]
    return lines, int(length) if length.isdigit() else -1


def queue_headers(record: RequestRecord) -> HeaderList:
    """Return what is said of waiting for capacity: how long, and how many stood before it when it came."""
    waited = (b"x-llm-proxy-queued-ms", b"%d" % round(record.waited_s * 1e3))
    if record.queued_behind is None:
        return [waited]
    return [waited, (b"x-llm-proxy-queued-behind", b"%d" % record.queued_behind)]


def relay(
    channel: Channel, answer: Answer, record: RequestRecord, *, shape: Shape, est_input_tokens: int
) -> Coroutine[Any, Any, None]:
    """Return what sends `answer` to the caller, to its end, and brings `answer` to its own.

    When the provider breaks off, a stream ends in an error event of the dialect and any other body is cut, so that the
    caller never takes a part for the whole. Cancellation (the caller is gone) passes through, with usage noted.
    """
    record.status = answer.status
    record.streamed = answer.streaming
    record.outcome = _WORDS[answer.kind]
    est = est_input_tokens if answer.kind is OutcomeKind.OK else 0
    if answer.is_whole and not answer.streaming:
        return _relay_whole(channel, answer, record, est)
    return _relay_parts(channel, answer, record, shape, est)


async def _relay_whole(channel: Channel, answer: Answer, record: RequestRecord, est: int) -> None:
    """Send an answer that is here already: what most are that are no streams."""
    is_accounted, body = False, b""
    try:
        head, length = answer_head(answer, record)
        body = await answer.read()
        if length != len(body):
            if length >= 0:
                raise RuntimeError("the answer is not as long as its content-length")
            head += b"content-length: %d\r\n" % len(body)
        record.usage, record.served_model = read_whole(body, est_input_tokens=est)
        record.write()
        is_accounted = True
        key = record.target.screened if record.target else b""
        await channel.answer(answer.status, blanked(head, key), blanked(body, key))
    finally:
        if not is_accounted:
            record.outcome = OutcomeKind.ABANDONED.value
            record.write()
        is_ok = answer.kind is OutcomeKind.OK
        if record.sized is not None and is_ok and is_accounted:
            record.sized.ended(record.usage, truncated=says_truncated(body))
        answer.close(record.usage if is_ok else None, aborted=not is_accounted)


async def _relay_parts(channel: Channel, answer: Answer, record: RequestRecord, shape: Shape, est: int) -> None:
    """Send an answer that is still coming in."""
    tap = AnswerTap(is_stream=answer.streaming)
    failed: OutcomeKind | None = None
    fault: RequestFault | None = None
    ended = False
    try:
        head, length = answer_head(answer, record)
        key = record.target.screened if record.target else b""
        screen = KeyScreen(key)
        await channel.send_head(answer.status, blanked(head, key), length=length, hold=answer.has_bytes)
        del head
        answer.forget_headers()
        left = length

        def pass_on(piece: bytes) -> bool:
            """Do at once what is done below with a piece that was read; False: it is to be read."""
            nonlocal left
            if left == len(piece) or not channel.is_free:
                return False
            tap.feed(piece)
            left -= len(piece)
            if piece := screen.clean(piece):
                channel.pass_on(piece)
            return True

        try:
            while chunk := await answer.read():
                tap.feed(chunk)
                left -= len(chunk)
                if left == 0:
                    # The whole body is here: its last piece and the end leave in one write.
                    ended = True
                    _account(tap, record, est)
                    await channel.finish(screen.clean(chunk, is_last=True))
                    break
                if chunk := screen.clean(chunk):
                    await channel.send(chunk)
                await answer.pour(pass_on)
            else:
                ended = True
                _account(tap, record, est)
                await channel.finish(screen.clean(b"", is_last=True))
        except UpstreamError as error:
            failed = classify_error(error)
            record.outcome = failed.value
            fault = _fault(error)
        if fault is not None:
            _account(tap, record, est)
            if answer.streaming and length < 0 and tap.at_event_boundary:
                await channel.finish(error_event(shape, record.operation, fault, record.request_id))
            else:
                channel.abort()
    finally:
        aborted = not ended and failed is None
        if aborted:
            record.outcome = OutcomeKind.ABANDONED.value
            _account(tap, record, est)
        ok = answer.kind is OutcomeKind.OK
        if record.sized is not None and ok and ended:
            record.sized.ended(record.usage, truncated=tap.is_truncated)
        answer.close(record.usage if ok else None, aborted=aborted)


def _account(tap: AnswerTap, record: RequestRecord, est_input_tokens: int) -> None:
    """Note what the answer used and write the row."""
    record.usage, record.served_model = tap.result(est_input_tokens=est_input_tokens)
    record.write()


def _fault(error: UpstreamError) -> RequestFault:
    if isinstance(error, UpstreamTimeout):
        return UpstreamSlow("The provider stopped sending.", hint="Send the request again.")
    return UpstreamFailed("The provider broke off its answer.", hint="Send the request again.")
