"""An hour of steady traffic over one installation: do memory, descriptors and tasks stay where they are?

    python -m bench.soak [--minutes 60] [--rate 80] [--share 0.5] [--out DIR] [--seed 1]

Runs an embedded Postgres and `llm-proxy serve` as a process of its own. Callers of every kind, and their provider, are
in this process (`bench.soak_traffic`), at RATE requests a second. The bulk comes on top of them from `wrk`
(`bench.soak_bulk`), at the rate with which the gateway uses SHARE of a core: a short ramp finds it. Before the hour all
connections ask without a pause for a while: what is kept for the most that was ever under way at once is there then,
whatever the machine does later, and does not look like a leak. Every few seconds the gateway's process tree is looked
at (Linux's /proc) and its /metrics are read. In the end OUT holds `samples.csv`, `soak.svg` and `verdict.txt`; the exit
code is 0 when everything is flat (`bench.soak_verdict`), callers got what they should have, and each of their requests
has its usage row.
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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import asyncpg
import httpx2

from bench.soak_bulk import CONNECTIONS, Bulk, cheap_provider
from bench.soak_ramp import STEP_S, cpu_s, find_rate
from bench.soak_traffic import Callers, Provider
from bench.soak_verdict import Allowance, increases, judge, plot
from tests.e2e.conftest import free_port, wait_for
from tests.e2e.production import Installation, installation

MIB = 1024.0 * 1024.0
TOKEN_EVERY_S = 300.0
FULL_S, FLAT_OUT = 30.0, 1e6
RAMP_S = 3 + 3 * STEP_S + FULL_S
WATCHED = {
    "rss_mib": ("Resident memory", "MiB", Allowance(2.0, 0.02)),
    "allocated_blocks": ("Python's allocated blocks", "blocks", Allowance(2_000, 0.01)),
    "fds": ("File descriptors", "open", Allowance(40, 0.1, span=4)),
    "tasks": ("asyncio tasks", "alive", Allowance(20, 0.1, span=4)),
}
"""What is judged, and the leak in an hour that must not be there.

Resident memory goes up in steps with the most that was ever under way at once: blocks are the sharper of the two.
"""
METRICS = {
    "llm_proxy_tasks": "tasks",
    "python_allocated_blocks": "allocated_blocks",
    "llm_proxy_in_flight": "in_flight",
    "llm_proxy_usage_buffered": "usage_buffered",
    "llm_proxy_upstream_connections": "upstream_connections",
    'python_gc_collections_total{generation="2"}': "gc_full",
}
COLUMNS = ("seconds", "rss_mib", "fds", "processes", "cpu_s", *METRICS.values())
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
    return {"rss_mib": rss / MIB, "fds": float(fds), "processes": float(len(pids)), "cpu_s": cpu_s(pids)}


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


async def keep_token(token: Callable[[], Awaitable[str]], callers: Callers) -> None:
    """Renew the callers' token as a client would, so that issuing and caching are under soak too."""
    while True:
        await asyncio.sleep(TOKEN_EVERY_S)
        callers.token = await token()


async def keep_bulk(token: Callable[[], Awaitable[str]], bulk: Bulk, rate: float, seconds: float) -> None:
    """Send the bulk, on new connections and with a new token every so often."""
    end = time.monotonic() + seconds
    while (left_s := end - time.monotonic()) > 1.0:
        await bulk.run(rate, min(left_s, TOKEN_EVERY_S), await token())


async def tenant(running: Installation, base_url: str, providers: dict[str, int]) -> dict[str, str]:
    """Create a tenant with a pool of three keys for each provider; return its client."""
    operator = {"authorization": f"Bearer {await asyncio.to_thread(running.token, base_url, running.operator)}"}
    async with httpx2.AsyncClient(base_url=base_url) as http:
        made = await http.post("/api/v1/tenants", json={"slug": "soak"}, headers=operator)
        client: dict[str, str] = made.raise_for_status().json()["client"]
        token = await asyncio.to_thread(running.token, base_url, client)
        for name, port in providers.items():
            keys = [
                {
                    "name": f"{name}-{number}",
                    "provider": "simulated",
                    "base_url": f"http://127.0.0.1:{port}",
                    "api_key": f"sk-soak-{name}-{number}-000000000",
                    "weight": number,
                }
                for number in (1, 2, 3)
            ]
            pool = {"name": name, "strategy": "weighted", "providers": keys}
            imported = await http.post("/api/v1/pools/import", json=pool, headers={"authorization": f"Bearer {token}"})
            imported.raise_for_status()
    return client


async def usage_rows(running: Installation) -> int:
    connection = await asyncpg.connect(running.postgres.owner_url)
    try:
        return int(await connection.fetchval("select count(*) from usage_event"))
    finally:
        await connection.close()


