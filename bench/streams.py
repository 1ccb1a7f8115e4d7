"""Memory of a gateway with many open streams: 256 connections at work, then thousands of paced streams at once.

    python bench/streams.py [--streams 10000] [--seconds 5]

Each stream gets one event a second. A further stream costs the growth of the process, in resident memory (Pss), from a
quarter of the streams to all of them; what the kernel holds for its sockets is not in that figure.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop
from installation import Installation
from load import STREAM, run_load
from mock_provider import start_provider
from processes import Running

PACED = STREAM.replace('"stream":true', '"stream":true,"paced":true')

refusals: list[str] = []
"""The first answer that was none."""


class Reader(asyncio.Protocol):
    """One caller: sends its request and counts what comes."""

    def __init__(self, request: bytes, counts: dict[str, int]) -> None:
        self.request, self.counts = request, counts
        self.started = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if not self.started:
            self.started = True
            served = data.startswith(b"HTTP/1.1 200")
            self.counts["open" if served else "refused"] += 1
            if not served and not refusals:
                refusals.append(data[:1000].decode("latin-1"))
        self.counts["events"] += data.count(b"data:")

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.counts["lost"] += 1


async def hold(port: int, token: str, streams: int, seconds: float, gateway: Running) -> tuple[float, float, float]:
    """Open the streams; return MiB at a quarter of them and at all, and CPU milliseconds an event meanwhile."""
    counts = {"open": 0, "refused": 0, "events": 0, "lost": 0}
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {token}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(PACED)}\r\n\r\n{PACED}"
    ).encode()
    loop = asyncio.get_running_loop()
    readers: list[Reader] = []

    async def grow(wanted: int) -> None:
        while len(readers) < wanted:
            made = await asyncio.gather(
                *(
                    loop.create_connection(lambda: Reader(request, counts), "127.0.0.1", port)
                    for _ in range(min(100, wanted - len(readers)))
                )
            )
            readers.extend(protocol for _, protocol in made)
        until = time.monotonic() + 120
        while counts["open"] < wanted and time.monotonic() < until:
            if counts["refused"] or counts["lost"]:
                raise SystemExit(f"not every stream was served: {counts} {refusals}")
            await asyncio.sleep(0.05)
        await asyncio.sleep(seconds)

    await grow(streams // 4)
    quarter = gateway.memory_mb()
    await grow(streams)
    events, cpu_s = counts["events"], gateway.cpu_s()
    await asyncio.sleep(seconds)
    per_event = (gateway.cpu_s() - cpu_s) / max(1, counts["events"] - events) * 1e3
    whole = gateway.memory_mb()
    if counts["lost"]:
        raise SystemExit(f"streams were lost: {counts}")
    for reader in readers:
        reader.transport.abort()
    return quarter, whole, per_event


def report(installation: Installation, token: str, streams: int, seconds: float) -> list[str]:
    """Give the rows of the table."""
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Two files a stream in the gateway, one here and one in the provider.
    able = min(streams, (hard - 500) // 2)
    gateway, port = installation.start_gateway(
        LLM_PROXY_MAX_CONNECTIONS="30000", LLM_PROXY_MAX_UPSTREAM_CONNECTIONS="30000"
    )
    try:
        busy = run_load(
            installation.directory, port, "small", token, connections=256, seconds=2.0, measured=gateway
        ).memory_mb
        quarter, whole, per_event = uvloop.run(hold(port, token, able, seconds, gateway))
    finally:
        gateway.stop()
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    each = (whole - quarter) * 1024 / (able - able // 4)
    rows = [
        f"| memory at 256 connections | {busy:.0f} MiB |",
        f"| memory at {able:,} open streams | {whole:.0f} MiB |",
        f"| each further open stream | {each:.1f} KiB |",
        f"| CPU an event, {able:,} streams with one a second | {per_event:.3f} ms |",
    ]
    if able < streams:
        rows.append(f"| not {streams:,} streams: `ulimit -Hn` is | {hard} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llm-proxy-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        provider, provider_port = start_provider(directory)
        installation = Installation(directory)
        try:
            installation.start_control()
            token = installation.new_tenant(provider_port)
            installation.stop_control()
            rows = report(installation, token, arguments.streams, arguments.seconds)
        finally:
            installation.close()
            provider.stop()
    print("\n".join(["| what | figure |", "|---|---|", *rows]))


if __name__ == "__main__":
    main()
