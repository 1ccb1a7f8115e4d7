"""Opens many connections to one process and says what they cost: `python -m tests.e2e.crowd [count]`.

Each connection sends one request and then stays, idle, at a gateway that is started for it. There are 28,000 ports from
one address to another, so the callers come from several loopback addresses.
"""

from __future__ import annotations

import asyncio
import re
import resource
import sys
import tempfile
from pathlib import Path

from tests.e2e.conftest import free_port, wait_for
from tests.e2e.production import installation

BATCH = 500


def resident_kib(pid: int) -> int:
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0])


async def gather_crowd(port: int, count: int) -> list[asyncio.StreamWriter]:
    """Open `count` connections, each of which has been answered once."""
    opened: list[asyncio.StreamWriter] = []

    async def one(number: int) -> None:
        source = (f"127.0.{number // 10_000}.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=source)
        writer.write(b"GET /livez HTTP/1.1\r\nhost: g\r\n\r\n")
        await reader.readuntil(b"alive")
        opened.append(writer)

    for start in range(0, count, BATCH):
        await asyncio.gather(*(one(number) for number in range(start, min(start + BATCH, count))))
    return opened


async def main(count: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(count, most - 220)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="llm-proxy-crowd-") as directory:
        port = free_port()
        settings = {
            "LLM_PROXY_MAX_CONNECTIONS": str(count + 10),
            "LLM_PROXY_MAX_UPSTREAM_CONNECTIONS": "10",
            "LLM_PROXY_KEEP_ALIVE": "600",
        }
        async with installation(Path(directory), port, **settings) as running:
            process, log = running.spawn("serve", port)
            await asyncio.to_thread(wait_for, f"http://127.0.0.1:{port}/readyz", process, log)
            await gather_crowd(port, 10)
            before = resident_kib(process.pid)
            opened = await gather_crowd(port, count)
            after = resident_kib(process.pid)
            print(
                f"{len(opened)} connections: {before / 1024:.0f} → {after / 1024:.0f} MiB, "
                f"{(after - before) / len(opened):.1f} KiB each"
            )
            for writer in opened:
                writer.transport.abort()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000))
