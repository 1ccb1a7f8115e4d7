"""One stream of a caller's bytes, read by our server's protocol and by h11: two readers that share no code."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import h11
import uvicorn
from uvicorn.server import ServerState

from gateway.proxy.channel import CallerGone, Channel
from gateway.relay_protocol import RelayProtocol
from gateway.strict_protocol import MAX_HEAD_BYTES

Request = tuple[bytes, bytes, bytes]
"""Method, target, body."""


@dataclass
class Read:
    """The whole requests in order; `refused`: then, from `at` in the bytes, came something that is no request."""

    requests: list[Request] = field(default_factory=list)
    refused: bool = False
    at: int = 0


class Sink(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        if not self.closed:
            self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        """Nothing to pause: the bytes are here."""

    resume_reading = pause_reading


async def _app(scope: Any, receive: Any, send: Any) -> None:
    body = b""
    while (message := await receive())["type"] != "http.disconnect":
        body += message["body"]
        if not message["more_body"]:
            query = b"?" + scope["query_string"] if scope["query_string"] else b""
            scope["state"]["read"].requests.append((scope["method"].encode(), scope["raw_path"] + query, body))
            break
    else:
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


_ABSOLUTE = re.compile(rb"^[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_CONFIG = uvicorn.Config(_app, log_config=None, access_log=False, lifespan="off")
_CONFIG.load()


def by_us(pieces: Sequence[bytes]) -> Read:
    """Read as the server does, `pieces` being what each read of the socket brought."""
    return asyncio.run(_by_us(pieces))


async def _by_us(pieces: Sequence[bytes]) -> Read:
    read = Read()

    async def serve(channel: Channel) -> None:
        body = b""
        try:
            while data := await channel.receive():
                body += data
        except CallerGone:
            return
        target = channel.raw_path + (b"?" + channel.query if channel.query else b"")
        read.requests.append((channel.method.encode(), target, body))
        await channel.send_head(200, b"content-length: 0\r\n", length=0)
        await channel.finish()
        channel.close()

    state = ServerState()
    protocol = type("Protocol", (RelayProtocol,), {"find_relay": staticmethod(lambda: serve)})(
        config=_CONFIG, server_state=state, app_state={"read": read}
    )
    sink = Sink()
    protocol.connection_made(sink)
    for piece in pieces:
        if sink.closed:
            break
        protocol.data_received(piece)
        for _ in range(3):
            await asyncio.sleep(0)
    while state.tasks and any(not task.done() for task in state.tasks):
        before = len(read.requests)
        for _ in range(20):
            await asyncio.sleep(0)
        if len(read.requests) == before:
            break  # what is left waits for bytes that do not come
    read.refused = protocol.refusal is not None
    protocol.connection_lost(None)
    for _ in range(20):
        await asyncio.sleep(0)
    for task in list(state.tasks):
        task.cancel()
    await asyncio.gather(*state.tasks, return_exceptions=True)
    return read


def by_h11(data: bytes) -> Read:
    """Read as h11 does."""
    read = Read()
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES * 2)
    connection.receive_data(data)
    method = target = body = b""
    try:
        while True:
            match connection.next_event():
                case h11.Request(method=method, target=target):
                    target = _ABSOLUTE.sub(b"", target).partition(b"#")[0]
                    body = b""
                case h11.Data(data=part):
                    body += bytes(part)
                case h11.EndOfMessage():
                    read.requests.append((method, target, body))
                    read.at = len(data) - len(connection.trailing_data[0])
                    connection.send(h11.Response(status_code=404, headers=[("content-length", "0")]))
                    connection.send(h11.EndOfMessage())
                    if connection.our_state is h11.MUST_CLOSE:
                        return read
                    connection.start_next_cycle()
                case _:
                    return read
    except h11.RemoteProtocolError:
        read.refused = True
        return read
