"""Requests by wrk, and what a round of them cost the process under measurement."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from processes import OTHER_CORE, Running, pinned

SMALL = '{"model":"gpt-4o-mini","messages":[{"role":"user","content":"' + "x" * 420 + '"}]}'
BIG = '{"model":"gpt-4o-mini","messages":[{"role":"user","content":"' + "x" * 8100 + '"}]}'
STREAM = '{"model":"gpt-4o-mini","stream":true,"messages":[{"role":"user","content":"' + "x" * 420 + '"}]}'
CASES = {"small": SMALL, "big": BIG, "stream": STREAM}

_SCRIPT = """\
wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.body = %s
wrk.headers["Authorization"] = "Bearer %s"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Accept"] = "application/json"
wrk.headers["User-Agent"] = "OpenAI/Python 2.8.1"
wrk.headers["X-Stainless-Lang"] = "python"
wrk.headers["X-Stainless-OS"] = "Linux"
%s
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\nRESULT {"requests": %%d, "duration_us": %%d, "bad": %%d, "p50_us": %%d, "p99_us": %%d}\\n',
    summary.requests, summary.duration, errors.status + errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""

_PAUSE = """\
function delay()
  return math.floor(-math.log(1 - math.random()) * %g + 0.5)
end
"""


@dataclass(frozen=True, slots=True)
class Round:
    """One round; `cpu_ms` is what the measured process used for a request, 0 without one."""

    cpu_ms: float
    rps: float
    p50_ms: float
    p99_ms: float
    memory_mb: float

    @property
    def figures(self) -> tuple[float, float, float, float, float]:
        """Give them in their order."""
        return self.cpu_ms, self.rps, self.p50_ms, self.p99_ms, self.memory_mb


def run_load(
    directory: Path,
    port: int,
    case: str,
    token: str,
    *,
    connections: int,
    seconds: float,
    measured: Running | None,
    pause_ms: float = 0.0,
) -> Round:
    """Load `port` for so long; SystemExit when an answer was no 2xx.

    `pause_ms`: each connection waits for a random time, of this mean, before each request.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("wrk is not installed (Debian: apt-get install wrk)")
    script = directory / f"{case}.lua"
    script.write_text(_SCRIPT % (json.dumps(CASES[case]), token, _PAUSE % pause_ms if pause_ms else ""))
    command = [
        wrk,
        "-t1",
        f"-c{connections}",
        f"-d{seconds:g}s",
        "--timeout",
        "30s",
        "-s",
        str(script),
        f"http://127.0.0.1:{port}",
    ]
    before = measured.cpu_s() if measured else 0.0
    done = subprocess.run(pinned(OTHER_CORE, command), capture_output=True, text=True, check=True)
    used = measured.cpu_s() - before if measured else 0.0
    result = json.loads(done.stdout.split("RESULT ")[1])
    if result["bad"] or not result["requests"]:
        raise SystemExit(f"the load went wrong: {done.stdout}")
    requests, took_s = result["requests"], result["duration_us"] / 1e6
    return Round(
        cpu_ms=used / requests * 1e3,
        rps=requests / took_s,
        p50_ms=result["p50_us"] / 1e3,
        p99_ms=result["p99_us"] / 1e3,
        memory_mb=measured.memory_mb() if measured else 0.0,
    )
