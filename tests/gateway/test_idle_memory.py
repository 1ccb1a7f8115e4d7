"""What an idle connection keeps of the request that it has carried: nothing of a long head, nor of its body."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway.proxy.channel import Channel
from gateway.relay_protocol import RelayProtocol
from tests.fuzz.readers import Sink

CONNECTIONS = 5
MOST_KEPT_BYTES = 16 * 1024


async def _app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


async def _serve(channel: Channel) -> None:
    await channel.answer(200, b"content-length: 0\r\n", b"")


_CONFIG = uvicorn.Config(_app, log_config=None, access_log=False, lifespan="off")
_CONFIG.load()
_HEADS = b"host: g\r\nauthorization: Bearer wrong\r\n" + b"".join(b"x-%d: %b\r\n" % (n, b"y" * 290) for n in range(190))


_LONG_HEAD = _HEADS + b"content-length: 2\r\n\r\n{}"
_BODY = b"host: g\r\ncontent-length: 200000\r\n\r\n" + b"x" * 200_000
_CHUNKS = b"host: g\r\ntransfer-encoding: chunked\r\n\r\n" + b"2\r\n{}\r\n" * 30_000 + b"0\r\n\r\n"


@pytest.mark.parametrize("rest", [_LONG_HEAD, _BODY, _CHUNKS], ids=["a long head", "a body", "small chunks"])
@pytest.mark.parametrize("line", [b"POST /v1/a HTTP/1.1", b"GET /a HTTP/1.1", b"POST /a HTTP/1.1"])
async def test_an_idle_connection_keeps_nothing_of_what_it_was_sent(line: bytes, rest: bytes) -> None:
    """The answer is there before anybody has read the body, as that of a wrong token is."""
    protocol: Any = type("Protocol", (RelayProtocol,), {"find_relay": staticmethod(lambda: _serve)})
    state, kept = ServerState(), []
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(CONNECTIONS):
            connection = protocol(config=_CONFIG, server_state=state, app_state={})
            sink = Sink()
            connection.connection_made(sink)
            for _ in range(2):
                connection.data_received(line + b"\r\n" + rest)
                while state.tasks:
                    await asyncio.sleep(0)
            assert sink.written.count(b"HTTP/1.1 200") == 2
            kept.append(connection)
        assert (tracemalloc.get_traced_memory()[0] - before) / CONNECTIONS < MOST_KEPT_BYTES
    finally:
        tracemalloc.stop()
