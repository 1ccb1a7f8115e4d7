"""How an answer goes out: at its pace, or broken in the way that a fault says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.simulation.channel import Channel
from gateway.simulation.faults import Fault, FaultKind
from gateway.simulation.wire import EVENT_STREAM, Dialect, Reply, Stream, refusal

Produced = Reply | Stream
_SLOW_BYTES = 16
_SLOW_S = 0.05
_MISSING_BYTES = 64
_GARBAGE = b'{"id": "chatcmpl-'


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds until the head, and for each token after it."""

    first_byte_s: float
    per_token_s: float


def fault_message(status: int) -> str:
    """Return what providers write with a status."""
    return {
        401: "Incorrect API key provided.",
        403: "You are not allowed to do this.",
        429: "Rate limit reached for requests.",
        503: "The engine is currently overloaded, please try again later.",
        529: "Overloaded",
    }.get(status, "The server had an error while processing your request. Sorry about that!")


def status_of(produced: Produced, fault: Fault | None) -> int:
    """Return the status that the answer will have."""
    if isinstance(produced, Stream):
        return 200
    return 500 if fault is not None and fault.kind is FaultKind.STREAM_ERROR else produced.status


async def plain(channel: Channel, reply: Reply, headers: Sequence[tuple[str, str]]) -> None:
    """Send a whole reply at once."""
    told = [("content-type", reply.content_type), ("content-length", str(len(reply.body))), *headers]
    await channel.head(reply.status, _encode(told))
    await channel.chunk(reply.body, more=False)


async def deliver(
    channel: Channel,
    produced: Produced,
    headers: Sequence[tuple[str, str]],
    *,
    pace: Pace,
    fault: Fault | None,
    dialect: Dialect,
) -> None:
    """Send an answer, at its pace, with the faults that strike while it is sent."""
    if pace.first_byte_s:
        await channel.wait(pace.first_byte_s)
    if isinstance(produced, Stream):
        await _stream(channel, produced, headers, pace, fault)
        return
    if pace.per_token_s and produced.usage.output:
        await channel.wait(pace.per_token_s * produced.usage.output)
    if fault is None or fault.kind is FaultKind.DELAY:
        await plain(channel, produced, headers)
        return
    await _broken_body(channel, produced, headers, fault, dialect)


async def _broken_body(
    channel: Channel, reply: Reply, headers: Sequence[tuple[str, str]], fault: Fault, dialect: Dialect
) -> None:
    body = reply.body
    if fault.kind is FaultKind.STREAM_ERROR:
        await plain(channel, refusal(dialect, 500, fault_message(500)), headers)
        return
    if fault.kind is FaultKind.MALFORMED:
        await plain(channel, Reply(_GARBAGE), headers)
        return
    length = len(body) + (_MISSING_BYTES if fault.kind is FaultKind.SHORT_BODY else 0)
    told = [("content-type", reply.content_type), ("content-length", str(length)), *headers]
    await channel.head(reply.status, _encode(told))
    if fault.kind is FaultKind.SLOW:
        for at in range(0, len(body), _SLOW_BYTES):
            await channel.wait(_SLOW_S if fault.delay_s is None else fault.delay_s)
            await channel.chunk(body[at : at + _SLOW_BYTES], more=True)
        await channel.chunk(b"", more=False)
        return
    await channel.chunk(body if fault.kind is FaultKind.SHORT_BODY else body[: len(body) // 2], more=True)
    if fault.kind is FaultKind.STALL:
        await channel.wait(fault.delay_s)
    await channel.cut()


async def _stream(
    channel: Channel, stream: Stream, headers: Sequence[tuple[str, str]], pace: Pace, fault: Fault | None
) -> None:
    kind = fault.kind if fault is not None else None
    breaks = kind in (FaultKind.CUT, FaultKind.STALL, FaultKind.STREAM_ERROR, FaultKind.MALFORMED, FaultKind.SHORT_BODY)
    break_at = len(stream.events)
    if fault is not None and breaks:
        early = kind in (FaultKind.STREAM_ERROR, FaultKind.MALFORMED)
        break_at = fault.after if fault.after is not None else stream.content_at + (0 if early else 1)
    gap_s = pace.per_token_s
    if fault is not None and kind is FaultKind.SLOW:
        gap_s = _SLOW_S if fault.delay_s is None else fault.delay_s
    told = [("content-type", EVENT_STREAM), ("cache-control", "no-cache"), *headers]
    await channel.head(200, _encode(told))
    for place, chunk in enumerate(stream.events[:break_at]):
        if gap_s and place > stream.content_at:
            await channel.wait(gap_s)
        elif place:
            # Gives other requests a turn, and makes each event a write of its own, as it is in the wild.
            await channel.wait(0.0)
        await channel.chunk(chunk, more=True)
    if not breaks or fault is None:
        await channel.chunk(b"", more=False)
    elif kind is FaultKind.STREAM_ERROR:
        await channel.chunk(stream.error, more=False)
    elif kind is FaultKind.MALFORMED:
        await channel.chunk(b"data: " + _GARBAGE + b"\n\n", more=False)
    else:
        if kind is FaultKind.STALL:
            await channel.wait(fault.delay_s)
        await channel.cut()


def _encode(headers: Sequence[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
