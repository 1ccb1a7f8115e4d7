"""CPU a relayed request costs in the gateway's data path, everything on, beside the bare upstream and a bare ASGI app.

    python bench/data_path.py [--requests 20000] [--connections 64] [--rounds 3] [--profile FILE]

Three processes: a mock provider, the gateway (uvicorn on uvloop; token verified, pool, strategy, limits, usage rows
recorded and discarded), and the loader. CPU is user + system time of the gateway's process per request, the median of
rounds; on a noisy machine compare ratios within one run.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import multiprocessing
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple
from uuid import UUID

import httptools
import uvicorn
import uvloop
from relay_client import REQUEST, mock, pin

from auth.bearer import ProofChecker
from auth.keyset import KeySet, Signer
from auth.revocations import Revocations
from auth.secret import Secret
from auth.tokens import Grant, Verifier, mint
from gateway.metering.event import UsageEvent
from gateway.metering.pricing import load_prices
from gateway.metering.recorder import UsageRecorder
from gateway.proxy.app import DataPath
from gateway.proxy.directory import Directory, InMemoryLoader
from gateway.proxy.runtime import Workshop
from gateway.relay_protocol import RelayProtocol
from gateway.telemetry import Metrics
from gateway.traffic_metrics import TrafficMetrics
from gateway.upstream.connect import DirectConnector
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.pool import ConnectionPool
from tenants.snapshot import KeySnapshot, PoolSnapshot, QuotaSnapshot, TenantSnapshot

TENANT = UUID(int=1)
ISSUER = "https://bench.example"


def snapshot(port: int) -> TenantSnapshot:
    def key(number: int, weight: int) -> KeySnapshot:
        return KeySnapshot(
            key_id=UUID(int=number),
            name=f"key-{number}",
            version=1,
            secret=Secret(f"sk-{number}"),
            provider="simulated",
            base_url=f"http://127.0.0.1:{port}",
            region="eu",
            tier=0,
            weight=weight,
            models=("gpt-*",),
            model_map={},
            max_in_flight=None,
            quota_id=UUID(int=number),
        )

    keys = (key(11, 50), key(12, 30), key(13, 20))
    limits = {"rpm": 100_000_000, "tpm": 2_000_000_000}
    quotas = tuple(QuotaSnapshot(each.quota_id, each.name, each.provider, limits) for each in keys)
    return TenantSnapshot(
        TENANT, "acme", "active", 1, {}, (PoolSnapshot(UUID(int=2), "main", "weighted", True, {}, keys, quotas),)
    )


class Discard:
    """A usage store that is always well and keeps nothing."""

    async def write(self, batch: Sequence[UsageEvent]) -> None:
        del batch


async def bare(_: Any, receive: Any, send: Any) -> None:
    """Answer with nothing behind: what uvicorn and ASGI cost."""
    while (await receive()).get("more_body"):
        pass
    body = b"{}"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": body})


def gateway(pipe: Connection, upstream_port: int, profile: str | None, made_by: type[DataPath] = DataPath) -> None:
    pin(0)
    stop: list[uvicorn.Server] = []

    async def serve() -> None:
        signer = Signer.generate()
        keys = KeySet([signer.public()])
        verifier = Verifier(ISSUER, ISSUER, keys, Revocations(), time.time)
        grant = Grant(
            issuer=ISSUER, audience=ISSUER, tenant_id=TENANT, client_id="app", subject="app",
            scopes=frozenset({"inference"}), lifetime_s=3600,
        )  # fmt: skip
        token = mint(signer, grant, now=time.time(), token_id="jti")
        egress, rng = EgressPolicy(allow_private=True), random.Random(0)
        directory = Directory(
            InMemoryLoader(snapshot(upstream_port)), Workshop(egress, time.monotonic, rng), poll_s=3600
        )
        await directory.start()
        recorder = UsageRecorder(Discard())
        recorder.start()
        data_path = made_by(
            verifier=verifier,
            proofs=ProofChecker(ISSUER, time.time),
            directory=directory,
            upstream=ConnectionPool(DirectConnector(egress)),
            recorders=(recorder, TrafficMetrics(Metrics())),
            prices=load_prices(),
            rng=rng,
        )

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/bare":
                await bare(scope, receive, send)
            else:
                await data_path(scope, receive, send)

        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=type("Protocol", (RelayProtocol,), {"find_relay": staticmethod(lambda: data_path.serve)}),
            lifespan="off",
            log_config=None,
            access_log=False,
            port=0,
            server_header=False,
        )
        server = uvicorn.Server(config)
        stop.append(server)
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        pipe.send((server.servers[0].sockets[0].getsockname()[1], token))
        await task

    def report() -> None:
        while pipe.recv() == "cpu":
            pipe.send(time.process_time())
        stop[0].should_exit = True

    threading.Thread(target=report, daemon=True).start()
    if profile:
        profiler = cProfile.Profile()
        profiler.enable()
        try:
            uvloop.run(serve())
        finally:
            profiler.disable()
            profiler.dump_stats(profile)
    else:
        uvloop.run(serve())


class Caller(asyncio.Protocol):
    """Sends one request after another over one connection until the common count is spent."""

    def __init__(self, request: bytes, budget: list[int], latencies: list[float]) -> None:
        self.request, self.budget, self.latencies = request, budget, latencies
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.next()

    def next(self) -> None:
        if self.budget[0] <= 0:
            self.transport.close()
            if not self.done.done():
                self.done.set_result(None)
            return
        self.budget[0] -= 1
        self.parser = httptools.HttpResponseParser(self)
        self.sent_at = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_headers_complete(self) -> None:
        if self.parser.get_status_code() != 200:
            raise SystemExit(f"the gateway answered {self.parser.get_status_code()}")

    def on_message_complete(self) -> None:
        self.latencies.append(time.perf_counter() - self.sent_at)
        asyncio.get_running_loop().call_soon(self.next)


async def load(port: int, request: bytes, requests: int, connections: int) -> tuple[float, float]:
    """Return requests per second and the median latency in ms."""
    budget, latencies = [requests], list[float]()
    loop, start = asyncio.get_running_loop(), time.perf_counter()
    callers = [
        (await loop.create_connection(lambda: Caller(request, budget, latencies), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(caller.done for caller in callers))
    return requests / (time.perf_counter() - start), statistics.median(latencies) * 1e3


def request(path: str, token: str, body: bytes) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n"
        "accept: application/json\r\nuser-agent: OpenAI/Python 3\r\nx-stainless-lang: python\r\n"
        f"x-stainless-os: Linux\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


class Started(NamedTuple):
    """A provider and a gateway, each a process of its own; `pipe` leads to the gateway."""

    provider: BaseProcess
    process: BaseProcess
    pipe: Connection
    port: int
    token: str
    upstream_port: int

    def stop(self) -> None:
        """End both."""
        self.pipe.send("stop")
        self.process.join(10)
        self.provider.terminate()


def started(serve: Callable[..., None], *told: object) -> Started:
    """Start a mock provider, and `serve(pipe, its port, *told)` before it, which tells its own port and a token."""
    context = multiprocessing.get_context("spawn")
    mock_pipe, mock_end = multiprocessing.Pipe()
    provider = context.Process(target=mock, args=(mock_end,), daemon=True)
    provider.start()
    upstream_port: int = mock_pipe.recv()
    pipe, end = multiprocessing.Pipe()
    process = context.Process(target=serve, args=(end, upstream_port, *told), daemon=True)
    process.start()
    port, token = pipe.recv()
    return Started(provider, process, pipe, port, token, upstream_port)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", help="write a cProfile of the gateway's process there")
    arguments = parser.parse_args()
    running = started(gateway, arguments.profile)
    pipe, port, token, upstream_port = running.pipe, running.port, running.token, running.upstream_port
    pin(1)

    def cpu() -> float:
        pipe.send("cpu")
        used: float = pipe.recv()
        return used

    big = REQUEST[:-4] + b"x" * 8000 + REQUEST[-4:]
    cases = {
        "bare ASGI": (request("/bare", token, REQUEST), arguments.requests, port),
        "small JSON": (request("/v1/chat/completions", token, REQUEST), arguments.requests, port),
        "8 KB JSON": (request("/v1/chat/completions", token, big), arguments.requests, port),
        "direct": (request("/v1/chat/completions", token, REQUEST), arguments.requests, upstream_port),
    }
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in cases}
    try:
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", flush=True)
            for name, (raw, count, to) in cases.items():
                uvloop.run(load(to, raw, arguments.connections * 4, arguments.connections))
                before = cpu()
                rate, latency = uvloop.run(load(to, raw, count, arguments.connections))
                rows[name].append(((cpu() - before) / count * 1e3, rate, latency))
    finally:
        running.stop()
    print(f"\n{'case':12} {'CPU ms':>8} {'rps':>8} {'p50 ms':>8}")
    for name, values in rows.items():
        used, rate, latency = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{name:12} {used if name != 'direct' else 0:8.4f} {rate:8.0f} {latency:8.2f}")


if __name__ == "__main__":
    main()
