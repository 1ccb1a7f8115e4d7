"""The corpus of hostile providers: what each does on the wire, and what its caller gets in spite of it."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.hostile.provider import STREAM_HEAD, Script, Seen, Wire, chunk, event_of, good_answer, good_body, whole

Ending = Literal["whole", "cut", "error event"]
MIB = 1024 * 1024
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
SMUGGLED = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 12\r\n\r\n"SMUGGLED!!"'
BOMB = gzip.compress(bytes(MIB)) * 300
"""300 MB in 300 KB: many members are one gzip file (RFC 1952 section 2.2)."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """One hostile provider behind the only key of a pool.

    `alone` is the status that the caller gets; `ending` how its body ends; `holds` what stands in it. `saved`: with a
    second, good key in the pool the caller gets a good answer. `pause_s` lies between two requests.
    """

    name: str
    script: Script
    alone: int = 200
    ending: Ending = "whole"
    holds: bytes = b""
    saved: bool = False
    stream: bool = False
    pause_s: float = 0.0


def says(*pieces: bytes, then: Literal["keep", "close", "reset", "hang"] = "close") -> Script:
    """Write `pieces` one after the other, then end in some way."""

    async def script(wire: Wire, seen: Seen) -> None:
        del seen
        for piece in pieces:
            await wire.say(piece)
            await asyncio.sleep(0.01)
        await end(wire, then)

    return script


async def end(wire: Wire, how: Literal["keep", "close", "reset", "hang"]) -> None:
    if how == "hang":
        await wire.gone.wait()
    elif how == "reset":
        wire.reset()
    elif how == "close":
        wire.writer.close()


def answers(make: Callable[[Seen], bytes], then: Literal["keep", "close", "reset", "hang"] = "keep") -> Script:
    """Write what `make` makes of the request."""

    async def script(wire: Wire, seen: Seen) -> None:
        await wire.say(make(seen))
        await end(wire, then)

    return script


def streams(then: Literal["close", "reset", "hang"], events: int = 2) -> Script:
    """Begin a stream, and end it in some way."""

    async def script(wire: Wire, seen: Seen) -> None:
        await wire.say(STREAM_HEAD)
        for _ in range(events):
            await wire.say(chunk(event_of(seen)))
            await asyncio.sleep(0.02)
        await end(wire, then)

    return script


async def trickle(wire: Wire, seen: Seen) -> None:
    for byte in whole(good_body(seen)):
        await wire.say(bytes((byte,)))
        await asyncio.sleep(0)


async def answers_on_a_second_connection(wire: Wire, seen: Seen) -> None:
    """Give up a kept connection at the moment when it is used again."""
    if wire.served:
        wire.reset()
    else:
        await good_answer(wire, seen)


def _interim(count: int) -> Callable[[Seen], bytes]:
    return lambda seen: b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * count + whole(good_body(seen))


def _framed(framing: bytes, body: bytes) -> Script:
    return says(HEAD + framing + b"\r\n" + body)


BEFORE_THE_HEAD = [
    Upstream("closes at once", says(), 502, holds=b"upstream_failed", saved=True),
    Upstream("resets at once", says(then="reset"), 502, holds=b"upstream_failed", saved=True),
    Upstream("hangs before the head", says(then="hang"), 504, holds=b"upstream_timeout", saved=True),
    Upstream("hangs in the head", says(HEAD, then="hang"), 504, holds=b"upstream_timeout", saved=True),
    Upstream("closes in the head", says(HEAD), 502, saved=True),
    Upstream("resets in the head", says(HEAD, then="reset"), 502, saved=True),
    Upstream("speaks no HTTP", says(b"hello\r\n"), 502, saved=True),
    Upstream("speaks TLS", says(b"\x15\x03\x01\x00\x02\x02\x28"), 502, saved=True),
    Upstream("a status of letters", says(b"HTTP/1.1 abc OK\r\n\r\n"), 502, saved=True),
    Upstream("HTTP/2.0", says(b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n"), 502, saved=True),
    Upstream("switches protocols", says(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n"), 502, saved=True),
    Upstream("a header of 100 KB", says(HEAD + b"x: " + b"a" * 100_000 + b"\r\n\r\n"), 502, saved=True),
    Upstream("headers without end", says(HEAD, *[b"x: y\r\n" * 5000] * 20), 502, saved=True),
    Upstream("early hints without end", answers(_interim(200)), 502, saved=True),
    Upstream("some early hints", answers(_interim(3))),
    Upstream(
        "a redirect",
        says(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"),
        302,
        saved=True,
    ),
]

FRAMING = [
    Upstream(
        "length and chunked",
        _framed(b"content-length: 5\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\n"),
        502,
        saved=True,
    ),
    Upstream("two lengths", _framed(b"content-length: 5\r\ncontent-length: 6\r\n", b"hello!"), 502, saved=True),
    Upstream("a signed length", _framed(b"content-length: +5\r\n", b"hello"), 502, saved=True),
    Upstream("a compressed coding", _framed(b"transfer-encoding: gzip, chunked\r\n", b"0\r\n\r\n"), 502, saved=True),
    Upstream("a folded header", _framed(b"x: a\r\n b\r\ncontent-length: 2\r\n", b"{}"), 502, saved=True),
    Upstream("a NUL in a header", _framed(b"x: \x00\r\ncontent-length: 2\r\n", b"{}"), 502, saved=True),
    Upstream("bare LFs", says(b"HTTP/1.1 200 OK\ncontent-length: 2\n\n{}"), 502, saved=True),
    Upstream(
        "a wrong first chunk size",
        _framed(b"transfer-encoding: chunked\r\n", b"0x2\r\n{}\r\n0\r\n\r\n"),
        502,
        saved=True,
    ),
    Upstream("no length", answers(lambda seen: HEAD + b"\r\n" + good_body(seen), "close")),
    Upstream(
        "HTTP/1.0",
        answers(lambda seen: b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n" + good_body(seen), "close"),
    ),
    Upstream(
        "trailers",
        answers(
            lambda seen: (
                HEAD
                + b"transfer-encoding: chunked\r\n\r\n"
                + chunk(good_body(seen))
                + b"0\r\nx-request-id: smuggled\r\n\r\n"
            )
        ),
    ),
    Upstream(
        "chunk extensions",
        answers(
            lambda seen: (
                HEAD
                + b"transfer-encoding: chunked\r\n\r\n%x;a=b\r\n%b\r\n0;c\r\n\r\n"
                % (len(good_body(seen)), good_body(seen))
            )
        ),
    ),
    Upstream("byte by byte", trickle),
]

IN_THE_BODY = [
    Upstream("closes in the body", answers(lambda seen: whole(good_body(seen))[:-20], "close"), ending="cut"),
    Upstream("resets in the body", answers(lambda seen: whole(good_body(seen))[:-20], "reset"), ending="cut"),
    Upstream("hangs in the body", answers(lambda seen: whole(good_body(seen))[:-20], "hang"), ending="cut"),
    Upstream(
        "a length of an exabyte",
        answers(lambda seen: HEAD + b"content-length: 1000000000000000000\r\n\r\n" + good_body(seen), "close"),
        ending="cut",
    ),
    Upstream(
        "no length and a reset", answers(lambda seen: HEAD + b"\r\n" + good_body(seen)[:-9], "reset"), ending="cut"
    ),
    Upstream(
        "a wrong second chunk size",
        answers(
            lambda seen: HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk(good_body(seen)) + b"-1\r\n", "close"
        ),
        ending="cut",
    ),
    Upstream(
        "chunks without the last one",
        answers(lambda seen: HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk(good_body(seen)), "close"),
        ending="cut",
    ),
    Upstream("a stream that closes", streams("close"), ending="error event", holds=b"upstream_failed", stream=True),
    Upstream("a stream that resets", streams("reset"), ending="error event", holds=b"upstream_failed", stream=True),
    Upstream("a stream that hangs", streams("hang"), ending="error event", holds=b"upstream_timeout", stream=True),
    Upstream(
        "a stream that hangs before its first event",
        streams("hang", 0),
        504,
        holds=b"upstream_timeout",
        saved=True,
        stream=True,
    ),
]

BEHIND_THE_ANSWER = [
    Upstream("a second answer at once", answers(lambda seen: whole(good_body(seen)) + SMUGGLED)),
    Upstream("bytes after the answer", answers(lambda seen: whole(good_body(seen)) + b"SMUGGLED")),
    Upstream(
        "a length that is too short",
        answers(lambda seen: HEAD + b"content-length: %d\r\n\r\n" % len(good_body(seen)) + good_body(seen) + SMUGGLED),
    ),
    Upstream("a second answer a moment later", says(whole(b'{"model":"m"}'), SMUGGLED, then="keep"), pause_s=0.1),
    Upstream("204 with a body", says(b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello", then="keep"), 204),
    Upstream("a kept connection that is given up when it is used", answers_on_a_second_connection),
]

UPSTREAMS = [*BEFORE_THE_HEAD, *FRAMING, *IN_THE_BODY, *BEHIND_THE_ANSWER]
