"""The soak's bulk: what `wrk` sends to a provider in C, so that the load costs far less than what it loads.

Each body that comes back is compared with what the provider sends, byte by byte; each connection waits for a random
time before each request, so that the rate is offered and hardly depends on how fast the answers are.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tests.e2e.conftest import free_port

CONNECTIONS = 256
"""Many, so that their pauses are far longer than the answers take, also on a busy machine: the rate is offered."""
TIMEOUT_S = 30
_SHARES = {"plain": 65, "large": 8, "stream": 27}
"""The kinds in percent: those of the mixed callers (`bench.soak_traffic`) that are no misbehaviour."""

_SCRIPT = """\
local bodies, shares, wanted = %(bodies)s, %(shares)s, %(wanted)s
local requests, threads = {}, {}
good, bad, first = 0, 0, ""

function setup(thread) threads[#threads + 1] = thread end

function init(args)
  math.randomseed(%(seed)d)
  local headers = { ["Authorization"] = "Bearer %(token)s", ["Content-Type"] = "application/json" }
  for kind, body in pairs(bodies) do requests[kind] = wrk.format("POST", "%(path)s", headers, body) end
end

function request()
  local luck = math.random() * 100
  if luck < shares.plain then return requests.plain end
  if luck < shares.plain + shares.large then return requests.large end
  return requests.stream
end

function delay() return math.floor(-math.log(1 - math.random()) * %(pause_ms)g + 0.5) end

function response(status, headers, body)
  if status == 200 and wanted[body] then good = good + 1 return end
  bad = bad + 1
  if first == "" then first = status .. " " .. string.sub(body, 1, 300) end
end

function done(summary, latency, requests)
  local errors, thread = summary.errors, threads[1]
  local first = string.gsub(thread:get("first"), '[^ !#-%%[%%]-~]', "?")
  io.write(string.format('\\nRESULT {"good": %%d, "bad": %%d, "errors": %%d, "first": "%%s"}\\n',
    thread:get("good"), thread:get("bad"), errors.connect + errors.read + errors.write + errors.timeout, first))
end
"""


@dataclass
class Bulk:
    """Drives one pool; `good` counts answers that were whole and right, `surprises` what else there was."""

    directory: Path
    target: str
    """Base URL of the pool at the gateway."""
    wanted: list[str]
    """The bodies that the provider sends."""
    seed: int
    good: int = 0
    surprises: Counter[str] = field(default_factory=Counter)
    runs: int = 0

    async def run(self, rate: float, seconds: float, token: str) -> None:
        """Offer `rate` requests a second for so long."""
        wrk = shutil.which("wrk")
        assert wrk is not None
        self.runs += 1
        script = self.directory / "bulk.lua"
        script.write_text(self._script(rate, token))
        command = ["nice", "-n", "5", wrk, "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s"]
        process = await asyncio.create_subprocess_exec(
            *command, "--timeout", f"{TIMEOUT_S}s", "-s", str(script), self.target, stdout=PIPE, stderr=PIPE
        )
        try:
            out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        told = out.decode().partition("RESULT ")[2]
        if process.returncode or not told:
            raise ChildProcessError(f"wrk ended with {process.returncode}: {err.decode()} {out.decode()}")
        result = json.loads(told)
        self.good += result["good"]
        if result["bad"]:
            self.surprises[f"bulk: {result['first']}"] += result["bad"]
        if result["errors"]:
            self.surprises["bulk: broken connections"] += result["errors"]

    def _script(self, rate: float, token: str) -> str:
        path = httpx2.URL(self.target).path + "/v1/chat/completions"
        return _SCRIPT % {
            "bodies": _table({kind: _body(kind) for kind in _SHARES}),
            "shares": "{ " + ", ".join(f"{kind} = {share}" for kind, share in _SHARES.items()) + " }",
            "wanted": "{ " + ", ".join(f"[{json.dumps(body)}] = true" for body in self.wanted) + " }",
            "seed": self.seed + self.runs,
            "token": token,
            "path": path,
            "pause_ms": CONNECTIONS / rate * 1e3,
        }


def _body(kind: str) -> str:
    question = "x" * (8000 if kind == "large" else 400)
    said = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": question}]}
    return json.dumps({**said, "stream": True} if kind == "stream" else said, separators=(",", ":"))


def _table(texts: dict[str, str]) -> str:
    return "{ " + ", ".join(f"{name} = {json.dumps(text)}" for name, text in texts.items()) + " }"


@contextlib.asynccontextmanager
async def cheap_provider(directory: Path) -> AsyncIterator[tuple[int, list[str]]]:
    """Compile and run `bench/mock_provider.c`; give its port and the bodies that it sends."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise SystemExit("A C compiler is needed for the provider: apt-get install gcc")
    program, port = directory / "mock_provider", free_port()
    source = Path(__file__).with_name("mock_provider.c")
    building = await asyncio.create_subprocess_exec(compiler, "-O2", "-o", str(program), str(source))
    if await building.wait():
        raise SystemExit(f"{source} does not compile")
    process = await asyncio.create_subprocess_exec("nice", "-n", "5", str(program), str(port))
    try:
        async with httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(retries=5)) as client:
            sent = [await client.post(f"http://127.0.0.1:{port}/", content=_body(kind)) for kind in _SHARES]
        yield port, sorted({answer.text for answer in sent})
    finally:
        process.kill()
        await process.wait()
