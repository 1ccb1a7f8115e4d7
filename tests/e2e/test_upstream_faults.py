"""Names and certificates of providers go wrong, for a process with the system's resolver, real TLS, public addresses.

It runs in namespaces of its own (`tests.e2e.isolated`), with private upstreams forbidden as in production.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import certifi
import pytest

from tests.e2e.authority import DAY, Authority
from tests.e2e.conftest import free_port
from tests.e2e.isolated import Isolated, can_isolate, isolated
from tests.e2e.production import Installation, installation

pytestmark = pytest.mark.skipif(not can_isolate(), reason="needs root, and a machine that lets it make namespaces")

HOME, MOVED, EMPTY, EXPIRED, MISNAMED, UNKNOWN = ADDRESSES = [f"93.184.216.{number}" for number in range(11, 17)]
"""Addresses that are public everywhere else."""
SWALLOWS = "127.0.0.53"
"""Where a name server swallows what it is asked: a name that /etc/hosts does not have is looked up for ten seconds."""
SECRET = "sk-upstream-0000000000001"
BODY = b'{"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hello"}}],"usage":{}}'


@dataclass
class Provider:
    """A server at one address: counts its connections, keeps what it was sent, answers all alike."""

    tls: ssl.SSLContext | None
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            if self.tls is not None:
                await writer.start_tls(self.tls)
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
                writer.write(b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY))
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    def leave(self) -> None:
        """End all connections."""
        for writer in self.writers:
            writer.transport.abort()


@dataclass
class World:
    """Management on this machine, the gateway process in its namespaces."""

    inside: Isolated
    running: Installation
    control_url: str
    port: int
    log: Path
    token: str = ""
    servers: list[tuple[asyncio.Server, Provider]] = field(default_factory=list)

    async def serve(self, address: str, tls: ssl.SSLContext | None, port: int = 443) -> tuple[asyncio.Server, Provider]:
        provider = Provider(tls)
        server = await asyncio.start_server(provider, sock=self.inside.listen(address, port))
        self.servers.append((server, provider))
        return server, provider

    async def ask(self, pool: str) -> tuple[int, dict[str, Any]]:
        """Send a chat request; return status and document."""

        def send() -> tuple[int, dict[str, Any]]:
            connection = http.client.HTTPConnection("gateway")
            connection.sock = self.inside.connect(self.port)
            headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
            body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello!"}]})
            try:
                connection.request("POST", f"/pools/{pool}/v1/chat/completions", body, headers)
                answer = connection.getresponse()
                return answer.status, json.loads(answer.read())
            finally:
                connection.close()

        return await asyncio.to_thread(send)

    async def new_pool(self, name: str, hosts: Sequence[str]) -> None:
        """Create a pool of one key for each host, and wait until the process knows it."""
        keys = [
            {"name": host, "provider": "simulated", "base_url": f"https://{host}", "api_key": f"{SECRET}-{host}"}
            for host in hosts
        ]
        pool = {"name": name, "strategy": "round_robin", "failover": True, "providers": keys}
        if self.token:
            await asyncio.to_thread(self.running.new_pool, self.control_url, self.token, pool)
        else:
            self.token = await asyncio.to_thread(self.running.new_tenant, self.control_url, "acme", pool)
        async with asyncio.timeout(60):
            while not await asyncio.to_thread(self._knows, name):
                await asyncio.sleep(0.05)

    def _knows(self, pool: str) -> bool:
        return self._get(f"/pools/{pool}/state", self.token) == 200

    def _get(self, path: str, token: str = "") -> int:
        connection = http.client.HTTPConnection("gateway")
        try:
            connection.sock = self.inside.connect(self.port)
            connection.request("GET", path, headers={"authorization": f"Bearer {token}"} if token else {})
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    async def ready(self) -> None:
        async with asyncio.timeout(60):
            while await asyncio.to_thread(self._get, "/readyz") != 200:
                assert self.running.processes[-1].poll() is None, self.log.read_text()
                await asyncio.sleep(0.05)


@asynccontextmanager
async def world(directory: Path, roots: bytes) -> AsyncIterator[World]:
    trusted = directory / "roots.pem"
    trusted.write_bytes(Path(certifi.where()).read_bytes() + roots)
    resolver = directory / "resolv.conf"
    resolver.write_text(f"nameserver {SWALLOWS}\n")
    control, port = free_port(), free_port()
    mounts = {Path(certifi.where()): trusted, Path("/etc/resolv.conf"): resolver}
    with isolated(directory, ADDRESSES, mounts) as inside, inside.swallow(SWALLOWS, 53):
        async with installation(directory, control, LLM_PROXY_ALLOW_PRIVATE_UPSTREAMS="false") as running:
            relay = await running.postgres.relay_from(inside.listen("127.0.0.1", running.postgres.port))
            control_url = await running.start("control", control)
            _, log = running.spawn("gateway", port, within=inside.within)
            made = World(inside, running, control_url, port, log)
            try:
                await made.ready()
                yield made
            finally:
                await asyncio.to_thread(running.stop_all)
                for server, provider in made.servers:
                    server.close()
                    provider.leave()
                await relay.stop()


async def test_a_certificate_that_is_not_right_ends_it_before_the_key_is_sent(tmp_path: Path) -> None:
    authority, stranger = Authority("known"), Authority("unknown")
    async with world(tmp_path, authority.pem) as w:
        bad = {
            "expired.example.com": (
                EXPIRED,
                authority.server(tmp_path, "expired.example.com", ends_in=-DAY),
            ),
            "misnamed.example.com": (MISNAMED, authority.server(tmp_path, "other.example.com")),
            "unknown.example.com": (UNKNOWN, stranger.server(tmp_path, "unknown.example.com")),
        }
        good = "good.example.com"
        w.inside.name({good: [HOME]} | {host: [address] for host, (address, _) in bad.items()})
        _, home = await w.serve(HOME, authority.server(tmp_path, good))
        providers = [(await w.serve(address, tls))[1] for address, tls in bad.values()]
        await w.new_pool("all", [*bad, good])
        answers = [await w.ask("all") for _ in range(10)]
        assert [status for status, _ in answers] == [200] * 10, "each is tried on the good one"
        for number, host in enumerate(bad):
            await w.new_pool(f"only-{number}", [host])
            status, document = await w.ask(f"only-{number}")
            assert (status, document["error"]["code"]) == (502, "upstream_failed"), document
        assert all(provider.connections for provider in providers), "each was reached"
        assert not any(provider.requests for provider in providers), "and none was sent anything"
        assert len(home.requests) == 10
        assert SECRET not in w.log.read_text()


async def test_a_name_that_leads_elsewhere(tmp_path: Path) -> None:
    authority = Authority("known")
    async with world(tmp_path, authority.pem) as w:
        host = "provider.example.com"
        tls = authority.server(tmp_path, host)
        server, home = await w.serve(HOME, tls)
        # Two addresses, at one of which nobody answers.
        w.inside.name({host: [EMPTY, HOME]})
        await w.new_pool("main", [host])
        assert (await w.ask("main"))[0] == 200
        # The provider moves: the first request that finds nobody asks for the name anew.
        server.close()
        home.leave()
        _, moved = await w.serve(MOVED, tls)
        w.inside.name({host: [MOVED]})
        assert [(await w.ask("main"))[0] for _ in range(3)] == [200, 200, 200]
        assert len(moved.requests) == 3
        # Then the name leads inside (DNS rebinding): into the process's own machine, a network beside it, a metadata
        # service, and to a good address and a bad one at once.
        inner = [await w.serve("127.0.0.1", tls), await w.serve("127.0.0.1", None, 80)]
        for number, addresses in enumerate((["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"], [MOVED, "127.0.0.1"])):
            pool = f"rebound-{number}"
            rebound = f"rebound-{number}.example.com"
            w.inside.name({rebound: addresses})
            await w.new_pool(pool, [rebound])
            status, document = await w.ask(pool)
            assert (status, document["error"]["code"]) == (502, "upstream_failed"), document
            assert not any(address in json.dumps(document) for address in addresses)
        moved.leave()
        w.servers[1][0].close()
        w.inside.name({host: ["127.0.0.1"]})
        assert (await w.ask("main"))[0] == 502
        assert [provider.connections for _, provider in inner] == [0, 0]
        assert len(moved.requests) == 3


async def test_a_name_whose_servers_are_silent_holds_up_no_other_provider(tmp_path: Path) -> None:
    authority = Authority("known")
    async with world(tmp_path, authority.pem) as w:
        host = "good.example.com"
        w.inside.name({host: [HOME]})
        _, home = await w.serve(HOME, authority.server(tmp_path, host))
        await w.new_pool("good", [host])
        await w.new_pool("silent", ["silent.example.com"])
        lost = [asyncio.create_task(w.ask("silent")) for _ in range(12)]
        for connections in range(1, 4):
            home.leave()
            assert (await w.ask("good"))[0] == 200
            assert home.connections >= connections, "over a new connection"
        assert {status for status, _ in await asyncio.gather(*lost)} == {502}
