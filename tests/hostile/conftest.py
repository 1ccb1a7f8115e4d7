"""One installation for the whole corpus: `llm-proxy serve` as a process, a recording provider, a tenant."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import asyncpg
import httpx2
import pytest

from auth.secret import Secret
from gateway.embedded.postgres import Address
from tests.conftest import APP_LOGIN, TEMPLATE
from tests.e2e.conftest import free_port, wait_for
from tests.e2e.production import Installation, bootstrap, environment_for
from tests.hostile.provider import Provider

HEAD_S, BODY_S, KEEP_ALIVE_S, SEND_S = 1.0, 1.0, 2.0, 1.5
MAX_BODY = 256 * 1024
SETTINGS = {
    "LLM_PROXY_HEADER_TIMEOUT": str(HEAD_S),
    "LLM_PROXY_BODY_TIMEOUT": str(BODY_S),
    "LLM_PROXY_KEEP_ALIVE": str(KEEP_ALIVE_S),
    "LLM_PROXY_SEND_TIMEOUT": str(SEND_S),
    "LLM_PROXY_MAX_BODY": str(MAX_BODY),
    "LLM_PROXY_MAX_UPLOAD": str(4 * 1024 * 1024),
}
KEY = "sk-hostile-00000000000001"


_TIME_WAIT, _LISTEN = "06", "0A"
"""States of /proc/net/tcp."""


@dataclass
class Target:
    """The gateway under attack."""

    port: int
    token: bytes
    provider: Provider
    process: Popen[bytes]
    log: Path
    installation: Installation
    database_url: str
    """The database as its owner."""

    def peak_mib(self) -> float:
        """Return the most memory that the process has held since `forget_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024

    def forget_peak(self) -> float:
        """Start a new peak; return what is held now, in MiB."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.peak_mib()

    def metric(self, name: str) -> float:
        text = httpx2.get(f"http://127.0.0.1:{self.port}/metrics").text
        return float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0])

    def connections(self, *, in_kernel: bool = True) -> int:
        """Return how many callers' connections the process holds, and the kernel in its stead after it has closed."""
        table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ours = f":{self.port:04X}"
        open_ones = [row for row in table if row[1].endswith(ours) and row[3] not in (_TIME_WAIT, _LISTEN)]
        return sum(in_kernel or row[9] != "0" for row in open_ones)

    def outcomes_of(self, request_id: str) -> list[str]:
        """Return what the usage rows say became of a request."""

        async def read() -> list[str]:
            connection = await asyncpg.connect(self.database_url)
            try:
                rows = await connection.fetch("select outcome from usage_event where request_id = $1", request_id)
                return [row["outcome"] for row in rows]
            finally:
                await connection.close()

        with ThreadPoolExecutor(1) as executor:
            return executor.submit(lambda: asyncio.run(read())).result()

    def new_pool(self, name: str, keys: list[dict[str, object]], **settings: object) -> None:
        """Create a pool of its own for a test, so that no other test's failures have opened its breakers."""
        answer = httpx2.post(
            f"http://127.0.0.1:{self.port}/api/v1/pools/import",
            json={"name": name, "strategy": "round_robin", "providers": keys, **settings},
            headers={"authorization": f"Bearer {self.token.decode()}"},
        )
        assert answer.status_code == 201, answer.text


@pytest.fixture(scope="session")
def target(migrated_server: tuple[Address, Secret], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    server, password = migrated_server
    directory, name, port = tmp_path_factory.mktemp("hostile"), f"h_{secrets.token_hex(6)}", free_port()

    async def make_database() -> None:
        connection = await asyncpg.connect(server.url())
        await connection.execute(f"create database {name} template {TEMPLATE}")
        await connection.close()

    with ThreadPoolExecutor(1) as executor:
        executor.submit(lambda: asyncio.run(make_database())).result()
    provider = Provider()
    provider.start()
    environment = environment_for(server.url(name, APP_LOGIN, password), directory, port, **SETTINGS)
    running = Installation(directory, environment, operator=bootstrap(environment))
    try:
        process, log = running.spawn("serve", port)
        wait_for(f"http://127.0.0.1:{port}/readyz", process, log)
        key = {"name": "one", "provider": "simulated", "base_url": provider.base_url, "api_key": KEY}
        token = running.new_tenant(f"http://127.0.0.1:{port}", "acme", {"name": "main", "providers": [key]})
        yield Target(port, token.encode(), provider, process, log, running, server.url(name))
    finally:
        running.stop_all()
        provider.stop()
