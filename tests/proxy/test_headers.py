"""Headers that cross, and credentials: tables."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.proxy.credentials import BadCredentials, MisplacedCredentials, NoCredentials, find_token
from gateway.proxy.head import RequestHead
from gateway.proxy.headers import RETURNED, with_capped_delays
from gateway.upstream.head_shape import shape_of

IDENTITY = (b"accept-encoding", b"identity")


def test_what_reaches_the_provider() -> None:
    headers = [
        (b"host", b"gateway"), (b"authorization", b"Bearer x"), (b"x-api-key", b"x"), (b"api-key", b"x"),
        (b"x-goog-api-key", b"x"), (b"cookie", b"x"), (b"content-type", b"application/json"), (b"accept", b"*/*"),
        (b"anthropic-beta", b"b"), (b"openai-organization", b"o"), (b"x-forwarded-for", b"1"), (b"forwarded", b"1"),
        (b"accept-encoding", b"gzip"), (b"content-length", b"3"), (b"transfer-encoding", b"chunked"), (b"te", b"t"),
        (b"traceparent", b"00"), (b"expect", b"100-continue"), (b"proxy-authorization", b"x"), (b"upgrade", b"h2c"),
        (b"x-llm-proxy-pool", b"main"), (b"x-stainless-os", b"Linux"),
    ]  # fmt: skip
    assert RequestHead(headers).forwarded == [
        IDENTITY,
        (b"content-type", b"application/json"),
        (b"accept", b"*/*"),
        (b"anthropic-beta", b"b"),
    ]


@pytest.mark.parametrize("value", [b"x-title", b"close, X-Title", b"keep-alive,x-title "])
def test_what_connection_names_does_not_cross(value: bytes) -> None:
    head = RequestHead([(b"x-title", b"t"), (b"connection", value), (b"accept", b"a")])
    assert head.forwarded == [IDENTITY, (b"accept", b"a")]


def test_what_reaches_the_caller() -> None:
    headers = [
        (b"content-type", b"application/json"), (b"content-length", b"2"), (b"set-cookie", b"__cf_bm=1"),
        (b"x-ratelimit-remaining-requests", b"9"), (b"anthropic-ratelimit-tokens-limit", b"9"), (b"x-request-id", b"r"),
        (b"retry-after", b"3"), (b"retry-after-ms", b"3000"), (b"openai-organization", b"org-secret"),
        (b"server", b"cloudflare"), (b"connection", b"close"), (b"transfer-encoding", b"chunked"), (b"alt-svc", b"h3"),
        (b"x-llm-proxy-key", b"forged"), (b"request-id", b"r2"),
    ]  # fmt: skip
    names, values = zip(*headers, strict=True)
    assert [name for name, _ in shape_of(names).among(RETURNED, values)] == [
        b"content-type",
        b"content-length",
        b"x-request-id",
        b"retry-after",
        b"retry-after-ms",
        b"request-id",
    ]


NOW = datetime(2026, 11, 28, 7, 0, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("name", "value", "sent"),
    [
        ("retry-after", "3", "3"),
        ("retry-after", "59.7", "59.7"),
        ("retry-after", "Sat, 28 Nov 2026 07:10:00 GMT", "Sat, 28 Nov 2026 07:10:00 GMT"),
        ("retry-after", "86400", "3600"),
        ("retry-after", "Sun, 29 Nov 2026 07:00:00 GMT", "3600"),
        ("retry-after", "999999999", None),
        ("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT", None),
        ("retry-after", "-1", None),
        ("retry-after", "nan", None),
        ("retry-after-ms", "1500", "1500"),
        ("retry-after-ms", "86400000", "3600000"),
        ("retry-after-ms", "inf", None),
    ],
)
def test_no_provider_puts_callers_to_sleep_for_long(name: str, value: str, sent: str | None) -> None:
    other = (b"content-type", b"text/plain")
    expected = [other] if sent is None else [other, (name.encode(), sent.encode())]
    assert with_capped_delays([other, (name.encode(), value.encode())], now_unix=NOW) == expected


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ([(b"authorization", b"Bearer abc")], "abc"),
        ([(b"authorization", b"bearer  abc ")], "abc"),
        ([(b"x-api-key", b"abc")], "abc"),
        ([(b"api-key", b"abc")], "abc"),
        ([(b"x-goog-api-key", b"abc")], "abc"),
        ([(b"api-key", b"Bearer abc")], "abc"),
        ([(b"authorization", b"Bearer abc"), (b"x-api-key", b"abc")], "abc"),
    ],
)
def test_tokens_are_found_where_sdks_put_them(headers: list[tuple[bytes, bytes]], token: str) -> None:
    assert find_token(headers, b"").token == token


@pytest.mark.parametrize(
    ("headers", "query", "error"),
    [
        ([], b"", NoCredentials),
        ([(b"authorization", b"Bearer ")], b"", NoCredentials),
        ([(b"authorization", b"Basic abc")], b"", BadCredentials),
        ([(b"authorization", b"Bearer a"), (b"x-api-key", b"b")], b"", MisplacedCredentials),
        ([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")], b"", MisplacedCredentials),
        ([], b"key=abc", MisplacedCredentials),
        ([(b"x-api-key", b"a")], b"alt=sse&Access_Token=abc", MisplacedCredentials),
        ([(b"x-api-key", b"a" * 9000)], b"", BadCredentials),
        ([(b"x-api-key", b"\xff")], b"", BadCredentials),
    ],
)
def test_bad_credentials(headers: list[tuple[bytes, bytes]], query: bytes, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        find_token(headers, query)
    assert "abc" not in str(caught.value)
