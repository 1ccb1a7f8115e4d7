"""The tables of docs/performance.md: this project and its peers, side by side in one run, as Markdown.

    python bench/table.py [--rounds 3] [--seconds 2] [--peers .venv-bench/bin]
                          [--only relay,latency,streams,workers,tenants] [--also LABEL=PROGRAM]

CPU is user and system time of all of a proxy's processes for one request: the figure that stays true on a busy machine.
Rounds of all proxies are interleaved, medians are shown. Each proxy has one worker, on a core of its own; the mock
provider, the load and Postgres share the other cores. nginx and Envoy forward and swap the credential, nothing else.
What more workers cost and bring is a table of its own. `--also` adds an `llm-proxy` of another environment to the first
two tables, such as one that another CPython runs.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sysconfig
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from installation import Installation
from load import CASES, Round, run_load
from many_tenants import HEAD as TENANTS_HEAD
from many_tenants import measure, plant_tenants
from mock_provider import start_provider
from processes import Running
from proxies import LITELLM_TOKEN, start_envoy, start_litellm, start_nginx
from streams import report as report_streams
from workers import HEAD as WORKERS_HEAD
from workers import report_workers

CONNECTIONS = 64
WARM_UP_S = 1.0
OURS = "LLM Proxy"
SLOW = "LiteLLM"
"""Measured once: a round of it tells enough."""


class Bench:
    """The running proxies, and what was measured of them so far."""

    def __init__(self, directory: Path, rounds: int, seconds: float) -> None:
        self.directory = directory
        self.rounds = rounds
        self.seconds = seconds
        self.provider, self.provider_port = start_provider(directory)
        self.installation = Installation(directory)
        self.proxies: dict[str, tuple[Running, int]] = {}
        self.missing: list[str] = []
        self.installation.start_control()
        self.token = self.installation.new_tenant(self.provider_port)
        self.installation.stop_control()

    def start(self, label: str, start: Callable[[], tuple[Running, int] | str]) -> None:
        """Start a proxy, or note why there is none."""
        try:
            started = start()
        except SystemExit as error:
            started = f"{label} did not start: {str(error)[-300:]}"
        if isinstance(started, str):
            self.missing.append(started)
        else:
            self.proxies[label] = started

    def close(self) -> None:
        """End everything."""
        for running, _ in self.proxies.values():
            running.stop()
        self.installation.close()
        self.provider.stop()

    def load(self, label: str, case: str, *, connections: int, seconds: float, pause_ms: float = 0.0) -> Round:
        """Load one proxy, or the provider itself (`direct`)."""
        running, port = self.proxies.get(label, (None, self.provider_port))
        token = LITELLM_TOKEN if label == SLOW else self.token
        return run_load(
            self.directory, port, case, token, connections=connections, seconds=seconds, measured=running,
            pause_ms=pause_ms,
        )  # fmt: skip

    def interleaved(self, labels: list[str], case: str, *, connections: int, pause_ms: float = 0.0) -> dict[str, Round]:
        """Give the medians of several rounds of each, the first one not counted."""
        found: dict[str, list[Round]] = {label: [] for label in labels}
        for number in range(self.rounds + 1):
            for label in labels:
                seconds = self.seconds if number else WARM_UP_S
                one = self.load(label, case, connections=connections, seconds=seconds, pause_ms=pause_ms)
                if number:
                    found[label].append(one)
        return {label: median(rounds) for label, rounds in found.items()}


def median(rounds: list[Round]) -> Round:
    """Give the median of each figure."""
    return Round(
        *(statistics.median(values) for values in zip(*(each.figures for each in rounds), strict=True)),
    )


def relay(bench: Bench) -> None:
    """Print CPU, rate, latency and memory at 64 connections."""
    labels = [label for label in bench.proxies if label != SLOW]
    found = {case: bench.interleaved(labels, case, connections=CONNECTIONS) for case in CASES}
    if SLOW in bench.proxies:
        bench.load(SLOW, "small", connections=8, seconds=3.0)
        for case in CASES:
            found[case][SLOW] = bench.load(SLOW, case, connections=8, seconds=4.0)
    print(f"\n### A relayed request, {CONNECTIONS} connections\n")
    print("| proxy | small CPU ms | x Envoy | x nginx | small rps | p99 ms | 8 KB CPU ms | 30-chunk SSE CPU ms | MiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for label in found["small"]:
        small, big, stream = (found[case][label] for case in CASES)
        ratios = [
            f"{small.cpu_ms / found['small'][peer].cpu_ms:.2f}" if peer in found["small"] else "–"
            for peer in ("Envoy", "nginx")
        ]
        print(
            f"| {label} | {small.cpu_ms:.3f} | {' | '.join(ratios)} | {small.rps:,.0f} | {small.p99_ms:.1f} "
            f"| {big.cpu_ms:.3f} | {stream.cpu_ms:.3f} | {small.memory_mb:.0f} |",
            flush=True,
        )
    for case, bound in (("small", 1.0), ("big", 1.0), ("stream", 1.3)):
        for label in found[case]:
            if "Envoy" in found[case] and label.startswith(OURS):
                ratio = found[case][label].cpu_ms / found[case]["Envoy"].cpu_ms
                print(f"\n{label}, {case}: {ratio:.2f} x Envoy, aimed at {bound} x", end="")
    print()


def latency(bench: Bench) -> None:
    """Print what a proxy adds: the median on one connection, the 99th percentile at half its load."""
    labels = ["direct", *(label for label in bench.proxies if label != SLOW)]
    one = bench.interleaved(labels, "small", connections=1)
    most = bench.load(OURS, "small", connections=CONNECTIONS, seconds=bench.seconds).rps if OURS in labels else 1000.0
    pause_ms = CONNECTIONS / (most / 2.0) * 1e3
    half = bench.interleaved(labels, "small", connections=CONNECTIONS, pause_ms=pause_ms)
    print("\n### Added latency\n")
    print(f"Half load: {most / 2:,.0f} requests a second over {CONNECTIONS} connections, at random times.\n")
    print("| proxy | one connection p50 ms | added | half load p50 ms | p99 ms | added |")
    print("|---|---|---|---|---|---|")
    for label in labels:
        added, at_half = one[label].p50_ms - one["direct"].p50_ms, half[label].p99_ms - half["direct"].p99_ms
        print(
            f"| {label} | {one[label].p50_ms:.3f} | {added:.3f} | {half[label].p50_ms:.2f} | {half[label].p99_ms:.2f} "
            f"| {at_half:.2f} |",
            flush=True,
        )


def streams(bench: Bench) -> None:
    """Print memory at many connections and streams."""
    rows = report_streams(bench.installation, bench.token, 10_000, 3.0)
    print("\n### Memory\n\n| what | figure |\n|---|---|")
    print("\n".join(rows), flush=True)


def workers(bench: Bench) -> None:
    """Print what more workers cost and bring."""

    def load(case: str, running: Running, port: int) -> Round:
        return run_load(
            bench.directory, port, case, bench.token, connections=CONNECTIONS, seconds=bench.seconds, measured=running
        )

    rows = report_workers(bench.installation, load, bench.rounds)
    print(f"\n### Workers, {CONNECTIONS} connections\n\n{WORKERS_HEAD}")
    print("\n".join(rows), flush=True)


def tenants(bench: Bench) -> None:
    """Print what many tenants cost."""
    few = measure(bench.installation, bench.token, 2.0, "1 and 3")
    plant_tenants(bench.installation, bench.provider_port, 10_000, 10)
    many = measure(bench.installation, bench.token, 2.0, "10,001 and 100,003")
    print(f"\n### Many tenants\n\n{TENANTS_HEAD}\n{few}\n{many}", flush=True)


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "relay": relay,
    "latency": latency,
    "streams": streams,
    "workers": workers,
    "tenants": tenants,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--peers", type=Path, default=Path(".venv-bench/bin"))
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--also", action="append", default=[], metavar="LABEL=PROGRAM")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    with tempfile.TemporaryDirectory(prefix="llm-proxy-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # Postgres may run as another account
        optimised = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
        optimised |= "-fprofile-use" in (sysconfig.get_config_var("PY_CORE_CFLAGS") or "")
        print(
            f"{platform.python_implementation()} {platform.python_version()}"
            f"{'' if optimised else ', built without profile-guided optimisation'}, {os.cpu_count()} cores, "
            f"{platform.system()} {platform.machine()}; load before: {os.getloadavg()[0]:.1f}"
        )
        bench = Bench(directory, arguments.rounds, arguments.seconds)
        try:
            if "relay" in chosen or "latency" in chosen:
                bench.start(OURS, bench.installation.start_gateway)
                for label, _, program in (each.partition("=") for each in arguments.also):
                    start = partial(bench.installation.start_gateway, program=program)
                    bench.start(f"{OURS}, {label}", start)
                bench.start("nginx", lambda: start_nginx(directory, bench.provider_port))
                bench.start("Envoy", lambda: start_envoy(directory, bench.provider_port, arguments.peers))
                bench.start(SLOW, lambda: start_litellm(directory, bench.provider_port, arguments.peers))
            for section in chosen:
                if section in {"streams", "workers", "tenants"}:
                    for running, _ in bench.proxies.values():
                        running.stop()
                    bench.proxies.clear()
                try:
                    SECTIONS[section](bench)
                except SystemExit as error:
                    bench.missing.append(f"{section} was not measured: {str(error)[-400:]}")
        finally:
            bench.close()
    print(f"\nLoad of the machine afterwards: {os.getloadavg()[0]:.1f}.")
    for each in bench.missing:
        print(f"\n{each}")


if __name__ == "__main__":
    main()
