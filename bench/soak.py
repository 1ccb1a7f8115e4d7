"""An hour of steady traffic over one installation: do memory, descriptors and tasks stay where they are?

    python -m bench.soak [--minutes 60] [--rate 80] [--out DIR] [--seed 1]

Runs an embedded Postgres and `llm-proxy serve` as a process of its own; provider and callers are in this one
(`bench.soak_traffic`). Every few seconds the gateway's process tree is looked at (Linux's /proc) and its /metrics are
read. In the end OUT holds `samples.csv`, `soak.svg` and `verdict.txt`; the exit code is 0 when everything is flat over
the second half, callers got what they should have, and each of their requests has its usage row.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TextIO

import asyncpg
import httpx2

from bench.soak_traffic import Callers, Provider
from bench.soak_verdict import Allowance, judge, plot
from tests.e2e.conftest import free_port, wait_for
from tests.e2e.production import Installation, installation

MIB = 1024.0 * 1024.0
TOKEN_EVERY_S = 300.0
WATCHED = {
    "rss_mib": ("Resident memory", "MiB", Allowance(4.0, 0.03)),
    "allocated_blocks": ("Python's allocated blocks", "blocks", Allowance(5_000, 0.02)),
    "fds": ("File descriptors", "open", Allowance(4, 0.05)),
    "tasks": ("asyncio tasks", "alive", Allowance(4, 0.05)),
}
METRICS = {
    "llm_proxy_tasks": "tasks",
    "python_allocated_blocks": "allocated_blocks",
    "llm_proxy_in_flight": "in_flight",
    "llm_proxy_usage_buffered": "usage_buffered",
    "llm_proxy_upstream_connections": "upstream_connections",
    'python_gc_collections_total{generation="2"}': "gc_full",
}
COLUMNS = ("seconds", "rss_mib", "fds", "processes", *METRICS.values())
Sample = dict[str, float]


def tree(pid: int) -> list[int]:
    """Return `pid` and its descendants."""
    found = [pid]
    for each in found:
        with contextlib.suppress(FileNotFoundError):
            for task in Path(f"/proc/{each}/task").glob("*/children"):
                found += [int(child) for child in task.read_text().split()]
    return found


def look_at(pid: int) -> Sample:
    """Return resident memory, open descriptors and processes of the tree of `pid`."""
    pids = tree(pid)
    rss = fds = 0
    for each in pids:
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            rss += int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{each}/status").read_text())[0]) * 1024
            fds += sum(1 for _ in Path(f"/proc/{each}/fd").iterdir())
    return {"rss_mib": rss / MIB, "fds": float(fds), "processes": float(len(pids))}


async def sample(pid: int, client: httpx2.AsyncClient) -> Sample:
    """Return one row of the table."""
    answer = await client.get("/metrics")
    told = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    return {**look_at(pid), **{column: float(told[name]) for name, column in METRICS.items() if name in told}}


async def watch(
    process: subprocess.Popen[bytes], base_url: str, every_s: float, samples: list[Sample], table: TextIO
) -> None:
    """Sample until cancelled, or until the process has ended; each row is on the disk at once."""
    writer = csv.DictWriter(table, COLUMNS, restval="")
    writer.writeheader()
    begun = time.monotonic()
    async with httpx2.AsyncClient(base_url=base_url, timeout=30) as client:
        while True:
            if process.poll() is not None:
                raise ChildProcessError(f"the gateway ended with {process.returncode}")
            try:
                row = {"seconds": round(time.monotonic() - begun, 1), **await sample(process.pid, client)}
            except httpx2.HTTPError as error:
                print(f"no sample: {error!r}", flush=True)
                await asyncio.sleep(every_s)
                continue
            samples.append(row)
            writer.writerow({name: round(value, 2) for name, value in row.items()})
            table.flush()
            if len(samples) % 12 == 1:
                said = ", ".join(f"{name} {value:g}" for name, value in row.items() if name in WATCHED)
                print(f"{row['seconds']:7.0f} s  {said}", flush=True)
            await asyncio.sleep(every_s)


async def keep_token(running: Installation, base_url: str, callers: Callers, client: dict[str, str]) -> None:
    """Renew the callers' token as a client would, so that issuing and caching are under soak too."""
    while True:
        await asyncio.sleep(TOKEN_EVERY_S)
        callers.token = await asyncio.to_thread(running.token, base_url, client)


