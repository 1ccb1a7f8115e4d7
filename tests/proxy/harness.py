"""The data path on a real socket, with tokens, tenants and usage rows in memory."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from auth.bearer import ProofChecker
from auth.errors import NotAuthenticated
from auth.principal import Principal
from auth.secret import Secret
from auth.tokens import digest_of
from gateway.metering.event import UsageEvent
from gateway.metering.pricing import load_prices
from gateway.policy.allowance import Allowances
from gateway.proxy.app import DataPath
from gateway.proxy.directory import Directory, InMemoryLoader
from gateway.proxy.intake import IntakeLimits
from gateway.proxy.runtime import Workshop
from gateway.relay_protocol import RelayProtocol
from gateway.upstream.connect import Connector, DirectConnector, tls_context
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.message import Deadlines, Origin, UpstreamRequest
from gateway.upstream.pool import ConnectionPool
from gateway.upstream.response import UpstreamResponse
from tenants.snapshot import KeySnapshot, PoolSnapshot, QuotaSnapshot, TenantSnapshot

TENANT = UUID("00000000-0000-7000-8000-0000000000aa")
OTHER_TENANT = UUID("00000000-0000-7000-8000-0000000000bb")

OVER_ASGI = False
"""Whether requests reach the data path as they do under any ASGI server, or over our own server's channel."""
TLS = tls_context()
"""Made once: reading the trusted roots is the slowest part of a start."""


class TokenRefused(NotAuthenticated):
    """As auth's own."""

    code = "invalid_token"
    challenge = 'Bearer error="invalid_token"'


class FixedVerifier:
    """Tokens by name."""

    def __init__(self) -> None:
        self.principals: dict[str, Principal] = {}

    def add(
        self,
        token: str,
        tenant_id: UUID = TENANT,
        scopes: tuple[str, ...] = ("inference",),
        details: tuple[Mapping[str, Any], ...] = (),
    ) -> str:
        self.principals[token] = Principal(tenant_id, "app", frozenset(scopes), f"jti-{token}", 2e9, details=details)
        return token

    def verify(self, token: str, *, digest: bytes = b"", jkt: str = "", x5t_s256: str = "") -> Principal:
        assert digest == digest_of(token)
        try:
            return self.principals[token]
        except KeyError:
            raise TokenRefused("The access token is not valid.", hint="Get a new one.") from None


@dataclass
class Rows:
    """Usage rows as they are recorded."""

    rows: list[UsageEvent] = field(default_factory=list)
    on_row: Callable[[], None] | None = None

    def record(self, row: UsageEvent) -> None:
        if self.on_row is not None:
            self.on_row()
        self.rows.append(row)


def key(name: str, base_url: str | None, secret: str = "", provider: str = "simulated", **more: Any) -> KeySnapshot:
    number = int.from_bytes(name.encode()[:8], "big")
    fields: dict[str, Any] = {
        "key_id": UUID(int=number),
        "name": name,
        "version": 1,
        "secret": Secret(secret or f"sim-key-{name}"),
        "provider": provider,
        "base_url": base_url,
        "region": None,
        "tier": 0,
        "weight": 1,
        "models": (),
        "model_map": {},
        "max_in_flight": None,
        "quota_id": UUID(int=number),
    }
    return KeySnapshot(**{**fields, **more})


def pool(
    name: str,
    *keys: KeySnapshot,
    strategy: str = "round_robin",
    is_default: bool = False,
    settings: Mapping[str, Any] | None = None,
    limits: Mapping[str, int] | None = None,
) -> PoolSnapshot:
    quotas = tuple(QuotaSnapshot(each.quota_id, each.name, each.provider, limits or {}) for each in keys)
    number = int.from_bytes(name.encode()[:8], "big")
    return PoolSnapshot(UUID(int=number), name, strategy, is_default, settings or {}, keys, quotas)


def tenant(*pools: PoolSnapshot, tenant_id: UUID = TENANT, revision: int = 1, status: str = "active") -> TenantSnapshot:
    return TenantSnapshot(tenant_id, "acme", status, revision, {}, pools)


