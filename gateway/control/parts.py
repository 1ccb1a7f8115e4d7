"""Builds the control plane of one process: the services of auth and tenants, their application, and the jobs."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from litestar import Litestar
from sqlalchemy.ext.asyncio import AsyncSession

from auth.audit import Event
from auth.bearer import RequestAuthenticator
from auth.client_secrets import Peppers
from auth.deps import AuthServices
from auth.dpop import ProofCache
from auth.errors import Invalid
from auth.key_rotation import Create, Promote, Remove, Step
from auth.middleware import authentication
from auth.people import purge_sessions
from auth.principal import PLATFORM_TENANT_ID
from auth.proof_sharing import purge_proofs
from auth.replay import purge_seen
from auth.revocation_store import purge_revocations
from auth.routes import make_routers as make_auth_routers
from auth.secret import Secret
from auth.server import OAuthServer, ServerConfig
from auth.signing_keys import SigningKeys
from auth.token_uses import TokenUses
from auth.tokens import Verifier
from auth.vouching import AssertionSigner
from gateway.balancing.strategies.registry import ACCEPTED, TENANTS_DEFAULT
from gateway.control.app import make_control
from gateway.control.key_probe import KeyProbe
from gateway.control.orm import OrmSessions
from gateway.control.requests import make_requests_router
from gateway.custody import parse_peppers
from gateway.forwarded import certificate_of, thumbprint_of
from gateway.guarded_calls import GuardedCalls
from gateway.jobs import Job, Jobs, maintenance_jobs
from gateway.published_keys import GuardedJwks
from gateway.sign_in import make_people
from gateway.upstream.connect import DirectConnector, EgressProxy
from gateway.upstream.guard import EgressPolicy, UnsafeUrl, check_base_url
from gateway.upstream.pool import ConnectionPool, PoolLimits
from gateway.upstream.providers import PROVIDERS
from tenants import audit
from tenants.api.services import CustodyParts, TenantServices
from tenants.catalogue import Catalogue, ProviderRule
from tenants.models import KeySource
from tenants.provisioning import Provisioner
from tenants.rotation import RotationEngine
from tenants.rotation_job import EVENTS
from tenants.routes import make_router as make_tenants_router
from tenants.shredding import shred_noted
from tenants.sources.federated import Identity
from tenants.sources.protocol import Driver
from tenants.sources.registry import make_driver
from tenants.store import idempotency

if TYPE_CHECKING:
    from gateway.database import Postgres
    from gateway.settings import Settings
    from gateway.telemetry import Metrics
    from tenants.datakeys import DataKeys
    from tenants.shares.protocol import ShareStore

log = logging.getLogger(__name__)

_PURGE_EVERY_S = 600.0
_ROTATE_EVERY_S = 1.0
_PROVISION_EVERY_S = 2.0
_SHRED_EVERY_S = 30.0
_UPSTREAM_CONNECTIONS = 50


class TenantTrail:
    """auth's audit trail, kept in the tenants' hash chains."""

    async def append(self, session: AsyncSession, event: Event) -> None:
        """Append one event in the session's transaction."""
        actor = audit.Actor(event.actor, event.address, event.request_id)
        await audit.record(
            session, event.tenant_id, actor, event.action, event.subject, at=event.at, detail=event.detail
        )


class StoredRepeats:
    """auth's answers to POSTs that may be repeated, kept where the tenants' own are."""

    async def claim(
        self, session: AsyncSession, tenant_id: UUID, key: str, request_hash: bytes, *, at: datetime
    ) -> dict[str, Any] | None:
        """Take `key`, or return the first answer's body."""
        found = await idempotency.claim(session, tenant_id, key, request_hash, at=at)
        return None if found is None else found.body

    async def settle(self, session: AsyncSession, tenant_id: UUID, key: str, body: dict[str, Any]) -> None:
        """Keep the answer of a claimed key."""
        await idempotency.settle(session, tenant_id, key, idempotency.Answer(201, body))


class GuardedBaseUrls:
    """The data path's own guard, so that what is accepted here is what will be connected to."""

    def __init__(self, policy: EgressPolicy) -> None:
        self._policy = policy

    def check(self, url: str) -> str | None:
        """Return None for a URL that may be used, or a sentence that says what is wrong with it."""
        try:
            check_base_url(url, self._policy)
        except UnsafeUrl as error:
            # A sentence in the middle of the caller's: "base_url leads to …: base URLs must be ….".
            mend = error.hint.rstrip(".")
            return f"{error.public.removeprefix('base_url ')}: {mend[:1].lower()}{mend[1:]}".removesuffix(": ")
        return None


def make_catalogue(*, allow_private: bool) -> Catalogue:
    """Say what tenants may choose from: the tables of providers and strategies, and the URL guard."""
    return Catalogue(
        providers={name: ProviderRule(needs_base_url=row.needs_base_url) for name, row in PROVIDERS.items()},
        strategies={**ACCEPTED, TENANTS_DEFAULT: TENANTS_DEFAULT},
        default_strategy=TENANTS_DEFAULT,
        base_urls=GuardedBaseUrls(EgressPolicy(allow_private=allow_private)),
    )


