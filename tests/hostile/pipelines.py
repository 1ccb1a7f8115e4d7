"""Requests sent without waiting for answers: these come in order, each whole, none mixed with another."""

from __future__ import annotations

from tests.hostile.framing import CHUNKED
from tests.hostile.wire import AUTH, Case, Drip, Until, chat, chunked, ident, post

STREAM = b',"stream":true'
SLOW = b',"slow":1'
MODELS = b"GET /v1/models HTTP/1.1\r\nhost: g\r\n" + AUTH + b"\r\n"
BAD = b"GET /v1/models HTTP/1.1\r\nx y: z\r\n\r\n"


def burst(name: str, *extras: bytes) -> bytes:
    return b"".join(post(ident(f"{name} {number}"), extra=extra) for number, extra in enumerate(extras))


def _case(name: str, *extras: bytes) -> Case:
    return Case(name, (burst(name, *extras),), (200,) * len(extras), "open", len(extras))


PIPELINES = [
    _case("two", b"", b""),
    _case("fifty", *[b""] * 50),
    _case("streams and plain answers", STREAM, b"", STREAM, b"", STREAM),
    _case("the first is slow", SLOW, b"", STREAM, b""),
    _case("large bodies", *[b',"x":"%b"' % (b"y" * 60_000)] * 5),
    Case(
        "in pieces of seven bytes",
        (Drip(burst("in pieces of seven bytes", b"", STREAM, b""), 0.0, 7),),
        (200, 200, 200),
        "open",
        3,
    ),
    Case(
        "chunked and with a length by turns",
        (
            post(
                ident("chunked and with a length by turns 0"),
                framing=CHUNKED,
                body=chunked(chat(ident("chunked and with a length by turns 0"))),
            )
            + post(ident("chunked and with a length by turns 1"))
            + post(
                ident("chunked and with a length by turns 2"),
                framing=CHUNKED,
                body=chunked(chat(ident("chunked and with a length by turns 2")), 1000),
            ),
        ),
        (200, 200, 200),
        "open",
        3,
    ),
    Case(
        "nothing after Connection: close",
        (post(ident("nothing after Connection: close 0"), b"connection: close\r\n") + post(ident("never 1")),),
        (200,),
        "closed",
    ),
    Case(
        "the third is malformed",
        (burst("the third is malformed", SLOW, b"") + BAD,),
        (200, 200, 400),
        "closed",
        2,
        "malformed_http",
    ),
    Case(
        "refused ones between served ones",
        (
            post(ident("refused ones between served ones 0"))
            + post(ident("x"), auth=b"")
            + post(ident("refused ones between served ones 2"))
            + post(ident("x"), body=b"{")
            + post(ident("refused ones between served ones 4"), extra=STREAM),
        ),
        (200, 401, 200, 400, 200),
        "open",
        3,
    ),
    Case(
        "other paths between",
        (
            MODELS
            + post(ident("other paths between 1"))
            + b"GET /livez HTTP/1.1\r\nhost: g\r\n\r\n"
            + MODELS
            + b"GET /api/v1/nothing HTTP/1.1\r\nhost: g\r\n\r\n"
            + post(ident("other paths between 5")),
        ),
        (200, 200, 200, 200, 404, 200),
        "open",
        2,
    ),
    Case(
        "an expectation in the middle",
        (
            post(ident("an expectation in the middle 0"), extra=SLOW)
            + post(ident("an expectation in the middle 1"), b"expect: 100-continue\r\n").partition(b"{")[0],
            Until(b"100 Continue\r\n\r\n"),
            chat(ident("an expectation in the middle 1")),
        ),
        (200, 200),
        "open",
        2,
        interim=1,
    ),
]
