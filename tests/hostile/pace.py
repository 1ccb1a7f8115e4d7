"""Callers that are slow, never finish, or leave: each is let go of in time, and what it had asked for is ended."""

from __future__ import annotations

from tests.hostile.framing import CHUNKED
from tests.hostile.wire import AUTH, Case, Drip, Leave, Until, Wait, ident, post

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
    Case(
        "half a head behind a slow stream",
        (post(ident("half a head behind a slow stream 0"), extra=b',"stream":true,"lasting":1') + HEAD,),
        (200, 408),
        "closed",
        1,
        "head_timeout",
    ),
    Case(
        "half a body behind a slow answer",
        (
            post(ident("half a body behind a slow answer 0"), extra=b',"lasting":1')
            + post(ident("x"), framing=b"content-length: 500\r\n"),
        ),
        (200, 408),
        "closed",
        1,
        "did not arrive",
    ),
    Case("idle after an answer", (post(ident("idle after an answer 0")),), (200,), "closed"),
    Case(
        "idle after a refusal that came before the body",
        (
            post(ident("x"), auth=b"").partition(b"{")[0],
            Wait(0.3),
            b"{" + post(ident("x"), auth=b"").partition(b"{")[2],
        ),
        (401,),
        "closed",
        0,
    ),
    Case(
        "a body that goes on after the refusal",
        (
            post(ident("x"), auth=b"", framing=b"content-length: 5000\r\n", body=b"{"),
            Drip(LONG, 0.2),
        ),
        (401,),
        "closed",
        0,
    ),
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
    *(
        Case(
            f"{how}: a pipeline behind it",
            (
                post(ident(f"{how}: a pipeline behind it 0"), extra=HANG)
                + post(ident(f"{how}: a pipeline behind it 1")),
                Wait(0.1),
                Leave(how),
            ),
            (),
            "gone",
        )
        for how in ("fin", "reset")
    ),
    Case(
        "leaves in an upload",
        (
            b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: g\r\n"
            + AUTH
            + b"content-type: multipart/form-data; boundary=x\r\ncontent-length: 900000\r\n\r\n"
            b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n'
            b'--x\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n' + b"a" * 600_000,
            Wait(0.2),
            Leave("reset"),
        ),
        (),
        "gone",
        0,
    ),
]
