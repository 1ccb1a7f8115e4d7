"""Bodies that are framed well and meant ill: compressed, oversized, deep, ambiguous, half uploads."""

from __future__ import annotations

import gzip
import zlib

from tests.hostile.conftest import MAX_BODY
from tests.hostile.framing import CHUNKED, sent
from tests.hostile.wire import AUTH, Case, Flood, Wait, chat, chunked, ident, post

BOMB = gzip.compress(bytes(20_000_000))
FORM = b"content-type: multipart/form-data; boundary=x\r\n"
MODEL = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n'
FILE = b'--x\r\ncontent-disposition: form-data; name="file"; filename="%b"\r\n\r\n'


def bad(name: str, body: bytes, status: int = 400, code: str = "invalid_body", headers: bytes = b"") -> Case:
    return Case(name, (sent(name, headers, body=body),), (status,), "open", 0, code)


def upload(name: str, body: bytes, *, framing: bytes | None = None) -> bytes:
    length = b"content-length: %d\r\n" % len(body) if framing is None else framing
    return b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: gateway\r\n%b%b%b\r\n%b" % (AUTH, FORM, length, body)


COMPRESSED = [
    bad("a gzip bomb", BOMB, 415, "unsupported_media_type", b"content-encoding: gzip\r\n"),
    bad(
        "a deflate bomb",
        zlib.compress(bytes(20_000_000)),
        415,
        "unsupported_media_type",
        b"content-encoding: deflate\r\n",
    ),
    bad(
        "codings upon codings",
        gzip.compress(BOMB),
        415,
        "unsupported_media_type",
        b"content-encoding: gzip, gzip, br\r\n",
    ),
    bad("a gzip body that does not say so", BOMB),
    Case("identity is no coding", (sent("identity is no coding", b"content-encoding: identity\r\n"),)),
]

OVERSIZED = [
    Case(
        "a length beyond the bound",
        (post(ident("x"), framing=b"content-length: %d\r\n" % (MAX_BODY + 1), body=b""),),
        (413,),
        "closed",
        0,
        "request_too_large",
    ),
    Case(
        "a length of an exabyte",
        (post(ident("x"), framing=b"content-length: 1000000000000000000\r\n", body=b""),),
        (413,),
        "closed",
        0,
        "request_too_large",
    ),
    Case(
        "a body beyond the bound",
        (post(ident("x"), body=b" " * (MAX_BODY + 1)),),
        (413,),
        "closed",
        0,
        "request_too_large",
    ),
    Case(
        "chunks beyond the bound",
        (
            post(ident("x"), framing=CHUNKED, body=b""),
            Flood(b"10000\r\n" + b" " * 65536 + b"\r\n", 2000),
        ),
        (413,),
        "closed",
        0,
        "request_too_large",
    ),
    Case(
        "chunks of four bytes beyond the bound",
        (
            post(ident("x"), framing=CHUNKED, body=b""),
            # A body has a second in all: a quarter of a million of chunks would take half of it on a quiet machine.
            Flood(b"4\r\n    \r\n" * 10_000, 2000),
        ),
        (413,),
        "closed",
        0,
        "request_too_large",
    ),
    Case(
        "an upload beyond the bound",
        (
            upload("x", MODEL + FILE % b"a", framing=CHUNKED).replace(
                MODEL + FILE % b"a", b"%x\r\n%b\r\n" % (len(MODEL + FILE % b"a"), MODEL + FILE % b"a")
            ),
            Flood(b"10000\r\n" + b"a" * 65536 + b"\r\n", 2000),
        ),
        (413,),
        "closed",
        0,
        "request_too_large",
    ),
]

JSON = [
    bad("deep arrays", b'{"model":"m","a":' + b"[" * 100_000),
    bad("deep objects", b'{"a":' * 40_000),
    bad("deep arrays in a model's name", b'{"model":' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
    bad("two models", b'{"model":"m","model":"n"}'),
    bad("two models, one escaped", b'{"model":"m","mod\\u0065l":"n"}'),
    bad("a model with a line in it", b'{"model":"m\\r\\nx-injected: y"}'),
    bad("a model of another type", b'{"model":{"$ne":""}}'),
    bad("a lone surrogate for a model", b'{"model":"\\ud800"}'),
    bad("UTF-16", '{"model":"m"}'.encode("utf-16")),
    bad("no JSON", b"model=m&user=x"),
    bad("nothing", b""),
    bad("two documents", b'{"model":"m"}{"model":"n"}'),
    bad("a NUL after the document", b'{"model":"m"}\x00'),
    bad("not a number", b'{"model":"m","max_tokens":NaN}'),
    Case("bytes that are no UTF-8", (post(ident("bytes that are no UTF-8 0"), extra=b',"x":"\xff\xfe"'),)),
    bad("a maximum of tokens beyond reason", b'{"model":"m","max_tokens":1e400}'),
    Case("a number of 10,000 digits", (post(ident("a number of 10,000 digits 0"), extra=b',"seed":' + b"9" * 10_000),)),
    Case(
        "members that look like ours",
        (post(ident("members that look like ours 0"), extra=b',"__proto__":{"model":"n"},"\\u0000":0'),),
    ),
]

UPLOADS = [
    Case(
        "a form without a boundary",
        (upload("x", MODEL).replace(b"; boundary=x", b""),),
        (400,),
        "open",
        0,
        "invalid_body",
    ),
    Case(
        "a form with a boundary of 10 KB",
        (upload("x", MODEL).replace(b"boundary=x", b"boundary=" + b"x" * 10_000),),
        (400,),
        "open",
        0,
        "invalid_body",
    ),
    Case(
        "a form of 20,000 parts",
        (upload("x", b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\n\r\n' * 4000 + b"--x--\r\n"),),
        (400,),
        "open",
        0,
        "invalid_body",
    ),
    Case("two models in a form", (upload("x", MODEL + MODEL + b"--x--\r\n"),), (400,), "open", 0, "invalid_body"),
    Case(
        "a model behind the file",
        (upload("x", FILE % ident("a model behind the file 0") + b"abc\r\n" + MODEL + b"--x--\r\n"),),
    ),
    Case(
        "an upload that stops half way",
        (
            upload(
                "x",
                MODEL + FILE % ident("an upload that stops half way 0") + b"a" * 300_000,
                framing=b"content-length: 900000\r\n",
            ),
            Wait(0.1),
        ),
        (408,),
        "closed",
        0,
        "did not arrive",
    ),
]

TOGETHER = [
    Case(
        "a body in chunks of one byte",
        (
            post(
                ident("a body in chunks of one byte 0"),
                framing=CHUNKED,
                body=chunked(chat(ident("a body in chunks of one byte 0")), 1),
            ),
        ),
    ),
    Case("a body of 200 KB", (post(ident("a body of 200 KB 0"), extra=b',"metadata":{"x":"%b"}' % (b"y" * 200_000)),)),
    Case(
        "a body that holds a request",
        (post(ident("a body that holds a request 0"), extra=b',"x":"\\r\\n\\r\\nGET /smuggled HTTP/1.1\\r\\n\\r\\n"'),),
    ),
]

BODIES = [*COMPRESSED, *OVERSIZED, *JSON, *UPLOADS, *TOGETHER]