async def tenant(running: Installation, base_url: str, provider: int) -> dict[str, str]:
    """Create a tenant with a pool of three keys; return its client."""
    keys = [
        {
            "name": f"key-{number}",
            "provider": "simulated",
            "base_url": f"http://127.0.0.1:{provider}",
            "api_key": f"sk-soak-{number}-000000000",
            "weight": number,
        }
        for number in (1, 2, 3)
    ]
    operator = {"authorization": f"Bearer {await asyncio.to_thread(running.token, base_url, running.operator)}"}
    async with httpx2.AsyncClient(base_url=base_url) as http:
        made = await http.post("/api/v1/tenants", json={"slug": "soak"}, headers=operator)
        client: dict[str, str] = made.raise_for_status().json()["client"]
        token = await asyncio.to_thread(running.token, base_url, client)
        pool = {"name": "main", "strategy": "weighted", "providers": keys}
        imported = await http.post("/api/v1/pools/import", json=pool, headers={"authorization": f"Bearer {token}"})
        imported.raise_for_status()
    return client


async def usage_rows(running: Installation) -> int:
    connection = await asyncpg.connect(running.postgres.owner_url)
    try:
        return int(await connection.fetchval("select count(*) from usage_event"))
    finally:
        await connection.close()


async def soak(minutes: float, rate: float, out: Path, seed: int) -> bool:
    """Run it; True when everything is as it should be."""
    rng = random.Random(seed)
    loop = asyncio.get_running_loop()
    provider = await loop.create_server(lambda: Provider(rng), "127.0.0.1", 0, backlog=1024)
    directory = Path(tempfile.mkdtemp(prefix="llm-proxy-soak-"))
    samples: list[Sample] = []
    try:
        port = free_port()
        async with installation(directory, port) as running:
            base_url = f"http://127.0.0.1:{port}"
            process, log = running.spawn("serve", port)
            await asyncio.to_thread(wait_for, f"{base_url}/readyz", process, log)
            client = await tenant(running, base_url, provider.sockets[0].getsockname()[1])
            callers = Callers(port, rate, rng)
            callers.token = await asyncio.to_thread(running.token, base_url, client)
            with (out / "samples.csv").open("w", newline="") as table:
                every_s = min(5.0, minutes * 60 / 40)
                watching = asyncio.create_task(watch(process, base_url, every_s, samples, table))
                renewing = asyncio.create_task(keep_token(running, base_url, callers, client))
                sending = asyncio.create_task(callers.run(minutes * 60))
                await asyncio.wait({watching, renewing, sending}, return_when=asyncio.FIRST_COMPLETED)
                for task in (watching, renewing, sending):
                    task.cancel()
                ended = await asyncio.gather(watching, renewing, sending, return_exceptions=True)
            failures = [one for one in ended if isinstance(one, Exception)]
            await asyncio.to_thread(running.stop_all)
            rows = await usage_rows(running)
            shutil.copy(log, out / "gateway.log")
    finally:
        provider.close()
        shutil.rmtree(directory, ignore_errors=True)
    return report(samples, callers, rows, failures, out)


def report(samples: list[Sample], callers: Callers, rows: int, failures: list[Exception], out: Path) -> bool:
    """Write plot and verdict; True when all is well."""
    said, well, charts = [], not failures, {}
    said += [f"FAILED     {type(failure).__name__}: {failure}" for failure in failures]
    for column, (title, unit, allowance) in WATCHED.items():
        series = [(row["seconds"], row[column]) for row in samples if column in row]
        charts[title] = (unit, {column: series})
        verdict = judge(series, allowance)
        well = well and verdict.is_flat
        said.append(
            f"{'flat' if verdict.is_flat else 'RISES':10} {title}: mean {verdict.mean:.1f} {unit}, "
            f"{verdict.rise:+.2f} ± {verdict.error:.2f} over the second half (allowed {verdict.allowed:.1f})"
        )
    odd = callers.surprises.total()
    few = odd <= callers.sent / 1000
    well = well and few
    said.append(f"{'fine' if few else 'TOO MANY':10} {odd} of {callers.sent} requests did not end as they should have")
    said += [f"           {count} × {what}" for what, count in callers.surprises.most_common(8)]
    # A caller that leaves before its request was read to the end has no row; all others have exactly one.
    kept = rows >= callers.sent - odd - callers.endings["leaves before the head"] and rows <= callers.sent * 1.001
    well = well and kept
    said.append(f"{'fine' if kept else 'LOST':10} {rows} usage rows")
    said.append("           " + ", ".join(f"{name} {count}" for name, count in sorted(callers.endings.items())))
    (out / "soak.svg").write_text(plot(charts))
    text = "\n".join(said)
    (out / "verdict.txt").write_text(text + "\n")
    print(text)
    return well


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=80.0, help="requests a second")
    parser.add_argument("--out", type=Path, default=Path("bench/results/soak"))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    return 0 if asyncio.run(soak(arguments.minutes, arguments.rate, arguments.out, arguments.seed)) else 1


if __name__ == "__main__":
    sys.exit(main())
