"""The head of a request as it is written, said once and again."""

from __future__ import annotations

import pytest

from gateway.upstream.message import UpstreamRequest, request_head

AGENT = (b"user-agent", b"OpenAI/Python 3")


def head_of(*headers: tuple[bytes, bytes]) -> bytes:
    return request_head(UpstreamRequest(b"GET", b"/x", headers), b"host: a\r\n")


def test_heads_differ_by_every_byte_of_their_headers() -> None:
    sent = [[AGENT], [AGENT], [(b"user-agent", b"OpenAI/Python 4")], [AGENT, (b"accept", b"*/*")], []]
    for headers in [*sent, *sent]:
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        assert head_of(*headers) == b"GET /x HTTP/1.1\r\nhost: a\r\n%b\r\n" % lines


def test_what_is_refused_is_refused_again() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="CR, LF or NUL"):
            head_of(AGENT, (b"accept", b"a\r\nx: y"))
