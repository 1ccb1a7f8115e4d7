"""Who keeps a connection sends the same head again: it is read once, and never for another's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import uvicorn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from gateway.proxy.channel import CallerGone, Channel
from gateway.proxy.head import RequestHead
from gateway.relay_protocol import RelayProtocol
from tests.fuzz.readers import Sink


class Seen(NamedTuple):
    """What the data path learns of one request."""

    target: bytes
    headers: list[tuple[bytes, bytes]]
    length: int | None
    upstream: bytes
    pool: str | None
    body: bytes


async def _nobody(scope: object, receive: object, send: object) -> None:
    raise AssertionError("every request is an inference")


_CONFIG = uvicorn.Config(_nobody, log_config=None, access_log=False, lifespan="off")
_CONFIG.load()


async def _read(requests: Sequence[bytes], *, forgets: bool = False) -> tuple[list[Seen], list[RequestHead], bytes]:
    """Send `requests` over one connection, each when the one before was answered."""
    seen: list[Seen] = []
    heads: list[RequestHead] = []

    async def serve(channel: Channel) -> None:
        head, body = channel.head, b""
        try:
            while data := await channel.receive():
                body += data
        except CallerGone:
            return
        length = channel.length
        others = [header for header in head.headers if header[0] != b"content-length"]
        seen.append(Seen(channel.raw_path, others, length, head.lines((), b""), head.wishes().pool, body))
        heads.append(head)
        if forgets:
            channel.forget()
        await channel.send_head(200, b"content-length: 0\r\n", length=0)
        await channel.finish()

    sink = Sink()
    protocol = type("Protocol", (RelayProtocol,), {"find_relay": staticmethod(lambda: serve)})(
        config=_CONFIG, server_state=ServerState(), app_state={}
    )
    protocol.connection_made(sink)
    for request in requests:
        protocol.data_received(request)
        for _ in range(4):
            await asyncio.sleep(0)
    return seen, heads, bytes(sink.written)


def _request(lines: Sequence[bytes], body: bytes, trailer: bytes, at: int) -> bytes:
    framing = b"content-length: %d" % len(body)
    if trailer:
        chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        framing, body = b"transfer-encoding: chunked", b"%b0\r\n%b\r\n\r\n" % (chunk, trailer)
    place = at % (len(lines) + 1)
    head = [b"POST /v1/chat/completions HTTP/1.1", *lines[:place], framing, *lines[place:]]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


_LINES = st.sampled_from(
    [
        b"authorization: Bearer a", b"authorization: Bearer b", b"Authorization: Bearer a", b"accept: */*",
        b"x-llm-proxy-pool: main", b"user-agent: one", b"user-agent: two", b"x-other: 1", b"connection: user-agent",
    ]
)  # fmt: skip
_REQUESTS = st.builds(
    _request,
    st.lists(_LINES, max_size=3, unique=True).map(lambda lines: [b"host: g", *lines]),
    st.sampled_from([b"", b"{}", b'{"model": "m"}']),
    st.sampled_from([b"", b"", b"x-llm-proxy-pool: main", b"x-other: 1"]),
    st.integers(0, 3),
)
TRAILED = _request([b"host: g"], b"{}", b"x-llm-proxy-pool: main", 1)
NAMED = b"POST /v1/a HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\nx-llm-proxy-pool: main\r\n\r\n0\r\n\r\n"


@settings(deadline=None, max_examples=150)
@example([TRAILED, NAMED])
@given(st.lists(_REQUESTS, min_size=2, max_size=6))
def test_a_request_reads_as_it_would_on_a_connection_of_its_own(requests: list[bytes]) -> None:
    async def both() -> None:
        alone = [(await _read([request]))[0] for request in requests]
        assert [[each] for each in (await _read(requests))[0]] == alone

    asyncio.run(both())


async def test_the_same_head_is_read_once_whatever_the_length() -> None:
    lines = [b"Host: g", b"Authorization: Bearer a"]
    requests = [_request(lines, body, b"", 1) for body in (b"{}", b'{"model": "m"}', b"")]
    seen, heads, _ = await _read(requests)
    assert [each.length for each in seen] == [2, 14, 0]
    assert heads[0] is heads[1] is heads[2]


async def test_another_head_is_read_anew() -> None:
    requests = [_request([b"host: g", b"authorization: Bearer %b" % who], b"{}", b"", 2) for who in (b"a", b"b", b"a")]
    _, heads, _ = await _read(requests)
    assert [each.credentials[0][1] for each in heads] == [b"Bearer a", b"Bearer b", b"Bearer a"]


async def test_what_is_forgotten_is_not_kept_by_the_connection() -> None:
    request = _request([b"host: g", b"authorization: Bearer a"], b"{}", b"", 2)
    _, heads, _ = await _read([request, request], forgets=True)
    assert heads[0] is not heads[1]


async def test_a_bad_head_is_refused_behind_a_good_one() -> None:
    good = _request([b"host: g"], b"{}", b"", 1)
    seen, _, written = await _read([good, _request([b"host: g", b"host: h"], b"{}", b"", 2)])
    assert len(seen) == 1
    assert b"HTTP/1.1 400" in written
