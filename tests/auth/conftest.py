"""The whole authorization server over a fresh database, behind Litestar, with two tenants and a frozen clock."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest
from uuid_utils.compat import uuid7

from auth.audit import InMemoryTrail
from auth.bearer import RequestAuthenticator
from auth.client_secrets import Peppers
from auth.clients import ClientSpec, create_client
from auth.deps import AuthServices
from auth.form import ClientCertificate
from auth.keyset import KeySet
from auth.middleware import authentication
from auth.principal import PLATFORM_TENANT_ID
from auth.revocations import Revocations
from auth.routes import make_routers
from auth.scopes import SCOPES, TENANT_SCOPES
from auth.sealing import Sealed
from auth.server import OAuthServer, ServerConfig
from auth.signing_keys import SigningKeys
from auth.storage import Connections, Sessions
from auth.tokens import Verifier
from gateway.control.app import make_control

ISSUER = "https://gateway.example"
NOW = 1_800_000_000.0
PEPPERS = Peppers({1: b"pepper-of-the-tests-0123456789abcdef"})


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

    async def client(self, slug: str, *, scopes: Any = None, **spec: Any) -> TestClient:
        """Register a client; every scope of its tenant unless told otherwise."""
        tenant_id = self.tenants[slug]
        every = SCOPES if slug == "platform" else TENANT_SCOPES
        wanted = ClientSpec(name="test", scopes=tuple(sorted(every if scopes is None else scopes)), **spec)
        async with self.sessions.tenant(tenant_id) as session:
            made = await create_client(
                session, tenant_id, wanted, peppers=PEPPERS, now=datetime.fromtimestamp(self.clock.now, UTC)
            )
            return TestClient(tenant_id, slug, made.client.client_id, made.secret.reveal() if made.secret else "")

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

    async def heard(self) -> None:
        """What a notice makes every process do."""
        await self.revocations.refresh(self.database, now=self.clock.now)
        await self.services.keys.refresh()


@pytest.fixture
async def world(database: Connections, sessions: Sessions) -> AsyncIterator[World]:
    clock, keys, revocations, trail = Clock(), KeySet(), Revocations(), InMemoryTrail()
    data_key_id, tenants = uuid7(), {"platform": PLATFORM_TENANT_ID, "acme": uuid7(), "rival": uuid7()}
    async with database.platform() as connection:
        for slug in ("acme", "rival"):
            await connection.execute("insert into tenant (id, slug, name) values ($1, $2, $2)", tenants[slug], slug)
        await connection.execute(
            "insert into data_key (id, tenant_id, version, kek_uri, wrapped) values ($1, $2, 1, 'test:', ''::bytea)",
            data_key_id,
            PLATFORM_TENANT_ID,
        )
    signing = SigningKeys(database, StoredDataKeySealer(data_key_id), keys, algs=("ES256", "RS256", "Ed25519"))
    await signing.maintain(now=clock.now)
    verifier = Verifier(ISSUER, ISSUER, keys, revocations, clock)
    config = ServerConfig(issuer=ISSUER, audience=ISSUER, resources=(f"{ISSUER}/v1",), mtls=True)
    server = OAuthServer(
        config,
        sessions=sessions,
        keys=signing,
        verifier=verifier,
        peppers=PEPPERS,
        trail=trail,
        clock=clock,
    )
    shown: dict[str, World] = {}
    services = AuthServices(
        config=config,
        server=server,
        sessions=sessions,
        keys=signing,
        peppers=PEPPERS,
        trail=trail,
        clock=clock,
        certificate_of=lambda _: shown["world"].certificate,
    )
    app = make_control(
        make_routers(services), middleware=[authentication(RequestAuthenticator(verifier, ISSUER, clock))]
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=ISSUER) as http:
        shown["world"] = World(services, verifier, revocations, trail, clock, http, database, sessions, tenants)
        yield shown["world"]