class ControlParts:
    """The running parts: `app` serves, `jobs.run()` and `failures.run()` are tasks, `close` ends the database pool."""

    def __init__(
        self,
        settings: Settings,
        *,
        postgres: Postgres,
        data_keys: DataKeys,
        shares: ShareStore | None,
        signing: SigningKeys,
        verifier: Verifier,
        metrics: Metrics,
        assertions: AssertionSigner,
        proofs: ProofCache | None = None,
        uses: TokenUses | None = None,
    ) -> None:
        if settings.database_url is None or settings.issuer is None or settings.token_audience is None:
            raise Invalid("DATABASE_URL and LLM_PROXY_ISSUER are needed.", hint="Run `llm-proxy config check`.")
        self._postgres = postgres
        self._sessions = OrmSessions(
            settings.database_url.reveal(),
            pool_size=settings.database_pool_size,
            max_overflow=0,
            statement_cache_size=settings.statement_cache_size,
        )
        self._shares = shares
        peppers = Peppers(parse_peppers(settings.peppers))
        trail = TenantTrail()
        egress = EgressPolicy(allow_private=settings.allow_private_upstreams)
        proxy = None
        if settings.egress_proxy is not None:
            proxy = EgressProxy.parse(settings.egress_proxy.reveal(), settings.no_proxy)
        self._upstream = ConnectionPool(DirectConnector(egress, proxy=proxy), PoolLimits(total=_UPSTREAM_CONNECTIONS))
        calls = GuardedCalls(self._upstream, egress)
        config = ServerConfig(
            issuer=settings.issuer, audience=settings.token_audience, mtls=settings.client_certificates != "off"
        )
        server = OAuthServer(
            config,
            sessions=self._sessions,
            keys=signing,
            verifier=verifier,
            peppers=peppers,
            trail=trail,
            clock=time.time,
            jwks=GuardedJwks(calls),
        )
        sign_in = make_people(settings, peppers)
        self._people_pool = None if sign_in is None else sign_in[1]
        auth = AuthServices(
            config=config,
            server=server,
            sessions=self._sessions,
            keys=signing,
            verifier=verifier,
            peppers=peppers,
            trail=trail,
            clock=time.time,
            certificate_of=lambda request: certificate_of(request.scope),
            repeats=StoredRepeats(),
            people=None if sign_in is None else sign_in[0],
        )
        probe = KeyProbe(self._upstream, egress)
        tenants = TenantServices(
            sessions=self._sessions,
            sealer=data_keys,
            catalogue=make_catalogue(allow_private=settings.allow_private_upstreams),
            peppers=peppers,
            now=_now,
            forget=data_keys.forget,
            custody=CustodyParts(postgres, data_keys, shares),
            prober=probe,
            issuer=settings.issuer,
        )
        authenticator = RequestAuthenticator(
            verifier,
            settings.issuer,
            time.time,
            proofs=proofs,
            certificate=thumbprint_of,
            used=None if uses is None else uses.note,
        )
        self.failures = server.failures
        signing.on_changed = self._record_rotation
        self.app: Litestar = make_control(
            [*make_auth_routers(auth), make_tenants_router(tenants), make_requests_router(postgres)],
            middleware=[authentication(authenticator)],
        )
        rng = random.Random()  # noqa: S311 - spreads the runs; nothing secret is drawn from it

        issuer = settings.issuer

        def driver_of(source: KeySource, credential: Secret | None) -> Driver:
            identity = Identity(issuer, source.tenant_id, source.id, assertions)
            return make_driver(
                source.driver, source.config, credential, http=calls, now_unix=time.time, identity=identity
            )

        for event in EVENTS:  # a count that begins with its first event shows Prometheus no increase
            metrics.alerts.labels(event)

        def alert(event: str, subject: str) -> None:
            metrics.alerts.labels(event).inc()
            log.error("a person should look at this", extra={"alert": event, "subject": subject})

        self._rotation = RotationEngine(self._sessions, data_keys, driver_of, probe, now=_now, rng=rng, alert=alert)
        self._provisioner = Provisioner(self._sessions, now=_now, alert=alert)
        self.jobs = Jobs(
            postgres,
            [
                *maintenance_jobs(postgres),
                Job("expired-tokens", _PURGE_EVERY_S, self._purge),
                Job("key-rotation", _ROTATE_EVERY_S, self._rotate),
                Job("provisioning", _PROVISION_EVERY_S, self._provision),
                Job("shredding", _SHRED_EVERY_S, self._shred),
            ],
            metrics,
            rng=rng,
        )

    async def close(self) -> None:
        """Close the connections to providers and to the database."""
        await self._upstream.close()
        if self._people_pool is not None:
            await self._people_pool.close()
        await self._sessions.aclose()

    async def _provision(self) -> None:
        await self._provisioner.run_once()

    async def _rotate(self) -> None:
        await self._rotation.run_once()

    async def _shred(self) -> None:
        if self._shares is not None:
            async for _ in shred_noted(self._sessions, self._shares, _now):
                pass

    async def _record_rotation(self, steps: Sequence[Step]) -> None:
        """Note in the operators' trail what the schedule did to the signing keys; commands are noted by their route."""
        async with self._sessions.tenant(PLATFORM_TENANT_ID) as session:
            for step in steps:
                await TenantTrail().append(session, _rotation_event(step, _now()))

    async def _purge(self) -> None:
        async with self._sessions.platform() as session:
            await purge_revocations(session, now=_now())
            await purge_seen(session, now=_now())
            await purge_sessions(session, now=_now())
        await purge_proofs(self._postgres)


def _rotation_event(step: Step, now: datetime) -> Event:
    """Say what one step of the plan did."""
    done = {Create: "create", Promote: "activate", Remove: "remove"}[type(step)]
    detail = {name: getattr(step, name) for name in ("alg", "state") if hasattr(step, name)}
    subject = f"signing_key:{getattr(step, 'kid', '')}".rstrip(":")
    return Event(PLATFORM_TENANT_ID, now, "schedule", f"signing_key.{done}", subject, detail=detail)


def _now() -> datetime:
    return datetime.now(UTC)
