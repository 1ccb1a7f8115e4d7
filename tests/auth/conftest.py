"""The whole authorization server over a fresh database, behind Litestar, with two tenants and a frozen clock."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import functools
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import asyncpg
import httpx
import pytest
from litestar import Litestar
from uuid_utils.compat import uuid7

from auth.audit import InMemoryTrail
from auth.bearer import AsgiScope, RequestAuthenticator
from auth.certificates import ClientCertificate
from auth.client_secrets import Peppers
from auth.clients import ClientSpec, create_client
from auth.deps import AuthServices
from auth.errors import Fault
from auth.keyset import KeySet
from auth.middleware import authentication
from auth.principal import PLATFORM_TENANT_ID, Principal
from auth.relying_party import RelyingParty
from auth.remote_keys import InMemoryJwks
from auth.revocations import Revocations
from auth.routes import make_routers
from auth.scopes import SCOPES, TENANT_SCOPES
from auth.sealing import Sealed
from auth.secret import Secret
from auth.server import OAuthServer, ServerConfig
from auth.signing_keys import SigningKeys
from auth.storage import Connections, Sessions
from auth.tokens import Verifier
from gateway.control.app import make_control
from gateway.control.orm import OrmSessions
from gateway.control.parts import StoredRepeats
from gateway.database import Postgres
from gateway.embedded.postgres import Address

ISSUER = "https://gateway.example"
NOW = 1_800_000_000.0
PEPPERS = Peppers({1: b"pepper-of-the-tests-0123456789abcdef"})


DATA_KEY_ID = UUID(int=7)


def slug_of(tenant_id: UUID) -> str:
    return f"t-{tenant_id.hex}"


class Clock:
    """Unix seconds that move when told."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class StoredDataKeySealer:
    """Seals by exclusive or under a data key row that exists: enough for foreign keys, not for secrets."""

    def __init__(self, data_key_id: UUID) -> None:
        self.data_key_id = data_key_id

    async def seal(self, tenant_id: UUID, context: tuple[str, ...], plaintext: bytes) -> Sealed:
        return Sealed(self.data_key_id, self._turn("|".join((str(tenant_id), *context)).encode(), plaintext))

    async def open(self, tenant_id: UUID, data_key_id: UUID, context: tuple[str, ...], blob: bytes) -> bytes:
        return self._turn("|".join((str(tenant_id), *context)).encode(), blob)

    @staticmethod
    def _turn(key: bytes, text: bytes) -> bytes:
        return bytes(each ^ key[place % len(key)] ^ 0x5A for place, each in enumerate(text))


@dataclass(frozen=True)
class TestClient:
    """A registered client and its credentials."""

    __test__ = False

    tenant_id: UUID
    slug: str
    client_id: str
    secret: str

    @property
    def basic(self) -> dict[str, str]:
        pair = base64.b64encode(f"{self.client_id}:{self.secret}".encode()).decode()
        return {"authorization": f"Basic {pair}"}


