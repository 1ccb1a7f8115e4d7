"""A head that is known by its bytes reads as its parser would have read it; whatever else comes is the parser's."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import uvicorn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from gateway.known_head import known_head
from gateway.proxy.channel import CallerGone, Channel
from gateway.relay_protocol import RelayProtocol
from tests.fuzz.readers import Sink

LINES = [(b"Host", b"g"), (b"Content-Length", b"2"), (b"Authorization", b"Bearer a")]
BEFORE = b"POST /v1/chat/completions?x=1 HTTP/1.1\r\nHost: g\r\nContent-Length: "
AFTER = b"\r\nAuthorization: Bearer a\r\n\r\n"
URL = b"/v1/chat/completions?x=1"


def _sent(length: bytes, body: bytes) -> bytes:
    return BEFORE + length + AFTER + body


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (_sent(b"2", b"{}"), b"{}"),
        (_sent(b"0", b""), b""),
        (_sent(b"02", b"{}"), b"{}"),
        (_sent(b"3000", b"x" * 3000), b"x" * 3000),
        (_sent(b"2", b"{"), None),
        (_sent(b"2", b"{} "), None),
        (_sent(b"2", _sent(b"2", b"{}")), None),
        (_sent(b"", b"{}"), None),
        (_sent(b"+2", b"{}"), None),
        (_sent(b" 2", b"{}"), None),
        (_sent(b"2 ", b"{}"), None),
        (_sent(b"-2", b"{}"), None),
        (_sent("２".encode(), b"{}"), None),
        (_sent(b"0" * 15 + b"2", b"{}"), None),
        (_sent(b"2\r\nTransfer-Encoding: chunked", b"{}"), None),
        (_sent(b"2", b"{}").replace(b"Host", b"host"), None),
        (_sent(b"2", b"{}").replace(b"Bearer a", b"Bearer b"), None),
        (BEFORE, None),
        (BEFORE + b"2", None),
        (b"", None),
    ],
)
def test_only_a_whole_request_with_this_head_is_recognised(data: bytes, body: bytes | None) -> None:
    known = known_head(_sent(b"2", b"{}"), URL, LINES, 1, raw_path=b"/v1/chat/completions", query=b"x=1")
    assert known is not None
    assert known.body_in(data) == body


@pytest.mark.parametrize(
    "data",
    [
        _sent(b"2", b"{}").replace(b"Host: g", b"Host:g"),
        _sent(b"2", b"{}").replace(b"Bearer a\r\n", b"Bearer a \r\n"),
        b"\r\n" + _sent(b"2", b"{}"),
        _sent(b"2", b"{}")[1:],
    ],
)
def test_a_head_that_is_written_otherwise_is_not_known(data: bytes) -> None:
    assert known_head(data, URL, LINES, 1, raw_path=b"/v1/chat/completions", query=b"x=1") is None


class Seen(NamedTuple):
    """What the data path learns of one request."""

    target: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    length: int | None
    body: bytes


async def _nobody(scope: object, receive: object, send: object) -> None:
    raise AssertionError("every request is an inference")


_CONFIG = uvicorn.Config(_nobody, log_config=None, access_log=False, lifespan="off")
_CONFIG.load()


class Connection:
    """A caller's connection, whose requests are all answered."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.sink = Sink()
        made = type("Protocol", (RelayProtocol,), {"find_relay": staticmethod(lambda: self._serve)})
        self.protocol = made(config=_CONFIG, server_state=ServerState(), app_state={})
        self.protocol.connection_made(self.sink)

    async def _serve(self, channel: Channel) -> None:
        body = b""
        try:
            while data := await channel.receive():
                body += data
        except CallerGone:
            return
        others = [header for header in channel.head.headers if header[0] != b"content-length"]
        self.seen.append(Seen(channel.raw_path, channel.query, others, channel.length, body))
        await channel.answer(200, b"content-length: 2\r\n", b"{}")

    async def say(self, *reads: bytes) -> None:
        for read in reads:
            if not self.sink.closed:
                self.protocol.data_received(read)
            for _ in range(4):
                await asyncio.sleep(0)


