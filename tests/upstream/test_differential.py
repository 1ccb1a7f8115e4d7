"""Mutated answers read by our client and by h11: where both accept one, they have read the same message.

A difference here is how response smuggling begins, so the fuzz is over the framing, not over the contents.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.upstream.errors import UpstreamError
from gateway.upstream.http1 import Http1Connection
from gateway.upstream.message import Deadlines

STATUS_LINES = st.sampled_from([
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 429 Too Many Requests\r\n", b"HTTP/1.1 204 No Content\r\n",
    b"HTTP/1.1 304 Not Modified\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 200 \r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
])  # fmt: skip
HEADERS = st.lists(
    st.sampled_from([
        b"content-length: 5\r\n", b"Content-Length: 5\r\n", b"content-length: 3\r\n", b"content-length: 05\r\n",
        b"content-length: 5 \r\n", b"content-length:\t5\r\n", b"content-length: 5,5\r\n", b"content-length: 0x5\r\n",
        b"content-length : 5\r\n", b"content-length: 5\r\n 5\r\n", b"content_length: 5\r\n",
        b"content-length: \x005\r\n",
        b"transfer-encoding: chunked\r\n", b"Transfer-Encoding: Chunked\r\n", b"transfer-encoding: identity\r\n",
        b"transfer-encoding: chunked, chunked\r\n", b"transfer-encoding: gzip\r\n",
        b"transfer-encoding:\x0bchunked\r\n",
        b"transfer-encoding: chunked\n", b"transfer-encoding\r\n: chunked\r\n", b"connection: close\r\n", b"x: y\r\n",
        b"\r\n",
    ]),
    max_size=3,
)  # fmt: skip
BODIES = st.sampled_from([
    b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"5;a=b\r\nhello\r\n0\r\n\r\n", b"05\r\nhello\r\n0\r\nt: v\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"5\r\nhello0\r\n\r\n", b"5 \r\nhello\r\n0\r\n\r\n", b"+5\r\nhello\r\n0\r\n\r\n", b"0x5\r\nhello\r\n0\r\n\r\n", b"",
    b"helloHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx", b"5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
])  # fmt: skip
Message = tuple[int, bytes]


class Sink(asyncio.Transport):
    """A transport that goes nowhere."""

    closed = False

    def write(self, data: object) -> None:
        """Throw it away."""

    def abort(self) -> None:
        self.closed = True

    close = abort

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        """Nothing to pause."""

    resume_reading = pause_reading


def read_ours(pieces: list[bytes]) -> Message | None:
    async def read() -> Message | None:
        connection = Http1Connection(asyncio.get_running_loop(), lambda _: None, lambda _: None)
        sink = Sink()
        connection.connection_made(sink)
        response = connection.begin(b"POST / HTTP/1.1\r\n\r\n", b"", Deadlines())
        for piece in pieces:
            if not sink.closed:
                connection.data_received(piece)
        connection.connection_lost(None)
        if not response.status:
            assert isinstance(response.take_error(), UpstreamError)
            return None
        try:
            body = b""
            while data := await response.read():
                body += data
        except UpstreamError:
            return None
        return response.status, body

    return asyncio.run(read())


def read_h11(data: bytes) -> Message | None:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    if data:
        connection.receive_data(b"")
    status, body = 0, b""
    try:
        while True:
            match connection.next_event():
                case h11.Response(status_code=status):
                    pass
                case h11.Data(data=part):
                    body += bytes(part)
                case h11.EndOfMessage():
                    return status, body
                case h11.ConnectionClosed() | h11.NEED_DATA | h11.PAUSED:
                    return None
    except h11.RemoteProtocolError:
        return None


@settings(max_examples=200, deadline=None)
@given(STATUS_LINES, HEADERS, BODIES, st.lists(st.integers(1, 120), max_size=4))
def test_both_readers_agree(status_line: bytes, headers: list[bytes], body: bytes, cuts: list[int]) -> None:
    data = status_line + b"".join(headers) + b"\r\n" + body
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in pairwise(edges)]
    ours, theirs = read_ours(pieces), read_h11(data)
    assert ours == read_ours([data]), "the cuts between reads changed the message"
    if ours is not None and theirs is not None:
        assert ours == theirs


@settings(max_examples=120, deadline=None)
@given(st.binary(max_size=120))
def test_noise_is_refused_cleanly(noise: bytes) -> None:
    read_ours([noise])
    read_ours([b"HTTP/1.1 200 OK\r\n", noise])
    read_ours([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", noise])
