"""Real gateway processes over one Postgres and one quota of a simulated provider, which counts the truth.

Processes run on this machine or on "hosts" in network namespaces of their own. Load is open: so many requests a second,
spread over the processes that run, whatever becomes of them; who waits longer than `PATIENCE_S` gives up.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import httpx2

from tests.e2e.conftest import free_port, wait_for
from tests.e2e.production import Installation, installation

SECRET = "sk-sim-shared-000000000000000"
PATIENCE_S = 3.0
PROGRAM = str(Path(sys.executable).parent / "llm-proxy")
HERE = "127.0.0.1"


@dataclass(frozen=True)
class Host:
    """Where a process runs: `prefix` puts a command there, `address` is its own, `gateway` is this machine's."""

    address: str = HERE
    gateway: str = HERE
    prefix: tuple[str, ...] = ()


@contextmanager
def namespaces(count: int) -> Iterator[list[Host]]:
    """Make hosts: network namespaces on a bridge of their own. Needs root."""
    bridge, names = f"lp{os.getpid() % 10_000}", [f"lp{os.getpid()}-{number}" for number in range(count)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("addr", "add", "10.213.7.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        hosts = []
        for number, name in enumerate(names):
            address = f"10.213.7.{10 + number}"
            ip("netns", "add", name)
            ip("link", "add", f"{bridge}v{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{bridge}v{number}", "master", bridge, "up")
            for words in (("addr", "add", f"{address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
                ip("-n", name, *words)
            ip("-n", name, "link", "set", "lo", "up")
            hosts.append(Host(address, "10.213.7.1", ("ip", "netns", "exec", name)))
        yield hosts
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", bridge], check=False, capture_output=True)


@dataclass
class Target:
    """One gateway process."""

    host: Host
    port: int
    process: subprocess.Popen[bytes]
    is_served: bool = True
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    def hang_up(self) -> None:
        while self.idle:
            self.idle.pop()[1].close()


@dataclass(frozen=True)
class Truth:
    """What the provider has admitted and refused so far, and what is left of the quota."""

    at: float
    admitted: int
    refused: int
    left: float


@dataclass
class Fleet:
    """The processes, the provider and what callers were answered."""

    running: Installation
    provider: str
    rpm: int
    token: str
    targets: list[Target] = field(default_factory=list)
    answers: Counter[int | str] = field(default_factory=Counter)
    _offering: asyncio.Task[None] | None = None
    _asking: set[asyncio.Task[None]] = field(default_factory=set)

    async def add(self, host: Host) -> Target:
        """Start one more process and take it into the load when it is ready."""
        port = free_port()
        database = self.running.environment["DATABASE_URL"].replace(f"@{HERE}:", f"@{host.gateway}:")
        environment = {
            **self.running.environment,
            "DATABASE_URL": database,
            "LLM_PROXY_HOST": host.address,
            "PORT": str(port),
        }
        log = self.running.directory / f"gateway-{port}.log"
        with log.open("ab") as sink:
            process = subprocess.Popen([*host.prefix, PROGRAM, "gateway"], stdout=sink, stderr=sink, env=environment)
        self.running.processes.append(process)
        await asyncio.to_thread(wait_for, f"http://{host.address}:{port}/readyz", process, log)
        target = Target(host, port, process)
        self.targets.append(target)
        return target

    def kill(self, target: Target) -> None:
        """End a process as a machine that fails does."""
        target.is_served = False
        target.process.kill()
        target.process.wait()
        target.hang_up()
        self.targets.remove(target)

    @contextmanager
    def stopped(self, target: Target) -> Iterator[None]:
        """Let a process stand still; what in front of it balances load has noticed."""
        target.is_served = False
        target.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            target.process.send_signal(signal.SIGCONT)
            target.is_served = True

    def offer(self, rps: float) -> None:
        """Send so many requests a second from now on."""
        self._offering = asyncio.create_task(self._offer(rps))

    async def burst(self, target: Target, count: int, *, patience_s: float = 60.0) -> None:
        """Send so many requests to one process at once; return when all are answered or given up."""
        await asyncio.gather(*(self._ask(target, patience_s) for _ in range(count)))

    async def rest(self) -> None:
        """Send nothing any more, and hang up."""
        for task in (self._offering, *self._asking):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        for target in self.targets:
            target.hang_up()
        await asyncio.sleep(0.1)

    async def _offer(self, rps: float) -> None:
        tasks = self._asking
        started, sent = time.monotonic(), 0
        turns = cycle(range(1 << 30))
        while True:
            await asyncio.sleep(0.005)
            due = int((time.monotonic() - started) * rps)
            served = [target for target in self.targets if target.is_served]
            # What could not be sent in time is not made up for at once.
            for _ in range(min(due - sent, 50)):
                task = asyncio.create_task(self._ask(served[next(turns) % len(served)]))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            sent = due

    async def _ask(self, target: Target, patience_s: float = PATIENCE_S) -> None:
        body = b'{"model":"gpt-4o-mini","max_tokens":5,"messages":[{"role":"user","content":"hi"}]}'
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {target.host.address}\r\nauthorization: Bearer {self.token}"
            f"\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode()
        writer = None
        try:
            async with asyncio.timeout(patience_s):
                if target.idle:
                    reader, writer = target.idle.pop()
                else:
                    reader, writer = await asyncio.open_connection(target.host.address, target.port)
                writer.write(head + body)
                status_line, _, fields = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
                length = next(
                    int(line[15:]) for line in fields.lower().split(b"\r\n") if line.startswith(b"content-length:")
                )
                await reader.readexactly(length)
            self.answers[int(status_line[9:12])] += 1
            if b"connection: close" not in fields.lower() and target.is_served:
                target.idle.append((reader, writer))
                writer = None
        except TimeoutError:
            self.answers["gave up"] += 1
        except (OSError, EOFError, ValueError):
            self.answers["broken"] += 1
        finally:
            if writer is not None:
                writer.close()

    async def use_up(self) -> None:
        """Take what the quota holds at first, straight from the provider: what follows is the limit's own pace."""

        async def take(share: int) -> None:
            reader, writer = await asyncio.open_connection(*self.provider.removeprefix("http://").split(":"))
            body = b'{"model":"gpt-4o-mini","max_tokens":1,"messages":[{"role":"user","content":"x"}]}'
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SECRET}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            ).encode()
            for _ in range(share):
                writer.write(head + body)
                fields = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
                await reader.readexactly(int(next(line for line in fields if line.startswith(b"content-length:"))[15:]))
            writer.close()

        await asyncio.gather(*(take(self.rpm // 8) for _ in range(8)))

    async def truth(self) -> Truth:
        """Ask the provider: its books, and (at the price of one request of the quota) what is left."""
        async with httpx2.AsyncClient(base_url=self.provider, timeout=60.0) as client:
            probe = await client.post(
                "/v1/chat/completions",
                headers={"authorization": f"Bearer {SECRET}"},
                json={"model": "gpt-4o-mini", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]},
            )
            at = time.monotonic()
            use = (await client.get("/_sim/state")).json()["keys"]["shared"]["by_status"]
        left = float(probe.headers.get("x-ratelimit-remaining-requests", 0))
        own = 1 if probe.status_code == 200 else 0
        return Truth(at, use.get("200", 0) - own, use.get("429", 0) - (1 - own), left)

    async def measure(self, seconds: float) -> Measured:
        """Let the load run; give what the provider saw against what it could have admitted."""
        before = await self.truth()
        self.answers.clear()
        await asyncio.sleep(seconds)
        after = await self.truth()
        could = before.left - after.left + (after.at - before.at) * self.rpm / 60.0
        return Measured(
            seconds=after.at - before.at,
            admitted=after.admitted - before.admitted,
            refused=after.refused - before.refused,
            could=could,
            left=after.left,
            answers=dict(self.answers),
        )


@dataclass(frozen=True)
class Measured:
    """`could`: what the provider would have admitted at most, but for what it still has (`left`)."""

    seconds: float
    admitted: int
    refused: int
    could: float
    left: float
    answers: dict[int | str, int]

    @property
    def over(self) -> float:
        """Requests above the limit, as a share of the limit."""
        return self.refused / max(1.0, self.could)

    def used(self, rpm: int) -> float:
        """What was admitted, as a share of what the limit brings in the time."""
        return self.admitted / (rpm / 60.0 * self.seconds)

    def line(self, name: str, rpm: int) -> str:
        """One line of a table."""
        return (
            f"{name:<34} {self.seconds:6.1f} s  admitted {self.admitted:6d}  used {self.used(rpm):7.2%}  "
            f"over {self.over:7.2%}  left {self.left:6.0f}  {self.answers}"
        )


@asynccontextmanager
async def fleet(directory: Path, hosts: Sequence[Host], *, rpm: int) -> AsyncIterator[Fleet]:
    """Start a provider, a control plane and a gateway process for each of `hosts` (the same may come several times)."""
    address = hosts[0].gateway
    port, provider_port = free_port(), free_port()
    config = {"keys": [{"secret": SECRET, "name": "shared", "limits": {"rpm": rpm}}]}
    file = directory / "provider.json"
    file.write_text(json.dumps(config))
    log = directory / "provider.log"
    words = ["simulated-provider", "--host", address, "--port", str(provider_port), "--config", str(file)]
    with log.open("ab") as sink:
        process = subprocess.Popen([PROGRAM, *words], stdout=sink, stderr=sink)
    provider = f"http://{address}:{provider_port}"
    pool = {
        "name": "main",
        "providers": [
            {"name": "shared", "provider": "simulated", "base_url": provider, "api_key": SECRET, "rate_limit": rpm}
        ],
    }
    try:
        await asyncio.to_thread(wait_for, f"{provider}/_sim/state", process, log)
        async with installation(
            directory, port, addresses=(HERE, *{host.gateway for host in hosts} - {HERE})
        ) as running:
            control = await running.start("control", port)
            token = await asyncio.to_thread(running.new_tenant, control, "acme", pool)
            made = Fleet(running, provider, rpm, token)
            for host in hosts:
                await made.add(host)
            try:
                yield made
            finally:
                await made.rest()
                for target in made.targets:
                    with suppress(ProcessLookupError):
                        target.process.send_signal(signal.SIGCONT)
    finally:
        process.terminate()
        process.wait(10)