@dataclass
class World:
    """Everything a test needs at hand."""

    services: AuthServices
    verifier: Verifier
    revocations: Revocations
    trail: InMemoryTrail
    clock: Clock
    http: httpx.AsyncClient
    database: Connections
    sessions: Sessions
    tenants: dict[str, UUID] = field(default_factory=dict)
    certificate: ClientCertificate | None = None
    jwks: InMemoryJwks = field(default_factory=InMemoryJwks)
    used: list[str] = field(default_factory=list)

    async def client(self, slug: str, *, scopes: Any = None, **spec: Any) -> TestClient:
        """Register a client; every scope of its tenant unless told otherwise."""
        tenant_id = self.tenants[slug]
        every = SCOPES if slug == "platform" else TENANT_SCOPES
        wanted = ClientSpec(name="test", scopes=tuple(sorted(every if scopes is None else scopes)), **spec)
        async with self.sessions.tenant(tenant_id) as session:
            made = await create_client(
                session, tenant_id, wanted, peppers=PEPPERS, now=datetime.fromtimestamp(self.clock.now, UTC)
            )
            return TestClient(
                tenant_id, slug_of(tenant_id), made.client.client_id, made.secret.reveal() if made.secret else ""
            )

    async def post(self, path: str, data: Any, **options: Any) -> httpx.Response:
        return await self.http.post(path, data=data, **options)

    async def token(self, client: TestClient, **parameters: str) -> str:
        """Get a token by client credentials, which must work."""
        answer = await self.post(
            "/oauth2/token", {"grant_type": "client_credentials", **parameters}, headers=client.basic
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    async def bearer(self, client: TestClient, **parameters: str) -> dict[str, str]:
        return {"authorization": f"Bearer {await self.token(client, **parameters)}"}

    def sign_in_at(self, party: RelyingParty) -> None:
        """Let people sign in at a provider, for this test."""
        object.__setattr__(_one_application()[1], "people", party)

    async def heard(self) -> None:
        """What a notice makes every process do."""
        await self.revocations.refresh(self.database, now=self.clock.now)
        await self.services.keys.refresh()


@pytest.fixture(scope="session")
def shared_url(migrated_server: tuple[Address, Secret]) -> str:
    """One database for all tests here: each brings tenants of its own, and what it does stays within them."""
    server, password = migrated_server

    async def create() -> None:
        connection = await asyncpg.connect(server.url())
        try:
            await connection.execute("create database auth_shared template migrated")
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as executor:
        executor.submit(lambda: asyncio.run(create())).result()
    return server.url("auth_shared", "llm_proxy_test", password)


@pytest.fixture
async def world(shared_url: str) -> AsyncIterator[World]:
    database, sessions = Postgres(shared_url, max_size=4), OrmSessions(shared_url, pool_size=8)
    try:
        async with make_world(database, sessions) as made:
            yield made
    finally:
        await database.close()
        await sessions.aclose()


@contextlib.asynccontextmanager
async def make_world(database: Connections, sessions: Sessions) -> AsyncIterator[World]:
    clock, keys, revocations, trail = Clock(), KeySet(), Revocations(), InMemoryTrail()
    tenants = {"platform": PLATFORM_TENANT_ID, "acme": uuid7(), "rival": uuid7()}
    async with database.platform() as connection:
        for name in ("acme", "rival"):
            await connection.execute(
                "insert into tenant (id, slug, name) values ($1, $2, $3)", tenants[name], slug_of(tenants[name]), name
            )
        await connection.execute(
            "insert into data_key (id, tenant_id, version, kek_uri, wrapped) values ($1, $2, 1, 'test:', ''::bytea)"
            " on conflict do nothing",
            DATA_KEY_ID,
            PLATFORM_TENANT_ID,
        )
    signing = SigningKeys(
        database, StoredDataKeySealer(DATA_KEY_ID), keys, algs=("ES256", "RS256", "Ed25519"), announce_s=0
    )
    await signing.maintain(now=clock.now)
    verifier = Verifier(ISSUER, (ISSUER, f"{ISSUER}/v1"), keys, revocations, clock)
    jwks = InMemoryJwks()
    config = ServerConfig(issuer=ISSUER, audience=ISSUER, resources=(f"{ISSUER}/v1",), mtls=True, failure_step_s=0.0)
    server = OAuthServer(
        config,
        sessions=sessions,
        keys=signing,
        verifier=verifier,
        peppers=PEPPERS,
        trail=trail,
        clock=clock,
        jwks=jwks,
    )
    shown: dict[str, World] = {}
    services = AuthServices(
        config=config,
        server=server,
        sessions=sessions,
        keys=signing,
        verifier=verifier,
        peppers=PEPPERS,
        trail=trail,
        clock=clock,
        certificate_of=lambda _: shown["world"].certificate,
        repeats=StoredRepeats(),
    )
    used: list[str] = []
    authenticator = RequestAuthenticator(verifier, ISSUER, clock, used=lambda token_id, _: used.append(token_id))
    app = _serve(services, authenticator)
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url=ISSUER) as http:
        shown["world"] = World(
            services, verifier, revocations, trail, clock, http, database, sessions, tenants, jwks=jwks, used=used
        )
        yield shown["world"]


class _Switch(RequestAuthenticator):
    """Hands over to the running test's authenticator."""

    def __init__(self, target: RequestAuthenticator) -> None:
        self.target = target

    def caller(self, scope: AsgiScope) -> Principal | Fault:
        return self.target.caller(scope)


@functools.cache
def _one_application() -> tuple[Litestar, AuthServices, _Switch]:
    """Build the application that serves every test in turn: building one takes longer than most tests."""
    empty, switch = AuthServices(*[cast("Any", None)] * 8), _Switch(cast("Any", None))
    return make_control(make_routers(empty), middleware=[authentication(switch)]), empty, switch


def _serve(services: AuthServices, authenticator: RequestAuthenticator) -> Litestar:
    app, held, switch = _one_application()
    for each in dataclasses.fields(AuthServices):
        object.__setattr__(held, each.name, getattr(services, each.name))
    switch.target = authenticator
    return app
