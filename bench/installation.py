"""A whole installation to measure: an embedded Postgres, a tenant with three keys, `llm-proxy gateway` in front."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
from processes import MEASURED_CORE, OTHER_CORE, Running, free_port, staying_on

from auth.secret import Secret
from gateway.embedded.postgres import UNSAFE_BUT_FAST, EmbeddedPostgres
from gateway.schema import ensure_login, migrate

PROGRAM = str(Path(sys.executable).parent / "llm-proxy")
LIMITS = {"rpm": 100_000_000, "tpm": 2_000_000_000}


def pool(provider_port: int) -> dict[str, Any]:
    """Give a pool of three keys with a weight and a quota each."""
    return {
        "name": "main",
        "strategy": "weighted",
        "providers": [
            {
                "name": f"key-{number}",
                "provider": "simulated",
                "base_url": f"http://127.0.0.1:{provider_port}",
                "api_key": f"sk-bench-{number}-0000000000000000",
                "region": "eu-west-1",
                "weight": weight,
                "models": ["gpt-*"],
                "rate_limit": LIMITS,
            }
            for number, weight in ((1, 50), (2, 30), (3, 20))
        ],
    }


class Installation:
    """Postgres and the control plane are on the other core; each gateway started is on the measured one.

    Postgres has the lowest priority there: it would be on another machine, where the load does not wait for it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._postgres = EmbeddedPostgres(directory / "postgres", settings=UNSAFE_BUT_FAST)
        self._running: list[Running] = []
        with staying_on(OTHER_CORE):
            address = self._postgres.start()
        if (pid := self._postgres.process_id) is not None:
            os.setpriority(os.PRIO_PROCESS, pid, 19)  # those it forks later inherit it: see the docstring
        self.owner_url = address.url()
        migrate(self.owner_url)
        password = Secret(secrets.token_urlsafe(16))
        asyncio.run(ensure_login(self.owner_url, "gateway", password))
        database = self.owner_url.rpartition("/")[2].partition("?")[0]
        self.issuer_port = free_port()
        self.kek = secrets.token_bytes(32)
        self.environment = {
            "DATABASE_URL": address.url(database, "gateway", password),
            "LLM_PROXY_ISSUER": f"http://127.0.0.1:{self.issuer_port}",
            "LLM_PROXY_KEK": "env",
            "LLM_PROXY_KEK_KEYS": base64.b64encode(self.kek).decode(),
            "LLM_PROXY_PEPPERS": "1:" + base64.b64encode(secrets.token_bytes(32)).decode(),
            "LLM_PROXY_ALLOW_PRIVATE_UPSTREAMS": "true",
            "LLM_PROXY_DRAIN_LEAD": "0",
            "LLM_PROXY_LOG_LEVEL": "warning",
            "LLM_PROXY_HOME": str(directory / "unused"),
        }
        self._control: Running | None = None
        self.control_url = f"http://127.0.0.1:{self.issuer_port}"

    def start_control(self) -> None:
        """Start the control plane, and bootstrap the operator's client."""
        done = subprocess.run(
            [PROGRAM, "bootstrap", "--json"],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stderr + done.stdout)
        self._operator = json.loads(done.stdout)
        self._control = self._start("control", self.issuer_port, OTHER_CORE)

    def stop_control(self) -> None:
        """End the control plane: a gateway serves without it."""
        if self._control is not None:
            self._control.stop()
            self._control = None

    def start_gateway(
        self, core: int | str = MEASURED_CORE, *, program: str = PROGRAM, **variables: str
    ) -> tuple[Running, int]:
        """Start `llm-proxy gateway` and return it when it is ready, with its port."""
        port = free_port()
        return self._start("gateway", port, core, variables, program), port

    def _start(
        self,
        command: str,
        port: int,
        core: int | str,
        variables: Mapping[str, str] | None = None,
        program: str = PROGRAM,
    ) -> Running:
        environment = {**self.environment, "PORT": str(port), **(variables or {})}
        running = Running([program, command], core=core, log=self.directory / f"{command}.log", environment=environment)
        self._running.append(running)
        running.wait_for_port(port)
        wait_until_ready(port)
        return running

    def token(self, client: Mapping[str, str]) -> str:
        """Get an access token as `client`."""
        answer = httpx2.post(
            f"{self.control_url}/oauth2/token",
            data={"grant_type": "client_credentials"},
            auth=(client["client_id"], client["client_secret"]),
        )
        return str(answer.raise_for_status().json()["access_token"])

    def new_tenant(self, provider_port: int, slug: str = "bench") -> str:
        """Make a tenant with one pool; return a token of its first client."""
        operator = {"authorization": f"Bearer {self.token(self._operator)}"}
        made = httpx2.post(f"{self.control_url}/api/v1/tenants", json={"slug": slug}, headers=operator)
        token = self.token(made.raise_for_status().json()["client"])
        done = httpx2.post(
            f"{self.control_url}/api/v1/pools/import",
            json=pool(provider_port),
            headers={"authorization": f"Bearer {token}"},
            timeout=30,
        )
        if done.status_code != 201:
            raise SystemExit(done.text)
        return token

    def close(self) -> None:
        """End everything."""
        for running in self._running:
            running.stop()
        self._postgres.stop()


def wait_until_ready(port: int, timeout_s: float = 120.0) -> float:
    """Return when `/readyz` says 200, with the seconds that took."""
    began = time.monotonic()
    while time.monotonic() < began + timeout_s:
        with suppress(httpx2.HTTPError):
            if httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                return time.monotonic() - began
        time.sleep(0.02)
    raise SystemExit(f"the process on port {port} did not become ready")
