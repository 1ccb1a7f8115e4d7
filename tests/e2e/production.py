"""The production form: separate processes over a Postgres that a test can take away and bring back."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from auth.secret import Secret
from gateway.embedded.postgres import UNSAFE_BUT_FAST, Address, EmbeddedPostgres
from gateway.schema import ensure_login, migrate
from tests.e2e.conftest import free_port, wait_for
from tests.e2e.standby import Standby
from tests.fakes.tcp_server import TcpServer

PROGRAM = str(Path(sys.executable).parent / "llm-proxy")


class InterruptiblePostgres:
    """A real server behind a fixed local port: `stop` shuts the server down, `start` brings it back where it was."""

    def __init__(
        self, directory: Path, addresses: Sequence[str] = ("127.0.0.1",), settings: Mapping[str, str] | None = None
    ) -> None:
        self.port = free_port()
        self._addresses = addresses
        self._directory = directory
        self._server = EmbeddedPostgres(directory, settings={**UNSAFE_BUT_FAST, **(settings or {})})
        self._lost: list[EmbeddedPostgres] = []
        self._target: int | None = None
        self._relay: TcpServer | None = None
        self.flowing = asyncio.Event()
        """Cleared, the server is there and says nothing: bytes wait in both directions."""
        self.flowing.set()
        self.delay_s = 0.0
        """How long each packet is held back."""
        self._password = Secret("")

    async def start(self) -> None:
        address = await asyncio.to_thread(self._server.start)
        self._lead_to(address)
        await self._open()

    async def stop(self) -> None:
        await self._close()
        for server in (*self._lost, self._server):
            await asyncio.to_thread(server.stop)

    async def _open(self) -> None:
        self._relay = TcpServer(self._forward)
        await self._relay.start(self._addresses, self.port)

    async def _close(self) -> None:
        if self._relay is not None:
            await self._relay.stop()
            self._relay = None

    def _lead_to(self, address: Address) -> None:
        self._target, self._password = address.port, address.password

    @asynccontextmanager
    async def standby(self) -> AsyncIterator[Standby]:
        """Run a standby of the server; one that has taken its place stops with it."""
        assert self._target is not None
        primary = Address(self._target, self._password, None)
        directory = self._directory.with_name(f"standby-{len(self._lost) + 1}")
        made = Standby(primary, self._server.log_file.parent / "data", directory)
        try:
            await made.start()
            yield made
        finally:
            if made.server is not self._server:
                await asyncio.to_thread(made.server.stop)

    async def kill(self) -> None:
        """End the server as its machine's end does: what it has not said by now it never says."""
        assert self._server.process_id is not None
        os.kill(self._server.process_id, signal.SIGKILL)
        await self._close()  # for its sessions outlive it by a moment
        await self._open()

    async def fail_over(self, standby: Standby) -> None:
        """Promote the standby and let the fixed port lead to it, as a proxy or a virtual address does."""
        await standby.promote()
        self._lost.append(self._server)
        self._server = standby.server
        self._lead_to(standby.address)

    @asynccontextmanager
    async def astray(self, standby: Standby) -> AsyncIterator[None]:
        """Let the fixed port lead to the standby, not promoted, for a while; who has connected stays there after it."""
        primary = self._target
        self._target = standby.address.port
        await self._close()
        await self._open()
        yield
        self._target = primary

    @property
    def server_port(self) -> int | None:
        """The port of the server itself, behind the fixed one."""
        return self._target

    def url(self, user: str, password: Secret) -> str:
        return f"postgresql://{user}:{password.reveal()}@127.0.0.1:{self.port}/postgres"

    @property
    def owner_url(self) -> str:
        return self.url("llm_proxy_owner", self._password)

    async def relay_from(self, listening: socket.socket) -> TcpServer:
        """Take connections from another socket as well; who asks stops the server."""
        relay = TcpServer(self._forward)
        await relay.start(listening)
        return relay

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except ConnectionError:  # it is being stopped
            return
        try:
            await asyncio.gather(self._copy(reader, there_writer), self._copy(there_reader, writer))
        finally:
            there_writer.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await self.flowing.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
        writer.close()


