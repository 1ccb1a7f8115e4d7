"""Callers that are slow, never finish, or leave: each is let go of in time, and what it had asked for is ended."""

from __future__ import annotations

from tests.hostile.framing import CHUNKED
from tests.hostile.wire import Case, Drip, Leave, Until, Wait, ident, post

HEAD = post(ident("x")).partition(b"\r\n\r\n")[0]
HANG = b',"hang":1'
ENDLESS = b',"stream":true,"endless":1'
LONG = b" " * 400

PACE = [
    Case("says nothing", (), (), "closed", 0),
    Case("half a head", (HEAD,), (408,), "closed", 0, "head_timeout"),
    Case("half a request line", (b"POST /v1/ch",), (408,), "closed", 0, "head_timeout"),
    Case("HTTP/0.9", (b"GET /v1/models\r\n",), (408,), "closed", 0, "head_timeout"),
    Case("a head byte by byte", (Drip(HEAD + b"\r\n" + b"x: y\r\n" * 100, 0.05),), (408,), "closed", 0, "head_timeout"),
    Case(
        "a second head byte by byte",
        (
            post(ident("a second head byte by byte 0")),
            Until(b"usage"),
            Drip(HEAD + b"\r\n" + b"x: y\r\n" * 100, 0.05),
        ),
        (200, 408),
        "closed",
        1,
        "head_timeout",
    ),
    Case("half a body", (post(ident("x"), framing=b"content-length: 500\r\n"),), (408,), "closed", 0, "did not arrive"),
    Case(
        "no body at all",
        (post(ident("x"), framing=b"content-length: 500\r\n", body=b""),),
        (408,),
        "closed",
        0,
        "did not arrive",
    ),
    Case(
        "a body byte by byte",
        (
            post(ident("x"), framing=b"content-length: 500\r\n", body=b"{"),
            Drip(LONG, 0.1),
        ),
        (408,),
        "closed",
        0,
        "did not arrive",
    ),
    Case(
        "chunks that never end",
        (
            post(ident("x"), framing=CHUNKED, body=b"1\r\n{\r\n"),
            Drip(b"1\r\n \r\n" * 100, 0.1, 6),
        ),
        (408,),
        "closed",
        0,
        "did not arrive",
    ),
    Case(
        "chunks without the last one",
        (post(ident("x"), framing=CHUNKED, body=b"1\r\n{\r\n"),),
        (408,),
        "closed",
        0,
        "did not arrive",
    ),
    Case(
        "a trailer that never ends",
        (
            post(ident("x"), framing=CHUNKED, body=b"1\r\n{\r\n0\r\n"),
            Drip(b"x: y\r\n" * 100, 0.1),
        ),
        (408,),
        "closed",
        0,
        "did not arrive",
    ),
    Case("idle after an answer", (post(ident("idle after an answer 0")),), (200,), "closed"),
    Case(
        "a body that goes on after the bound",
        (
            post(ident("x"), framing=b"content-length: 50000000\r\n", body=b"{"),
            Drip(LONG, 0.2),
        ),
        (413,),
        "closed",
        0,
    ),
]

LEAVERS = [
    Case("leaves in the head", (HEAD, Leave("fin")), (), "gone", 0),
    Case("resets in the head", (HEAD, Leave("reset")), (), "gone", 0),
    Case("leaves in the body", (post(ident("x"), framing=b"content-length: 500\r\n"), Leave("fin")), (), "gone", 0),
    Case("resets in the body", (post(ident("x"), framing=b"content-length: 500\r\n"), Leave("reset")), (), "gone", 0),
    *(
        Case(
            f"{how}: waits for the head",
            (
                post(ident(f"{how}: waits for the head 0"), extra=HANG),
                Wait(0.1),
                Leave(how),
            ),
            (),
            "gone",
        )
        for how in ("fin", "reset")
    ),
    *(
        Case(
            f"{how}: in the stream",
            (
                post(ident(f"{how}: in the stream 0"), extra=ENDLESS),
                Until(b"data: "),
                Leave(how),
            ),
            (),
            "gone",
        )
        for how in ("fin", "reset")
    ),
]
