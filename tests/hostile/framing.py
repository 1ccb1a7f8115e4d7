"""Requests whose end two readers could see at different places (RFC 9112 sections 2.2, 5 to 7, 11.2)."""

from __future__ import annotations

from tests.hostile.wire import AUTH, Case, Step, chat, chunked, ident, post

CHUNKED = b"transfer-encoding: chunked\r\n"
HIDDEN = b"POST /v1/chat/completions HTTP/1.1\r\nhost: smuggled\r\ncontent-length: 0\r\n\r\n"
"""What a smuggler wants the provider to take for a request of its own."""


def refused(name: str, *script: Step, code: str = "malformed_http", status: int = 400) -> Case:
    return Case(name, script, (status,), "closed", 0, code)


def sent(name: str, headers: bytes = b"", **more: bytes) -> bytes:
    return post(ident(f"{name} 0"), headers, **more)


def framed(name: str, framing: bytes, body: bytes | None = None) -> bytes:
    return post(ident(f"{name} 0"), framing=framing, body=body)


def with_length(name: str, value: bytes) -> Case:
    return refused(name, framed(name, b"content-length:%b\r\n" % value))


def with_coding(name: str, line: bytes, *, status: int = 400, code: str = "malformed_http") -> Case:
    body = chunked(chat(ident(f"{name} 0")))
    return refused(name, framed(name, line, body), status=status, code=code)


def with_chunks(name: str, body: bytes) -> Case:
    return refused(name, framed(name, CHUNKED, body))


def _good(name: str, script: bytes, reached: int = 1, status: int = 200) -> Case:
    return Case(name, (script,), (status,), "open", reached)


def _chunks(name: str) -> bytes:
    return chunked(chat(ident(f"{name} 0")))


LENGTHS = [
    refused(
        "length and chunked",
        framed("length and chunked", b"content-length: 5\r\n" + CHUNKED, b"0\r\n\r\n" + HIDDEN),
    ),
    refused(
        "chunked and length",
        framed("chunked and length", CHUNKED + b"content-length: 150\r\n", b"0\r\n\r\n" + HIDDEN),
    ),
    refused("two lengths", framed("two lengths", b"content-length: 0\r\ncontent-length: 90\r\n", HIDDEN)),
    refused("the same length twice", framed("the same length twice", b"content-length: 99\r\n" * 2, b"a" * 99)),
    with_length("a list of lengths", b" 99, 99"),
    with_length("a signed length", b" +99"),
    with_length("a negative length", b" -1"),
    with_length("a hexadecimal length", b" 0x63"),
    with_length("a length with a space in it", b" 9 9"),
    with_length("a length beyond 64 bits", b" 18446744073709551617"),
    with_length("a length with a unit", b" 99b"),
    with_length("an empty length", b""),
    with_length("a length with a vertical tab", b" \x0b99"),
    refused("space before the colon of a length", framed("space before the colon", b"content-length : 99\r\n")),
    refused("a folded length", framed("a folded length", b"content-length: 9\r\n 9\r\n")),
    Case(
        "neither length nor chunks",
        (framed("neither", b"", HIDDEN.replace(b"host: smuggled", b"host: gateway")),),
        (400, 401),
        "open",
        0,
    ),
    *(
        _good(name, framed(name, b"content-length: %b%d%b\r\n" % (before, len(chat(ident(f"{name} 0"))), behind)))
        for name, before, behind in (
            ("a length behind five thousand zeros", b"0" * 5000, b""),
            ("a length with white space around it", b" \t", b" \t "),
        )
    ),
    _good(
        "a length with leading zeros",
        framed(
            "a length with leading zeros",
            b"content-length: 000%d\r\n" % len(chat(ident("a length with leading zeros 0"))),
        ),
    ),
]

