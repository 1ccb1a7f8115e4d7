"""The program as a newcomer runs it: `llm-proxy dev` in a process of its own, reached over real sockets only."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from authlib.integrations.httpx_client import OAuth2Client

START_TIMEOUT_S = 60
_FIRST_HANDED_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")
_PORTS = range(10_000, int(_FIRST_HANDED_OUT.read_text().split()[0]) if _FIRST_HANDED_OUT.exists() else 32_768)


@dataclass(frozen=True)
class RunningGateway:
    """What `dev.json` says of a running gateway, its process, and everything that it printed."""

    base_url: str
    token_url: str
    client_id: str
    client_secret: str
    pool: str
    model: str
    home: Path
    log: Path
    process: subprocess.Popen[bytes]

    def output(self) -> str:
        return self.log.read_text()

    def token(self, scope: str | None = None) -> str:
        """Get a token as a tenant's own program would: with Authlib's OAuth2 client."""
        with OAuth2Client(
            self.client_id, self.client_secret, token_endpoint_auth_method="client_secret_basic"
        ) as client:
            answer: dict[str, Any] = client.fetch_token(self.token_url, grant_type="client_credentials", scope=scope)
        return str(answer["access_token"])


def free_port() -> int:
    """Return a port that nobody listens on and that nobody gets by chance before the one who asks binds it.

    A port that the kernel hands out may be handed out again at once, to any connection that begins on this machine: it
    is taken from below those, at random, for other runs of tests look for ports at the same time.
    """
    rng = random.SystemRandom()
    for _ in range(10_000):
        port = rng.choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float = START_TIMEOUT_S) -> None:
    """Return when `url` answers 200; fail with the log when the process ends or the time is up."""
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise AssertionError(f"the process ended with {process.returncode}:\n{log.read_text()}")
        try:
            if httpx2.get(url, timeout=1).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"{url} did not answer 200 in {timeout_s} s:\n{log.read_text()}")


@contextmanager
def run_dev(home: Path, **environment: str) -> Iterator[RunningGateway]:
    """Run `llm-proxy dev` over `home` until the block ends, then stop it as Ctrl-C does."""
    port = free_port()
    log = home.parent / f"{home.name}.log"
    env = {**os.environ, "PORT": str(port), "LLM_PROXY_HOME": str(home), **environment}
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "llm-proxy"), "dev"], stdout=sink, stderr=sink, env=env, cwd=home.parent
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/readyz", process, log)
        described = json.loads((home / "dev.json").read_text())
        yield RunningGateway(**described, home=home, log=log, process=process)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"Ctrl-C did not stop it:\n{log.read_text()}") from None


@pytest.fixture(scope="session", autouse=True)
def leave_nothing_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remove server directories made elsewhere, because tests run as root in directories of root's own."""
    yield
    base = str(tmp_path_factory.getbasetemp())
    for note in Path("/var/lib/llm-proxy").glob("*/belongs-to"):
        if note.read_text().startswith(base):
            shutil.rmtree(note.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    # A provider that nobody asks: with one configured, members can be declared.
    provider = {"LLM_PROXY_OIDC_ISSUER": "https://login.example.com", "LLM_PROXY_OIDC_CLIENT_ID": "llm-proxy"}
    with run_dev(tmp_path_factory.mktemp("dev") / "home", **provider) as running:
        yield running


@pytest.fixture(scope="session")
def token(gateway: RunningGateway) -> str:
    return gateway.token()