async def soak(options: Options) -> bool:
    """Run it; True when everything is as it should be."""
    rng = random.Random(options.seed)
    loop = asyncio.get_running_loop()
    mixed = await loop.create_server(lambda: Provider(rng), "127.0.0.1", 0, backlog=1024)
    directory = Path(tempfile.mkdtemp(prefix="llm-proxy-soak-"))
    samples: list[Sample] = []
    try:
        port = free_port()
        async with cheap_provider(directory) as (cheap_port, wanted), installation(directory, port) as running:
            base_url = f"http://127.0.0.1:{port}"
            process, log = running.spawn("serve", port)
            await asyncio.to_thread(wait_for, f"{base_url}/readyz", process, log)
            client = await tenant(running, base_url, {"main": mixed.sockets[0].getsockname()[1], "bulk": cheap_port})

            async def token() -> str:
                return await asyncio.to_thread(running.token, base_url, client)

            callers = Callers(port, options.rate, rng)
            callers.token = await token()
            bulk = Bulk(directory, f"{base_url}/pools/bulk", wanted, options.seed)
            sending = asyncio.create_task(callers.run(options.minutes * 60 + RAMP_S))
            bulk_rate, ramp = await find_rate(
                options.share, lambda: cpu_s(tree(process.pid)), lambda *load: bulk.run(*load, callers.token)
            )
            print(ramp, flush=True)
            await bulk.run(FLAT_OUT, FULL_S, callers.token)
            with (options.out / "samples.csv").open("w", newline="") as table:
                every_s = min(5.0, options.minutes * 60 / 40)
                tasks = {
                    asyncio.gather(sending, keep_bulk(token, bulk, bulk_rate, options.minutes * 60)),
                    asyncio.create_task(watch(process, base_url, every_s, samples, table)),
                    asyncio.create_task(keep_token(token, callers)),
                }
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
            failures = [one for one in ended if isinstance(one, Exception)]
            await asyncio.to_thread(running.stop_all)
            rows = await usage_rows(running)
            shutil.copy(log, options.out / "gateway.log")
    finally:
        mixed.close()
        shutil.rmtree(directory, ignore_errors=True)
    return report(options.out, samples, callers, bulk, Ending(ramp, rows, failures))


@dataclass(frozen=True)
class Ending:
    """What is known when all is over."""

    ramp: str
    rows: int
    failures: list[Exception]


def report(out: Path, samples: list[Sample], callers: Callers, bulk: Bulk, ending: Ending) -> bool:
    """Write plot and verdict; True when all is well."""
    said, well, charts, rows = [f"ramp       {ending.ramp}"], not ending.failures, {}, ending.rows
    seconds = samples[-1]["seconds"] - samples[0]["seconds"]
    share = (samples[-1]["cpu_s"] - samples[0]["cpu_s"]) / seconds
    rps = (callers.sent + bulk.good) / seconds
    said.append(f"load       {rps:.0f} rps, {share:.0%} of a core over {seconds:.0f} s")
    said += [f"FAILED     {type(failure).__name__}: {failure}" for failure in ending.failures]
    collections = increases([(row["seconds"], row["gc_full"]) for row in samples if "gc_full" in row])
    for column, (title, unit, allowance) in WATCHED.items():
        series = [(row["seconds"], row[column]) for row in samples if column in row]
        charts[title] = (unit, {column: series})
        verdict = judge(series, allowance, collections)
        well = well and verdict.is_flat
        said.append(
            f"{verdict.word:10} {title}: {verdict.level:.1f} {unit}, {verdict.slope:+.2f} an hour "
            f"({verdict.low:+.2f} to {verdict.high:+.2f}; a leak of {verdict.allowed:.1f} must not be there), "
            f"within {verdict.span:.1f} (allowed {verdict.allowed_span:.1f})"
        )
    said.append(f"           {len(collections)} collections of the oldest generation")
    surprises = callers.surprises + bulk.surprises
    odd, sent = surprises.total(), callers.sent + bulk.good + bulk.surprises.total()
    few = odd <= sent / 1000
    well = well and few
    said.append(f"{'fine' if few else 'TOO MANY':10} {odd} of {sent} requests did not end as they should have")
    said += [f"           {count} × {what}" for what, count in surprises.most_common(8)]
    # A caller that leaves before its request was read to the end has no row; all others have exactly one. wrk leaves
    # without waiting for what is under way.
    leavers = callers.endings["leaves before the head"]
    kept = sent - odd - leavers <= rows <= sent * 1.001 + bulk.runs * CONNECTIONS
    well = well and kept
    said.append(f"{'fine' if kept else 'LOST':10} {rows} usage rows")
    said.append(
        f"           bulk {bulk.good}, " + ", ".join(f"{k} {count}" for k, count in sorted(callers.endings.items()))
    )
    (out / "soak.svg").write_text(plot(charts))
    text = "\n".join(said)
    (out / "verdict.txt").write_text(text + "\n")
    print(text)
    return well


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    minutes: float
    rate: float
    share: float
    out: Path
    seed: int


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=80.0, help="requests a second of the mixed callers")
    parser.add_argument("--share", type=float, default=0.5, help="share of a core that the gateway is to use")
    parser.add_argument("--out", type=Path, default=Path("bench/results/soak"))
    parser.add_argument("--seed", type=int, default=1)
    options = Options(**vars(parser.parse_args()))
    options.out.mkdir(parents=True, exist_ok=True)
    return 0 if asyncio.run(soak(options)) else 1


if __name__ == "__main__":
    sys.exit(main())