def multipart(model: str | None) -> bytes:
    """Return a small upload with the boundary `x`."""
    part = (
        b"" if model is None else b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\n%b\r\n' % model.encode()
    )
    return part + b'--x\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\nabc\r\n--x--\r\n'


@dataclass
class Reply:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Gateway:
    """A running gateway and a client of it."""

    origin: Origin
    client: ConnectionPool
    loader: InMemoryLoader
    directory: Directory
    verifier: FixedVerifier
    usage: Rows
    data_path: DataPath
    upstream: ConnectionPool

    async def open(
        self,
        path: str,
        body: Any = None,
        *,
        method: str | None = None,
        token: str | None = "good",
        headers: Mapping[str, str] | None = None,
    ) -> UpstreamResponse:
        raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {} if token is None else {"authorization": f"Bearer {token}"}
        if raw:
            sent["content-type"] = "application/json"
        sent |= headers or {}
        request = UpstreamRequest(
            (method or ("GET" if body is None else "POST")).encode(),
            path.encode(),
            [(name.encode(), value.encode()) for name, value in sent.items()],
            raw,
        )
        return await self.client.send(self.origin, request, Deadlines(first_byte_s=20, idle_s=20))

    async def call(self, path: str, body: Any = None, **more: Any) -> Reply:
        response = await self.open(path, body, **more)
        parts = []
        while data := await response.read():
            parts.append(data)
        headers = {name.decode(): value.decode() for name, value in response.headers}
        return Reply(response.status, headers, b"".join(parts))

    async def raw(self, text: bytes) -> bytes:
        """Send bytes as they are and return what comes until the gateway closes or has answered once."""
        reader, writer = await asyncio.open_connection(self.origin.host, self.origin.port)
        writer.write(text)
        answer = await asyncio.wait_for(reader.read(65536), 10)
        writer.close()
        return answer

    async def row(self) -> UsageEvent:
        """Return the one usage row, once it is there."""
        (found,) = await self.settled(1)
        return found

    async def settled(self, count: int) -> list[UsageEvent]:
        async with asyncio.timeout(10):
            while len(self.usage.rows) < count or self.data_path.in_flight:
                await asyncio.sleep(0.002)
        return self.usage.rows


@asynccontextmanager
async def running_gateway(
    *snapshots: TenantSnapshot,
    limits: IntakeLimits | None = None,
    tokens: bool = True,
    allowances: Allowances | None = None,
    connector: Connector | None = None,
) -> AsyncIterator[Gateway]:
    """Serve the data path of `snapshots` on a loopback port; the token `good` is the tenant's."""
    egress = EgressPolicy(allow_private=True)
    loader = InMemoryLoader(*snapshots)
    directory = Directory(loader, Workshop(egress, time.monotonic, random.Random(0)), poll_s=3600)
    await directory.start()
    verifier, usage = FixedVerifier(), Rows()
    if tokens:
        verifier.add("good")
    upstream = ConnectionPool(connector or DirectConnector(egress, tls=TLS))
    data_path = DataPath(
        verifier=verifier,
        proofs=ProofChecker("http://127.0.0.1", time.time),
        directory=directory,
        upstream=upstream,
        recorders=(usage,),
        prices=load_prices(),
        rng=random.Random(0),
        limits=limits,
        allowances=allowances,
    )
    config = uvicorn.Config(data_path, http="httptools", lifespan="off", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    protocol = type("Protocol", (RelayProtocol,), {"find_relay": staticmethod(lambda: data_path.serve)})
    # The protocol without uvicorn's server, whose loop looks for the end only ten times a second.
    server = await asyncio.get_running_loop().create_server(
        lambda: (HttpToolsProtocol if OVER_ASGI else protocol)(config=config, server_state=state, app_state={}),
        "127.0.0.1",
        0,
    )
    host, port = server.sockets[0].getsockname()[:2]
    client = ConnectionPool(DirectConnector(egress, tls=TLS))
    try:
        yield Gateway(Origin("http", host, port), client, loader, directory, verifier, usage, data_path, upstream)
    finally:
        await client.close()
        server.close()
        for task in list(state.tasks):
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        for connection in list(state.connections):
            connection.shutdown()
        await upstream.close()
        await directory.close()
