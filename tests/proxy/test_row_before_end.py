"""A caller who has the whole answer has a usage row: it is written before the last bytes leave.

Otherwise a process that is killed between the two has served what nobody ever accounts for.
"""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from tests.proxy import harness
from tests.proxy.harness import key, pool, running_gateway, tenant
from tests.proxy.scripted import Exchange, Script, scripted_upstream

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
LARGE = b'{"choices":[],"x":"' + b"y" * 200_000 + b'"}'


@pytest.fixture(autouse=True, params=["own server", "asgi"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "OVER_ASGI", request.param == "asgi")


async def _plain(exchange: Exchange, body: bytes = b"{}", kind: bytes = b"application/json") -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (kind, len(body))
    await exchange.send(head + body)


async def _large(exchange: Exchange) -> None:
    await _plain(exchange, LARGE)


async def _measured_stream(exchange: Exchange) -> None:
    await _plain(exchange, EVENT + b"data: [DONE]\n\n", b"text/event-stream")


async def _stream(exchange: Exchange) -> None:
    await exchange.head_of_stream()
    await exchange.chunk(EVENT)
    await exchange.chunk(b"data: [DONE]\n\n")
    await exchange.send(b"0\r\n\r\n")


async def _broken_stream(exchange: Exchange) -> None:
    await exchange.head_of_stream()
    await exchange.chunk(EVENT)
    exchange.writer.transport.abort()


async def _refusal(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")


def _whole(answer: bytes) -> bool:
    head, there, body = answer.partition(b"\r\n\r\n")
    if not there:
        return False
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length: "):
            return len(body) >= int(line[16:])
    return body.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("script", [_plain, _large, _measured_stream, _stream, _broken_stream, _refusal])
async def test_the_row_comes_first(script: Script) -> None:
    await _watch(script, "/v1/chat/completions")


async def test_the_row_of_a_refused_request_comes_first() -> None:
    await _watch(_plain, "/pools/nowhere/v1/chat/completions")


async def _watch(script: Script, path: str) -> None:
    async with (
        scripted_upstream(script) as upstream,
        running_gateway(tenant(pool("main", key("a", upstream.base_url)))) as gateway,
    ):
        received = bytearray()
        with socket.create_connection((gateway.origin.host, gateway.origin.port)) as caller:
            caller.setblocking(False)

            def drain() -> None:
                try:
                    while data := caller.recv(1 << 20):
                        received.extend(data)
                except BlockingIOError:
                    pass

            seen: list[bool] = []

            def look() -> None:
                drain()
                seen.append(_whole(bytes(received)))

            gateway.usage.on_row = look
            body = json.dumps({**CHAT, "stream": script in {_measured_stream, _stream, _broken_stream}}).encode()
            head = f"POST {path} HTTP/1.1\r\nhost: g\r\nauthorization: Bearer good\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            caller.sendall(head.encode() + body)
            async with asyncio.timeout(10):
                while not _whole(bytes(received)):
                    await asyncio.sleep(0.001)
                    drain()
            assert seen == [False]
            assert (await gateway.row()).status in {200, 400, 404}