async def _after(warm: Sequence[bytes], reads: Sequence[bytes]) -> tuple[list[Seen], bytes]:
    """Give what comes of `reads` on a connection that has served `warm`."""
    connection = Connection()
    await connection.say(*warm)
    assert len(connection.seen) == len(warm)
    before = len(connection.sink.written)
    await connection.say(*reads)
    return connection.seen[len(warm) :], bytes(connection.sink.written[before:])


async def test_the_third_of_its_kind_is_not_parsed() -> None:
    connection = Connection()
    await connection.say(_sent(b"2", b"{}"), _sent(b"3", b"{ }"))
    del connection.protocol.parser
    await connection.say(_sent(b"0", b""), _sent(b"12", b'{"model": 1}'))
    assert [(each.length, each.body) for each in connection.seen[2:]] == [(0, b""), (12, b'{"model": 1}')]
    assert {(each.target, each.query) for each in connection.seen} == {(b"/v1/chat/completions", b"x=1")}
    assert connection.seen[0].headers == connection.seen[3].headers
    assert connection.sink.written.count(b"HTTP/1.1 200 OK\r\n") == 4


_OTHER = b"POST /v1/embeddings HTTP/1.1\r\nHost: g\r\nContent-Length: 2\r\nAuthorization: Bearer a\r\n\r\n{}"
_LENGTHS = st.sampled_from([b"2", b"02", b"0", b"", b"+2", b" 2", b"2 ", b"3", b"1", b"2, 2", b"x", b"9" * 20])
_BODIES = st.sampled_from([b"{}", b"", b"{}\r\n", b"{", b"{}{}", b"{}" + _OTHER, b"{}" + _sent(b"2", b"[]"), b"{}\r"])
_EDITS = st.sampled_from(
    [
        (b"", b""),
        (b"POST", b"GET"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"Host: g", b"Host:g"),
        (b"Bearer a", b"Bearer b"),
        (b"Host: g\r\n", b""),
        (b"Host: g", b"Host: g\r\nExpect: 100-continue"),
        (b"Host: g", b"Host: g\r\nTransfer-Encoding: chunked"),
        (b"Host: g", b"Host: g\r\nConnection: close"),
        (b"Bearer a", b"Bearer a\r\nContent-Length: 2"),
        (b"chat/completions", b"embeddings"),
        (b"\r\n\r\n", b"\n\n"),
    ]
)


@settings(deadline=None, max_examples=300)
@example(length=b"2", body=b"{}", edit=(b"", b""), cuts=[])
@example(length=b"2", body=b"{}" + _OTHER, edit=(b"", b""), cuts=[])
@given(length=_LENGTHS, body=_BODIES, edit=_EDITS, cuts=st.lists(st.integers(1, 150), max_size=2))
def test_all_that_comes_after_it_reads_as_on_a_new_connection(
    length: bytes, body: bytes, edit: tuple[bytes, bytes], cuts: list[int]
) -> None:
    data = _sent(length, body)
    data = data.replace(*edit) if edit[0] else data
    places = [0, *sorted(at for at in set(cuts) if at < len(data)), len(data)]
    reads = [data[start:end] for start, end in itertools.pairwise(places)] + [_sent(b"2", b"{}")]

    async def both() -> None:
        known = await _after([_sent(b"2", b"{}")] * 3, reads)
        new = await _after([], reads)
        assert known[0] == new[0]
        assert _without_ids(known[1]) == _without_ids(new[1])

    asyncio.run(both())


def _without_ids(written: bytes) -> list[bytes]:
    return [line for line in written.split(b"\r\n") if not line.startswith((b"x-llm-proxy-request-id", b'{"type"'))]