CODINGS = [
    with_coding("chunked twice", CHUNKED * 2),
    with_coding("chunked, chunked", b"transfer-encoding: chunked, chunked\r\n"),
    with_coding("chunked is not last", b"transfer-encoding: chunked, identity\r\n"),
    with_coding("identity", b"transfer-encoding: identity\r\n"),
    with_coding("an unknown coding", b"transfer-encoding: xchunked\r\n"),
    with_coding("a compressed coding", b"transfer-encoding: gzip\r\n"),
    with_coding("compressed, then chunked", b"transfer-encoding: gzip, chunked\r\n"),
    with_coding("a coding with a vertical tab", b"transfer-encoding: \x0bchunked\r\n"),
    with_coding("a coding with a NUL", b"transfer-encoding: chunked\x00\r\n"),
    with_coding("a quoted coding", b'transfer-encoding: "chunked"\r\n'),
    with_coding("space before the colon of a coding", b"transfer-encoding : chunked\r\n"),
    with_coding("a coding on a line of its own", b"transfer-encoding\r\n: chunked\r\n"),
    with_coding("a folded coding", b"transfer-encoding:\r\n chunked\r\n"),
    with_coding("a hidden coding after a bare LF", b"x: y\ntransfer-encoding: chunked\r\n"),
    with_coding("a hidden coding after a bare CR", b"x: y\rtransfer-encoding: chunked\r\n"),
    refused(
        "chunked in HTTP/1.0",
        post(ident("chunked in HTTP/1.0 0"), framing=CHUNKED, body=_chunks("chunked in HTTP/1.0"), version=b"HTTP/1.0"),
    ),
    _good("chunked", framed("chunked", CHUNKED, _chunks("chunked"))),
    _good("CHUNKED in capitals", framed("CHUNKED", b"Transfer-Encoding: CHUNKED\r\n", _chunks("CHUNKED in capitals"))),
]

CHUNKS = [
    with_chunks("a chunk size of 0x5", b"0x5\r\nhello\r\n0\r\n\r\n"),
    with_chunks("a signed chunk size", b"+5\r\nhello\r\n0\r\n\r\n"),
    with_chunks("a negative chunk size", b"-5\r\nhello\r\n0\r\n\r\n"),
    with_chunks("no chunk size", b"\r\nhello\r\n0\r\n\r\n"),
    with_chunks("letters for a chunk size", b"xyz\r\nhello\r\n0\r\n\r\n"),
    with_chunks("a space in a chunk size", b"1 0\r\nhello\r\n0\r\n\r\n"),
    with_chunks("a chunk size beyond 64 bits", b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    with_chunks("more data than the chunk size", b"5\r\nhello, hello\r\n0\r\n\r\n"),
    with_chunks("less data than the chunk size", b"5\r\nhel\r\n0\r\n\r\n0\r\n\r\n"),
    with_chunks("no CRLF after a chunk", b"5\r\nhello0\r\n\r\n"),
    with_chunks("a bare LF after a chunk size", b"5\nhello\r\n0\r\n\r\n"),
    with_chunks("a bare LF after a chunk", b"5\r\nhello\n0\r\n\r\n"),
    with_chunks("a bare LF in a chunk extension", b"5;a\nhello\r\n0\r\n\r\n"),
    with_chunks("a bare CR in a chunk extension", b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    with_chunks("a NUL in a chunk extension", b"5;a=\x00\r\nhello\r\n0\r\n\r\n"),
    with_chunks("LF alone as the last line", b"5\r\nhello\r\n0\r\n\n"),
    _good(
        "chunk extensions are ignored",
        framed(
            "x",
            CHUNKED,
            b'%x;a=b;c="d"\r\n%b\r\n0;last\r\n\r\n'
            % (len(chat(ident("chunk extensions are ignored 0"))), chat(ident("chunk extensions are ignored 0"))),
        ),
    ),
    _good(
        "zeros before a chunk size",
        framed(
            "x",
            CHUNKED,
            b"0000%x\r\n%b\r\n000\r\n\r\n"
            % (len(chat(ident("zeros before a chunk size 0"))), chat(ident("zeros before a chunk size 0"))),
        ),
    ),
    _good(
        "trailers are dropped",
        framed("x", CHUNKED, _chunks("trailers are dropped")[:-2] + b"x-llm-proxy-pool: none\r\nx: y\r\n\r\n"),
    ),
    Case(
        "a credential in the trailers is none",
        (
            post(
                ident("trailer credential"),
                auth=b"",
                framing=CHUNKED,
                body=_chunks("a credential in the trailers is none")[:-2] + AUTH + b"\r\n",
            ),
        ),
        (401,),
        "open",
        0,
    ),
    refused(
        "a length in the trailers",
        framed("x", CHUNKED, _chunks("a length in the trailers")[:-2] + b"content-length: 5\r\n\r\nhello"),
    ),
]

FRAMING = [*LENGTHS, *CODINGS, *CHUNKS]