@dataclass
class Installation:
    """A migrated database with an operator, and the processes that were started over it."""

    directory: Path
    environment: dict[str, str]
    database: InterruptiblePostgres | None = None
    operator: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def postgres(self) -> InterruptiblePostgres:
        """The database that can be taken away; only installations with one of their own have it."""
        assert self.database is not None
        return self.database

    def spawn(
        self, command: str, port: int, *, within: Sequence[str] = (), **variables: str
    ) -> tuple[subprocess.Popen[bytes], Path]:
        """Start a process; `within` is a program with its arguments that starts it, as `env` or `sh -c` does."""
        log = self.directory / f"{command}-{port}.log"
        with log.open("ab") as sink:
            process = subprocess.Popen(
                [*within, PROGRAM, command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**self.environment, "PORT": str(port), **variables},
            )
        self.processes.append(process)
        return process, log

    async def start(self, command: str, port: int | None = None) -> str:
        """Start `serve`, `gateway` or `control`; return its base URL when it is ready."""
        port = port or free_port()
        process, log = self.spawn(command, port)
        await asyncio.to_thread(wait_for, f"http://127.0.0.1:{port}/readyz", process, log)
        return f"http://127.0.0.1:{port}"

    def limits(self) -> list[str]:
        """Return what each process that was started may use, as Linux tells it."""
        return [Path(f"/proc/{process.pid}/limits").read_text() for process in self.processes]

    def stop_all(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def token(self, base_url: str, client: dict[str, str]) -> str:
        answer = httpx2.post(
            f"{base_url}/oauth2/token",
            data={"grant_type": "client_credentials"},
            auth=(client["client_id"], client["client_secret"]),
        )
        return str(answer.raise_for_status().json()["access_token"])

    def new_tenant(self, control_url: str, slug: str, pool: dict[str, Any]) -> str:
        """Create a tenant with one pool as an operator would; return a token of the tenant's first client."""
        operator = {"authorization": f"Bearer {self.token(control_url, self.operator)}"}
        made = httpx2.post(f"{control_url}/api/v1/tenants", json={"slug": slug}, headers=operator)
        assert made.status_code == 201, made.text
        token = self.token(control_url, made.json()["client"])
        self.new_pool(control_url, token, pool)
        return token

    def new_pool(self, control_url: str, token: str, pool: dict[str, Any]) -> None:
        imported = httpx2.post(
            f"{control_url}/api/v1/pools/import", json=pool, headers={"authorization": f"Bearer {token}"}
        )
        assert imported.status_code == 201, imported.text


def environment_for(database_url: str, directory: Path, issuer_port: int, **variables: str) -> dict[str, str]:
    """Return what the processes of one installation are given, with secrets of its own."""
    return {
        **os.environ,
        "DATABASE_URL": database_url,
        "LLM_PROXY_ISSUER": f"http://127.0.0.1:{issuer_port}",
        "LLM_PROXY_KEK": "env",
        "LLM_PROXY_KEK_KEYS": base64.b64encode(secrets.token_bytes(32)).decode(),
        "LLM_PROXY_PEPPERS": "1:" + base64.b64encode(secrets.token_bytes(32)).decode(),
        "LLM_PROXY_ALLOW_PRIVATE_UPSTREAMS": "true",
        "LLM_PROXY_DRAIN_LEAD": "0",
        "LLM_PROXY_HOME": str(directory / "unused"),
        **variables,
    }


def bootstrap(environment: dict[str, str]) -> dict[str, str]:
    """Make the first operator; return its client."""
    done = subprocess.run(
        [PROGRAM, "bootstrap", "--json"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    client: dict[str, str] = json.loads(done.stdout)
    return client


@asynccontextmanager
async def installation(
    directory: Path, issuer_port: int, addresses: Sequence[str] = ("127.0.0.1",), **variables: str
) -> AsyncIterator[Installation]:
    """Set up what an operator sets up: database, role, secrets, first client."""
    postgres = InterruptiblePostgres(directory / "postgres", addresses)
    async with installation_over(postgres, directory, issuer_port, **variables) as running:
        yield running


@asynccontextmanager
async def installation_over(
    postgres: InterruptiblePostgres, directory: Path, issuer_port: int, /, **variables: str
) -> AsyncIterator[Installation]:
    """The same over a server with settings of its own."""
    await postgres.start()
    password = Secret(secrets.token_urlsafe(16))
    await asyncio.to_thread(migrate, postgres.owner_url)
    await ensure_login(postgres.owner_url, "gateway", password)
    environment = environment_for(postgres.url("gateway", password), directory, issuer_port, **variables)
    running = Installation(directory, environment, postgres)
    try:
        running.operator = await asyncio.to_thread(bootstrap, environment)
        yield running
    finally:
        await asyncio.to_thread(running.stop_all)
        await postgres.stop()
