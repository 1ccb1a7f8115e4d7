"""The table of docs/performance.md: this project and its peers, side by side in one run.

    python bench/table.py [--rounds 3] [--seconds 3] [--envoy PROGRAM] [--only ours,nginx]

CPU is user and system time of all of a proxy's processes for one request: the figure that stays true on a busy
machine. Rounds of all proxies are interleaved, medians are shown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from installation import Installation
from load import CASES, Round, run_load
from mock_provider import start_provider
from processes import Running
from proxies import start_envoy, start_nginx

WARM_UP_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--envoy")
    parser.add_argument("--only", default="")
    parser.add_argument("--cases", default=",".join(CASES))
    arguments = parser.parse_args()
    wanted = set(filter(None, arguments.only.split(",")))
    with tempfile.TemporaryDirectory(prefix="llm-proxy-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        provider, provider_port = start_provider(directory)
        installation = Installation(directory)
        proxies: dict[str, tuple[Running | None, int]] = {}
        missing: list[str] = []
        try:
            installation.start_control()
            token = installation.new_tenant(provider_port)
            installation.stop_control()
            for label, start in (
                ("LLM Proxy", installation.start_gateway),
                ("nginx", lambda: start_nginx(directory, provider_port)),
                ("Envoy", lambda: start_envoy(directory, provider_port, arguments.envoy)),
            ):
                if wanted and label not in wanted:
                    continue
                started = start()
                if isinstance(started, str):
                    missing.append(started)
                else:
                    proxies[label] = started
            proxies["direct"] = (None, provider_port)
            rows: dict[tuple[str, str], list[Round]] = {}
            for case in arguments.cases.split(","):
                for number in range(arguments.rounds + 1):
                    for label, (measured, port) in proxies.items():
                        found = run_load(
                            directory,
                            port,
                            case,
                            token,
                            connections=arguments.connections,
                            seconds=arguments.seconds if number else WARM_UP_S,
                            measured=measured,
                        )
                        if number:
                            rows.setdefault((case, label), []).append(found)
        finally:
            for running, _ in proxies.values():
                if running is not None:
                    running.stop()
            installation.close()
            provider.stop()
    print(f"load {os.getloadavg()}")
    for (case, label), rounds in rows.items():
        cpu = statistics.median(each.cpu_ms for each in rounds)
        rps = statistics.median(each.rps for each in rounds)
        p99 = statistics.median(each.p99_ms for each in rounds)
        print(f"{case:8} {label:12} {cpu:8.4f} {rps:9.0f} {p99:8.1f} {max(r.memory_mb for r in rounds):7.1f}")
    for each in missing:
        print(each)


if __name__ == "__main__":
    main()
