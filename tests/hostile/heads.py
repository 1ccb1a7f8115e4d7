"""Request lines and headers: odd, huge, many, hidden in one another, or meant for somebody else."""

from __future__ import annotations

from tests.hostile.framing import refused, sent
from tests.hostile.wire import AUTH, PATH, Case, Flood, Until, chat, ident, post

TOO_LARGE = 431
TARGETS_REFUSED: tuple[tuple[str, bytes, int], ...] = (
    ("dots", b"/v1/../v1/chat/completions", 400),
    ("encoded dots", b"/v1/%2e%2e/v1/chat/completions", 400),
    ("dots with an encoded slash", b"/v1/..%2fv1/chat/completions", 400),
    ("an encoded slash", b"/v1/chat%2Fcompletions", 400),
    ("a doubly encoded slash", b"/v1/chat%252Fcompletions", 400),
    ("backslashes", b"/v1\\chat\\completions", 404),
    ("dots and backslashes", b"/v1/..\\..\\v1/chat/completions", 400),
    ("an encoded backslash", b"/v1/%5c..%5cv1/chat/completions", 400),
    ("a double slash", b"/v1//chat/completions", 400),
    ("a parameter on dots", b"/v1/..;/chat/completions", 400),
    ("an encoded NUL", b"/v1/chat/completions%00", 400),
    ("an encoded line", b"/v1/chat/completions%0d%0ax-injected:%20y", 400),
    ("an overlong dot", b"/v1/%c0%ae%c0%ae/chat/completions", 400),
    ("a trailing slash", b"/v1/chat/completions/", 404),
    ("capitals", b"/V1/CHAT/COMPLETIONS", 404),
    ("dots in a model's name", b"/v1beta/models/..:generateContent", 404),
    ("a path in a model's name", b"/v1beta/models/%2e%2e%2fadmin:generateContent", 400),
    ("a pool named by dots", b"/pools/../v1/chat/completions", 400),
    ("an unserved path", b"/v1/files", 404),
)

TARGETS = [
    *(
        Case(f"target: {name}", (sent(f"target: {name}", target=target),), (status,), "open", 0)
        for name, target, status in TARGETS_REFUSED
    ),
    refused("target: a space", sent("x", target=b"/v1/chat completions")),
    refused("target: a tab", sent("x", target=b"/v1/chat\tcompletions")),
    refused("target: a NUL", sent("x", target=b"/v1/chat\x00/completions")),
    refused("target: bytes beyond ASCII", sent("x", target=b"/v1/ch\xc3\xa4t")),
    refused("target: relative", sent("x", target=b"v1/chat/completions")),
    refused("target: a host alone", sent("x", target=b"evil.example:443")),
    refused("target: nothing", b"POST  HTTP/1.1\r\nhost: g\r\n\r\n"),
    refused("target: 100 KB", sent("x", target=b"/v1/" + b"a" * 100_000), status=414, code="target_too_long"),
    Case(
        "target: absolute",
        (sent("target: absolute", target=b"http://evil.example/v1/chat/completions"),),
    ),
    Case(
        "target: absolute with a user and a port",
        (
            sent(
                "target: absolute with a user and a port", target=b"http://gateway@evil.example:99/v1/chat/completions"
            ),
        ),
    ),
    Case("target: absolute and unserved", (sent("x", target=b"http://127.0.0.1:1/etc/passwd"),), (404,), "open", 0),
    refused("target: another scheme", sent("x", target=b"file:///etc/passwd")),
    Case(
        "target: a query that asks for a file",
        (sent("target: a query that asks for a file", target=PATH + b"?f=../x"),),
    ),
]

