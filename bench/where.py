"""Where the CPU of a relayed request goes, by stage: a sample for each millisecond of CPU, not of time.

    python bench/where.py [--case small] [--seconds 6]

The gateway runs as always, with a timer of its CPU time (`ITIMER_PROF`) whose handler notes what is running; so the
shares hold on a busy machine, too. A sample belongs to the innermost function of ours (system calls and C libraries
count for who called them); what the event loop does by itself is a stage of its own.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import resource
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from mock_provider import start_provider
from processes import MEASURED_CORE, Running, free_port

STAGES = (
    (
        "read the request, write the answer",
        r"gateway/(relay|strict|deadline|paced|known|server)\w*\.py|uvicorn/protocols",
    ),
    ("token", r"auth/|gateway/proxy/credentials"),
    (
        "head, body, pool, policy",
        r"gateway/proxy/(head|intake|json_model|routes|choice|inquiry|spending)|gateway/policy/",
    ),
    ("choose, reserve, learn, settle", r"gateway/(balancing|leases)/|gateway/proxy/queue"),
    ("send to the provider, read its answer", r"gateway/upstream/"),
    ("usage, price, metrics", r"gateway/(metering/|traffic_metrics|database)|gateway/proxy/record|asyncpg/"),
    ("carry it from step to step", r"gateway/proxy/"),
)
REST = "event loop, timers, everything else"


def profiled(arguments: list[str], out: str) -> None:
    """Run the program in this process and write the samples when it ends."""
    samples: collections.Counter[str] = collections.Counter()
    own = re.compile("|".join(f"(?:{pattern})" for _, pattern in STAGES))

    def note(_: int, frame: FrameType | None) -> None:
        while frame is not None:
            name = frame.f_code.co_filename
            if own.search(name):
                samples[name] += 1
                return
            frame = frame.f_back
        samples[""] += 1

    def start(_: int, __: FrameType | None) -> None:
        samples.clear()
        began = resource.getrusage(resource.RUSAGE_SELF)
        used[:] = [began.ru_utime, began.ru_stime]
        signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)

    def finish(_: int, __: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        now = resource.getrusage(resource.RUSAGE_SELF)
        user, system = now.ru_utime - used[0], now.ru_stime - used[1]
        Path(out).write_text(json.dumps({"samples": samples, "user": user, "system": system}))

    used = [0.0, 0.0]
    signal.signal(signal.SIGPROF, note)
    signal.signal(signal.SIGUSR1, start)
    signal.signal(signal.SIGUSR2, finish)
    sys.argv = ["llm-proxy", *arguments]
    from gateway.cli.program import main as program

    program()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="small", choices=["small", "big", "stream"])
    parser.add_argument("--seconds", type=float, default=6.0)
    given = parser.parse_args()
    from installation import Installation, wait_until_ready
    from load import run_load

    with tempfile.TemporaryDirectory(prefix="llm-proxy-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        provider, provider_port = start_provider(directory)
        installation = Installation(directory)
        try:
            installation.start_control()
            token = installation.new_tenant(provider_port)
            installation.stop_control()
            out, port = directory / "samples.json", free_port()
            gateway = Running(
                [sys.executable, __file__, "--run", str(out), "gateway"],
                core=MEASURED_CORE,
                log=directory / "gateway.log",
                environment={**installation.environment, "PORT": str(port)},
            )
            try:
                gateway.wait_for_port(port)
                wait_until_ready(port)
                run_load(directory, port, given.case, token, connections=64, seconds=2.0, measured=gateway)
                os.kill(gateway.pids[-1], signal.SIGUSR1)
                run_load(directory, port, given.case, token, connections=64, seconds=given.seconds, measured=gateway)
                os.kill(gateway.pids[-1], signal.SIGUSR2)
                while not out.exists():
                    signal.sigtimedwait([], 0.1)
                found = json.loads(out.read_text())
            finally:
                gateway.stop()
        finally:
            installation.close()
            provider.stop()
    stages: collections.Counter[str] = collections.Counter()
    for file, count in found["samples"].items():
        stages[next((stage for stage, pattern in STAGES if re.search(pattern, file)), REST)] += count
    whole = sum(stages.values())
    print(f"| stage ({given.case}) | share of CPU |\n|---|---|")
    for stage, count in stages.most_common():
        print(f"| {stage} | {100 * count / whole:.0f} % |")
    print(f"\nIn the kernel: {100 * found['system'] / (found['user'] + found['system']):.0f} %.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        profiled(sys.argv[3:], sys.argv[2])
    else:
        main()
