"""CPU a request costs in the upstream client alone: our pool on llhttp beside httpx, against a local mock provider.

    python bench/relay_client.py [--requests 20000] [--connections 64] [--rounds 3]

The mock runs in a process of its own (pinned to another core where the system allows it). CPU is user + system time of
this process per request, the median of interleaved rounds; on a noisy machine compare ratios, not milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection

import httptools
import httpx
import uvloop

from gateway.upstream.connect import DirectConnector
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.message import Deadlines, Origin, UpstreamRequest, header_block
from gateway.upstream.pool import ConnectionPool

REQUEST = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"' + b"x" * 420 + b'"}]}'
BODY = b'{"id":"chatcmpl-1","object":"chat.completion","choices":[{"message":{"content":"' + b"y" * 900 + b'"}}]}'
SMALL = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_1\r\nopenai-processing-ms: 12\r\n"
    b"x-ratelimit-limit-requests: 5000\r\nx-ratelimit-remaining-requests: 4999\r\nx-ratelimit-reset-requests: 12ms\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
EVENT = b'data: {"id":"chatcmpl-1","choices":[{"delta":{"content":"token"}}]}\n\n'
EVENTS = 30
STREAMED = b',"stream":true}'
PACE_S = 0.02
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)


class Mock(asyncio.Protocol):
    """Answers /stream, and bodies that ask for a stream, with a write an event; everything else with one small JSON.

    The events of the latter stand `PACE_S` apart, so that each is read by itself.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.pace_s = 0.0

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_body(self, body: bytes) -> None:
        if body.endswith(STREAMED):
            self.url, self.pace_s = b"/v1/stream", PACE_S

    def on_message_complete(self) -> None:
        write = self.transport.write  # type: ignore[attr-defined]
        if self.url != b"/v1/stream":
            write(SMALL)
            return
        loop = asyncio.get_running_loop()

        def event(left: int) -> None:
            if self.transport.is_closing():
                return
            write(CHUNK if left else b"0\r\n\r\n")
            if left:
                loop.call_later(self.pace_s, event, left - 1)

        write(STREAM_HEAD)
        loop.call_later(self.pace_s, event, EVENTS)


def pin(core: int) -> None:
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {core})


def mock(pipe: Connection) -> None:
    pin(1)

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Mock, "127.0.0.1", 0, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(serve())


Call = Callable[[], Awaitable[None]]


async def measure(call: Call, requests: int, connections: int) -> tuple[float, float]:
    """Return milliseconds of CPU and of wall time per request."""
    left = requests

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    await asyncio.gather(*(call() for _ in range(connections)))
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(connections)))
    return (time.process_time() - cpu) / requests * 1e3, (time.perf_counter() - wall) / requests * 1e3


async def run(port: int, requests: int, connections: int, rounds: int) -> None:
    pool = ConnectionPool(DirectConnector(EgressPolicy(allow_private=True)))
    origin, deadlines = Origin("http", "127.0.0.1", port), Deadlines()
    fixed = header_block([(b"authorization", b"Bearer sk-test"), (b"content-type", b"application/json")])
    passed_on = [
        (b"accept", b"application/json"),
        (b"user-agent", b"OpenAI/Python 3"),
        (b"x-stainless-lang", b"python"),
    ]
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=30)
    headers = {name.decode(): value.decode() for name, value in passed_on}
    headers |= {"authorization": "Bearer sk-test", "content-type": "application/json"}

    def ours(path: bytes) -> Call:
        async def call() -> None:
            response = await pool.send(origin, UpstreamRequest(b"POST", path, passed_on, REQUEST, fixed), deadlines)
            while await response.read():
                pass

        return call

    def theirs(path: str) -> Call:
        async def call() -> None:
            async with client.stream("POST", path, content=REQUEST, headers=headers) as response:
                async for _ in response.aiter_raw():
                    pass

        return call

    rows: dict[tuple[str, str], list[tuple[float, float]]] = {}
    cases = {
        ("small", "gateway.upstream"): (ours(b"/v1/chat/completions"), requests),
        ("small", "httpx"): (theirs("/v1/chat/completions"), requests // 10),
        ("stream", "gateway.upstream"): (ours(b"/v1/stream"), requests // 10),
        ("stream", "httpx"): (theirs("/v1/stream"), requests // 40),
    }
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        for key, (call, count) in cases.items():
            rows.setdefault(key, []).append(await measure(call, max(count, connections), connections))
    print(f"\n{'case':8} {'client':18} {'CPU ms':>8} {'wall ms':>8} {'ratio':>7}")
    for (case, client_name), values in rows.items():
        cpu, wall = (statistics.median(column) for column in zip(*values, strict=True))
        base = statistics.median(value[0] for value in rows[case, "gateway.upstream"])
        print(f"{case:8} {client_name:18} {cpu:8.4f} {wall:8.4f} {cpu / base:6.1f}x")
    await client.aclose()
    await pool.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=mock, args=(theirs,), daemon=True)
    process.start()
    try:
        port = ours.recv()
        pin(0)
        uvloop.run(run(port, arguments.requests, arguments.connections, arguments.rounds))
    finally:
        process.terminate()
        process.join()


if __name__ == "__main__":
    main()
