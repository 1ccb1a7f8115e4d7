"""The authorization server: token, introspection, revocation, JWKS and metadata, free of any web framework."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncSession

from auth import introspection
from auth.audit import Event, Trail
from auth.certificates import thumbprint
from auth.client_authentication import AuthenticatedClient, ClientAuthenticator
from auth.client_metadata import CLIENT_CREDENTIALS
from auth.client_secrets import Peppers
from auth.credentials import Credentials, claimed_client, read_credentials
from auth.dpop import DpopNonces, ProofRefused, check_proof
from auth.failed_logins import FailedLogins
from auth.form import Call, Form, parse_form
from auth.grant_server import Answer, GrantRequest, GrantServer, Issuance
from auth.metadata import TOKEN_PATH, discovery, metadata, tenant_issuer
from auth.oauth_errors import InvalidClient, InvalidDpopProof, InvalidRequestError, OAuth2Error, SlowDown, UseDpopNonce
from auth.remote_keys import JwksFetcher, KeysNeeded, RemoteKeys
from auth.replay import first_use
from auth.revocation_store import revoke_key
from auth.signing_keys import SigningKeys
from auth.storage import Sessions
from auth.throttle import FAILURES_PER_ADDRESS, FAILURES_PER_PAIR, TOKENS_PER_CLIENT, Rate, Throttle
from auth.tokens import Claims, TokenRefused, Verifier

log = logging.getLogger(__name__)

NO_STORE = (("Content-Type", "application/json"), ("Cache-Control", "no-store"), ("Pragma", "no-cache"))


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """`issuer` is the public base URL, without query or fragment (RFC 8414 section 2); tokens are for `audience`.

    `resources` are further names of this gateway that clients may ask tokens for; its verifiers accept them. `mtls`:
    certificates reach us, from the server itself or from a trusted proxy. Failed authentications are answered a
    multiple of `failure_step_s` after they came: rows that are read, or are not there, show in no answer's time.
    """

    issuer: str
    audience: str
    resources: tuple[str, ...] = ()
    mtls: bool = False
    dpop_nonce_required: bool = True
    failure_step_s: float = 0.05


class OAuthServer:
    """Answers the OAuth endpoints; every method takes a raw `Call` and returns an `Answer`, errors included.

    `tenant` is the slug in a tenant's own endpoint path: there only its own clients are known. Errors of the OAuth
    kinds are answers (RFC 6749 section 5.2); `Unavailable` of the database is raised. `jwks` fetches keys that clients
    and federated issuers publish; without it such clients cannot authenticate. `failures.run()` is to be run as a task.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        sessions: Sessions,
        keys: SigningKeys,
        verifier: Verifier,
        peppers: Peppers,
        trail: Trail,
        clock: Callable[[], float],
        jwks: JwksFetcher | None = None,
    ) -> None:
        self._config = config
        self._sessions = sessions
        self._keys = keys
        self._verifier = verifier
        self._trail = trail
        self._clock = clock
        self._remote = RemoteKeys(jwks)
        self._authenticator = ClientAuthenticator(peppers, self._remote)
        self._nonces = DpopNonces(peppers.derive(b"dpop nonce"))
        self._throttle = Throttle()
        self.failures = FailedLogins(sessions, trail, clock)
        self._grants = GrantServer(
            keys,
            verifier,
            clock,
            audience=config.audience,
            audiences=tuple(dict.fromkeys((config.audience, *config.resources))),
        )

    async def token(self, call: Call, tenant: str | None = None) -> Answer:
        """Answer the token endpoint (RFC 6749 section 3.2)."""
        try:
            form = parse_form(call)
            client, held = await self._authenticated(call, form, tenant, proof_of=TOKEN_PATH)
            self._limit(("token", client.client_id), TOKENS_PER_CLIENT)
            issuer = tenant_issuer(self._config.issuer, tenant)
            request = GrantRequest(
                issuer.rstrip("/") + TOKEN_PATH, form, client, issuer, confirmation=_binding(client, held), held=held
            )
        except OAuth2Error as error:
            return self._refusal(error)
        answer = self._grants.respond(request)
        if request.issued is not None and request.issued.grant_type != CLIENT_CREDENTIALS:
            await self._record_exchange(call, request.issued)
        if "jkt" in held:
            answer = Answer(
                answer.status, answer.body, (*answer.headers, ("DPoP-Nonce", self._nonces.current(self._clock())))
            )
        return answer

    async def introspect(self, call: Call, tenant: str | None = None) -> Answer:
        """Answer the introspection endpoint (RFC 7662); as a signed JWT when the caller accepts one (RFC 9701)."""
        try:
            form = parse_form(call)
            client, _ = await self._authenticated(call, form, tenant)
            token = form.need("token")
        except OAuth2Error as error:
            return self._refusal(error)
        document = introspection.describe(self._verifier, token, client.tenant_id)
        if introspection.MEDIA_TYPE in (call.header("accept") or "").lower():
            signed = introspection.sign(
                self._keys.signer(),
                document,
                issuer=tenant_issuer(self._config.issuer, tenant),
                audience=client.client_id,
                now=self._clock(),
            )
            return Answer(200, signed, (("Content-Type", introspection.MEDIA_TYPE), *NO_STORE[1:]))
        return Answer(200, document, NO_STORE)

    async def revoke(self, call: Call, tenant: str | None = None) -> Answer:
        """Answer the revocation endpoint (RFC 7009): access tokens of the client itself, by `jti`.

        Every process refuses the token once the change is announced; an unknown, foreign-made or expired token is
        answered like a revoked one (section 2.2), another client's is refused (section 2.1).
        """
        try:
            form = parse_form(call)
            client, _ = await self._authenticated(call, form, tenant)
            token = form.need("token")
        except OAuth2Error as error:
            return self._refusal(error)
        try:
            claims = self._verifier.read(token)
        except TokenRefused:
            return Answer(200, {}, NO_STORE)
        if claims.tenant_id != client.tenant_id:
            return Answer(200, {}, NO_STORE)
        if not _may_revoke(client, claims):
            return self._refusal(InvalidRequestError(description="The token was issued to another client."))
        await self._revoke(call, client, claims)
        return Answer(200, {}, NO_STORE)

    def jwks(self) -> Answer:
        """Answer the JWKS endpoint (RFC 7517 section 5)."""
        headers = (("Content-Type", "application/jwk-set+json"), ("Cache-Control", "public, max-age=300"))
        return Answer(200, self._keys.keys.jwks(), headers)

    def metadata(self, tenant: str | None = None) -> Answer:
        """Answer the metadata endpoint (RFC 8414 section 3)."""
        issuer = tenant_issuer(self._config.issuer, tenant)
        document = metadata(issuer, signing_algs=self._keys.algs, mtls=self._config.mtls)
        return Answer(200, document, (("Content-Type", "application/json"), ("Cache-Control", "public, max-age=300")))

    def discovery(self) -> Answer:
        """Answer the discovery endpoint (OpenID Connect Discovery 1.0 section 4)."""
        document = discovery(self._config.issuer, signing_algs=self._keys.algs)
        return Answer(200, document, (("Content-Type", "application/json"), ("Cache-Control", "public, max-age=300")))

    async def _authenticated(
        self, call: Call, form: Form, tenant: str | None, proof_of: str | None = None
    ) -> tuple[AuthenticatedClient, Mapping[str, str]]:
        """Authenticate the client and read what keys it proves to hold: `jkt` and `x5t#S256`."""
        began = asyncio.get_running_loop().time()
        now, issuer = self._clock(), tenant_issuer(self._config.issuer, tenant)
        credentials = read_credentials(call, form)
        try:
            found = await self._identify(call, credentials, tenant, issuer, proof_of)
        except KeysNeeded as needed:
            await self._remote.load(needed.uri, now=now)
            try:
                found = await self._identify(call, credentials, tenant, issuer, proof_of)
            except KeysNeeded:
                found = InvalidClient()
        if isinstance(found, tuple):
            return found
        if isinstance(found, InvalidClient):
            await self._hide_time_since(began)
            log.info("client authentication failed", extra={"address": call.address, "request_id": call.request_id})
            # Right credentials always pass, wherever guesses come from: many clients may share one address.
            self.failures.note(claimed_client(credentials), call.address, call.request_id)
            self._limit(("failed", call.address), FAILURES_PER_ADDRESS)
            self._limit(("failed", call.address, claimed_client(credentials)), FAILURES_PER_PAIR)
        raise found

    async def _hide_time_since(self, began: float) -> None:
        """Wait for the next step after `began`: a known client's rows take longer to read than none (CWE-208)."""
        step_s = self._config.failure_step_s
        if step_s > 0:
            passed_s = asyncio.get_running_loop().time() - began
            await asyncio.sleep(math.ceil(passed_s / step_s) * step_s - passed_s)

    async def _identify(
        self, call: Call, credentials: Credentials, tenant: str | None, issuer: str, proof_of: str | None
    ) -> tuple[AuthenticatedClient, Mapping[str, str]] | OAuth2Error:
        now = self._clock()
        async with self._sessions.platform() as session:
            try:
                client = await self._authenticator.authenticate(session, call, credentials, issuer=issuer, now=now)
                if tenant is not None and client.tenant_slug != tenant:
                    raise InvalidClient
                held = (
                    {}
                    if proof_of is None
                    else await self._held(session, call, client, issuer.rstrip("/") + proof_of, now)
                )
            except OAuth2Error as error:
                return error  # as a value, so that the block commits the uses of one-time JWTs
        return client, held

    async def _held(
        self, session: AsyncSession, call: Call, client: AuthenticatedClient, url: str, now: float
    ) -> dict[str, str]:
        held = {} if call.certificate is None else {"x5t#S256": thumbprint(call.certificate.der)}
        header = call.header("dpop")
        if header is None:
            if client.metadata.get("dpop_bound_access_tokens"):
                raise InvalidDpopProof(description="This client's tokens are bound to a key: send a DPoP proof.")
            return held
        proof = check_proof(header, method=call.method, url=url, now=now)
        if isinstance(proof, ProofRefused):
            raise InvalidDpopProof(description=f"{proof.reason}.")
        if proof.nonce is None and self._config.dpop_nonce_required:
            raise UseDpopNonce(self._nonces.current(now))
        if proof.nonce is not None and not self._nonces.valid(proof.nonce, now):
            raise UseDpopNonce(self._nonces.current(now))
        if not await first_use(session, client.tenant_id, "dpop", proof.jkt, proof.jti, expires_at=proof.expires_at):
            raise InvalidDpopProof(description="The proof was used before.")
        return {**held, "jkt": proof.jkt}

    def _limit(self, key: tuple[str, ...], rate: Rate) -> None:
        now = self._clock()
        if (wait_s := self._throttle.wait_s(key, rate, now=now)) > 0:
            raise SlowDown(math.ceil(wait_s))
        self._throttle.count(key, rate, now=now)

    def _refusal(self, error: OAuth2Error) -> Answer:
        status, body, headers = error()
        return Answer(status, body, tuple(headers))

    async def _record_exchange(self, call: Call, issued: Issuance) -> None:
        async with self._sessions.tenant(issued.client.tenant_id) as session:
            await self._trail.append(
                session,
                Event(
                    tenant_id=issued.client.tenant_id,
                    at=datetime.fromtimestamp(self._clock(), UTC),
                    actor=issued.client.client_id,
                    action="token.exchange",
                    subject=f"token:{issued.token_id}",
                    address=call.address or None,
                    request_id=call.request_id or None,
                    detail={
                        "sub": issued.subject,
                        "scope": sorted(issued.scopes),
                        "expires_at": issued.expires_at,
                    },
                ),
            )

    async def _revoke(self, call: Call, client: AuthenticatedClient, claims: Claims) -> None:
        now = datetime.fromtimestamp(self._clock(), UTC)
        if claims.exp <= self._clock():
            return
        until = datetime.fromtimestamp(claims.exp, UTC)
        async with self._sessions.tenant(client.tenant_id) as session:
            await revoke_key(session, client.tenant_id, claims.jti, now=now, expires_at=until)
            await self._trail.append(
                session,
                Event(
                    tenant_id=client.tenant_id,
                    at=now,
                    actor=client.client_id,
                    action="token.revoke",
                    subject=f"token:{claims.jti}",
                    address=call.address or None,
                    request_id=call.request_id or None,
                ),
            )


def _binding(client: AuthenticatedClient, held: Mapping[str, str]) -> dict[str, str]:
    """Return `cnf`: the proven DPoP key, and the certificate where the registration binds tokens to it."""
    bound = {"jkt": held["jkt"]} if "jkt" in held else {}
    if client.metadata.get("tls_client_certificate_bound_access_tokens"):
        if "x5t#S256" not in held:
            raise InvalidRequestError(description="This client's tokens are bound to a certificate: connect with it.")
        bound["x5t#S256"] = held["x5t#S256"]
    return bound


def _may_revoke(client: AuthenticatedClient, claims: Claims) -> bool:
    """A client revokes its own tokens and those that came from them."""
    return claims.client_id == client.client_id or any(
        each.partition(":")[0] == client.client_id for each in claims.lineage
    )