METHODS = [
    refused("method: unknown", b"HACK /v1/chat/completions HTTP/1.1\r\nhost: g\r\n\r\n"),
    refused("method: small letters", b"post /v1/chat/completions HTTP/1.1\r\nhost: g\r\n\r\n"),
    refused("method: CONNECT", b"CONNECT evil.example:443 HTTP/1.1\r\nhost: evil.example\r\n\r\n"),
    refused("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    refused("HTTP/2.0 in a request line", sent("x", version=b"HTTP/2.0"), status=505, code="version_not_supported"),
    refused("HTTP/1.10", sent("x", version=b"HTTP/1.10")),
    refused("no version", b"GET /v1/models HTTP/\r\nhost: g\r\n\r\n"),
    refused("a bare LF after the request line", b"GET /v1/models HTTP/1.1\nhost: g\r\n\r\n"),
    refused("TLS on a plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 32),
    Case("method: TRACE", (b"TRACE /v1/models HTTP/1.1\r\nhost: g\r\n" + AUTH + b"\r\n",), (405,), "open", 0),
    Case("method: DELETE", (b"DELETE /v1/models HTTP/1.1\r\nhost: g\r\n" + AUTH + b"\r\n",), (405,), "open", 0),
    Case("an empty line first", (b"\r\n" + sent("an empty line first"),)),
    Case(
        "a body where none is taken",
        (b"GET /v1/models HTTP/1.1\r\nhost: g\r\n" + AUTH + b"content-length: 5\r\n\r\nhello",),
        (200,),
        "open",
        0,
    ),
]

VALUES = [
    refused("a folded header", sent("x", b"x-title: a\r\n b\r\n")),
    refused("a bare LF in a value", sent("x", b"x-title: a\nx-injected: b\r\n")),
    refused("a bare CR in a value", sent("x", b"x-title: a\rx-injected: b\r\n")),
    refused("a NUL in a value", sent("x", b"x-title: a\x00b\r\n")),
    refused("a control character in a value", sent("x", b"x-title: a\x01b\r\n")),
    refused("a DEL in a value", sent("x", b"x-title: a\x7fb\r\n")),
    refused("a space in a name", sent("x", b"x title: a\r\n")),
    refused("a NUL in a name", sent("x", b"x\x00title: a\r\n")),
    refused("a line without a colon", sent("x", b"x-title\r\n")),
    refused("an empty name", sent("x", b": a\r\n")),
    refused("a name beyond ASCII", sent("x", b"x-t\xc3\xaftle: a\r\n")),
    refused("a bare LF at the head's end", b"GET /v1/models HTTP/1.1\r\nhost: g\r\n\n"),
    Case("bytes beyond ASCII in a value", (sent("bytes beyond ASCII in a value", b"x-title: caf\xc3\xa9 \xff\r\n"),)),
    Case("an encoded line in a value", (sent("an encoded line in a value", b"x-title: a%0d%0ax-injected: b\r\n"),)),
    Case("a header without a value", (sent("a header without a value", b"x-title:\r\n"),)),
    Case("the same header twice", (sent("the same header twice", b"x-title: a\r\nx-title: b\r\n"),)),
]

SIZES = [
    refused(
        "a header of 100 KB",
        sent("x", b"x-title: " + b"a" * 100_000 + b"\r\n"),
        status=TOO_LARGE,
        code="head_too_large",
    ),
    refused(
        "100 headers of 1 KB",
        sent("x", b"".join(b"x-%d: %b\r\n" % (n, b"a" * 1000) for n in range(100))),
        status=TOO_LARGE,
        code="head_too_large",
    ),
    refused(
        "10,000 small headers",
        sent("x", b"".join(b"a%d:\r\n" % n for n in range(10_000))),
        status=TOO_LARGE,
        code="head_too_large",
    ),
    refused(
        "a header without end",
        b"GET /v1/models HTTP/1.1\r\nhost: g\r\nx: ",
        Flood(b"a" * 65536, 2000),
        status=TOO_LARGE,
        code="head_too_large",
    ),
    refused(
        "headers without end",
        b"GET /v1/models HTTP/1.1\r\nhost: g\r\n",
        Flood(b"x: y\r\n" * 10_000, 2000),
        status=TOO_LARGE,
        code="head_too_large",
    ),
    refused("a target without end", b"GET /v1/", Flood(b"a" * 65536, 2000), status=414, code="target_too_long"),
    refused(
        "trailers without end",
        post(ident("x"), framing=b"transfer-encoding: chunked\r\n", body=b"1\r\n{\r\n0\r\n"),
        Flood(b"x: y\r\n" * 10_000, 2000),
        status=TOO_LARGE,
        code="head_too_large",
    ),
    Case(
        "headers of 30 KB in all",
        (sent("headers of 30 KB in all", b"".join(b"x-%d: %b\r\n" % (n, b"a" * 1000) for n in range(30))),),
    ),
]

HOSTS = [
    refused("no Host", b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"\r\n"),
    refused("two Hosts", sent("x", b"host: evil.example\r\n")),
    refused("the same Host twice", sent("x", b"host: gateway\r\n")),
    refused("a Host with a path", b"GET /v1/models HTTP/1.1\r\nhost: gateway/evil\r\n" + AUTH + b"\r\n"),
    refused("a Host with a user", b"GET /v1/models HTTP/1.1\r\nhost: a@evil.example\r\n" + AUTH + b"\r\n"),
    Case(
        "another Host",
        (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: evil.example\r\n%bcontent-length: %d\r\n\r\n%b"
            % (AUTH, len(chat(ident("another Host 0"))), chat(ident("another Host 0"))),
        ),
    ),
    Case(
        "forwarding headers from anybody",
        (
            sent(
                "forwarding headers from anybody",
                b"x-forwarded-host: evil.example\r\nx-forwarded-for: 10.0.0.1\r\nforwarded: host=evil.example\r\n"
                b"x-original-url: /api/v1/tenants\r\nx-rewrite-url: /api/v1/tenants\r\nx-http-method-override: GET\r\n",
            ),
        ),
    ),
]

HOPS = [
    Case("Connection: authorization", (sent("Connection: authorization", b"connection: authorization\r\n"),)),
    Case("Connection: content-length", (sent("Connection: content-length", b"connection: content-length\r\n"),)),
    Case("Connection: host", (sent("Connection: host", b"connection: host, keep-alive\r\n"),)),
    Case(
        "hop-by-hop headers",
        (
            sent(
                "hop-by-hop headers",
                b"te: trailers, deflate\r\ntrailer: x-a\r\nkeep-alive: timeout=9\r\n"
                b"proxy-connection: keep-alive\r\nproxy-authorization: Basic eDp5\r\ncookie: a=b\r\n",
            ),
        ),
    ),
    Case(
        "an upgrade to h2c",
        (
            sent(
                "an upgrade to h2c",
                b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
            ),
        ),
    ),
    Case(
        "an upgrade to a WebSocket",
        (
            b"GET /v1/models HTTP/1.1\r\nhost: g\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\n"
            b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n" + AUTH + b"\r\n",
        ),
        (200,),
        "open",
        0,
    ),
    Case("Connection: close", (sent("Connection: close", b"connection: close\r\n"),), then="closed"),
    Case("HTTP/1.0", (sent("HTTP/1.0", version=b"HTTP/1.0"),), then="closed"),
    Case("HTTP/1.0 without Host", (b"GET /v1/models HTTP/1.0\r\n" + AUTH + b"\r\n",), (200,), "closed", 0),
    Case(
        "a stream in HTTP/1.0",
        (sent("a stream in HTTP/1.0", version=b"HTTP/1.0", extra=b',"stream":true'),),
        then="closed",
    ),
    Case(
        "100-continue",
        (
            sent("100-continue", b"expect: 100-continue\r\n").partition(b"{")[0],
            Until(b"100 Continue\r\n\r\n"),
            chat(ident("100-continue 0")),
        ),
        interim=1,
    ),
    Case(
        "100-continue with the body at once", (sent("100-continue with the body at once", b"expect: 100-continue\r\n"),)
    ),
    Case(
        "100-continue without a token",
        (post(ident("100-continue without a token 0"), b"expect: 100-continue\r\n", auth=b""),),
        (401,),
        "open",
        0,
    ),
    Case(
        "100-continue without a token and without the body",
        (post(ident("x"), b"expect: 100-continue\r\n", auth=b"").partition(b"{")[0],),
        (401,),
        "closed",
        0,
    ),
    Case("another expectation", (sent("x", b"expect: 200-maybe\r\n"),), (417,), "closed", 0, "expectation_failed"),
]

CREDENTIALS = [
    Case("no token", (post(ident("no token 0"), auth=b""),), (401,), "open", 0),
    Case("the same token twice", (sent("the same token twice", AUTH),)),
    Case(
        "two tokens",
        (sent("two tokens", b"authorization: Bearer eyJhbGciOiJub25lIn0.e30.\r\n"),),
        (400,),
        "open",
        0,
    ),
    Case("the same token in two places", (sent("the same token in two places", b"x-api-key: @token@\r\n"),)),
    Case("another token in another place", (sent("x", b"x-api-key: abc\r\n"),), (400,), "open", 0),
    Case(
        "a token in the URL", (post(ident("x"), auth=b"", target=PATH + b"?access_token=@token@"),), (400,), "open", 0
    ),
    Case(
        "a token of 10 KB",
        (post(ident("x"), auth=b"authorization: Bearer " + b"a" * 10_000 + b"\r\n"),),
        (401,),
        "open",
        0,
    ),
]

HEADS = [*TARGETS, *METHODS, *VALUES, *SIZES, *HOSTS, *HOPS, *CREDENTIALS]
