"""Access tokens: JWTs as RFC 9068 profiles them, minted here and verified offline on the request path."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import msgspec

from auth.errors import NotAuthenticated, Unavailable
from auth.keyset import KeySet, Signer
from auth.principal import Principal
from auth.revocations import Revocations, Traces
from auth.scopes import format_scope

TYP = "at+jwt"
CLOCK_SKEW_S = 5.0
"""How far `iat` and `nbf` may lie ahead: replicas' clocks differ a little; `exp` gets no grace."""

MAX_TOKEN_CHARS = 16_384

_COMPACT = re.compile(r"([A-Za-z0-9_-]{2,1024})\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_TYPES = frozenset({"at+jwt", "application/at+jwt"})


class TokenRefused(NotAuthenticated):
    """An access token that does not verify; `challenge` is the `WWW-Authenticate` value (RFC 6750 section 3.1)."""

    code = "invalid_token"
    challenge = 'Bearer error="invalid_token"'


class TokenMalformed(TokenRefused):
    """Not a JWT access token of this issuer at all."""

    code = "token_malformed"


class TokenForged(TokenRefused):
    """The signature does not verify under a published key of the issuer."""

    code = "token_signature_invalid"


class TokenExpired(TokenRefused):
    """Its `exp` has passed."""

    code = "token_expired"


class TokenNotYetValid(TokenRefused):
    """Its `nbf` or `iat` lies ahead."""

    code = "token_not_yet_valid"


class TokenForeign(TokenRefused):
    """It was issued by another issuer or for another audience."""

    code = "token_foreign"


class TokenRevoked(TokenRefused):
    """It was revoked, or its client or tenant was."""

    code = "token_revoked"


class TokenUnbound(TokenRefused):
    """It is bound to a key or a certificate (RFC 7800 `cnf`) that the caller did not prove to hold."""

    code = "token_binding_missing"


@dataclass(frozen=True, slots=True)
class Grant:
    """What an access token will say: `lifetime_s` from now; `actors` with the latest first (RFC 8693 section 4.1)."""

    issuer: str
    audience: str | tuple[str, ...]
    tenant_id: UUID
    client_id: str
    subject: str
    scopes: frozenset[str]
    lifetime_s: int
    details: tuple[Mapping[str, Any], ...] = ()
    actors: tuple[str, ...] = ()
    lineage: tuple[str, ...] = ()
    confirmation: Mapping[str, str] = field(default_factory=dict)


def new_token_id() -> str:
    """Return a fresh `jti`: 192 random bits, URL-safe."""
    return secrets.token_urlsafe(24)


def mint(signer: Signer, grant: Grant, *, now: float, token_id: str) -> str:
    """Sign an access token with the claims of RFC 9068 section 2.2, `tenant_id`, and what narrows or binds it."""
    issued_at = int(now)
    claims: dict[str, Any] = {
        "iss": grant.issuer,
        "aud": grant.audience if isinstance(grant.audience, str) else list(grant.audience),
        "sub": grant.subject,
        "client_id": grant.client_id,
        "tenant_id": str(grant.tenant_id),
        "scope": format_scope(grant.scopes),
        "iat": issued_at,
        "exp": issued_at + grant.lifetime_s,
        "jti": token_id,
    }
    if grant.details:
        claims["authorization_details"] = [dict(each) for each in grant.details]
    if grant.actors:
        claims["act"] = _nested_actors(grant.actors)
    if grant.lineage:
        claims["lineage"] = list(grant.lineage)
    if grant.confirmation:
        claims["cnf"] = dict(grant.confirmation)
    return signer.sign(claims, typ=TYP)


class Claims(msgspec.Struct, frozen=True):
    """The claims that the gateway reads; a token without the required ones is malformed."""

    iss: str
    aud: str | list[str]
    sub: str
    client_id: str
    tenant_id: UUID
    iat: float
    exp: float
    jti: str
    scope: str = ""
    nbf: float = 0.0
    authorization_details: list[dict[str, Any]] = []
    act: dict[str, Any] | None = None
    lineage: list[str] = []
    cnf: dict[str, str] = {}


class _Header(msgspec.Struct, frozen=True):
    alg: str
    kid: str
    typ: str
    crit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    b64: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode_header = msgspec.json.Decoder(_Header).decode
_decode_claims = msgspec.json.Decoder(Claims).decode


def digest_of(token: str) -> bytes:
    """Return what a verifier knows a token by: its SHA-256."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class Verifier:
    """Turns a token into a `Principal` without any IO; safe to call on every request.

    The algorithm is the one pinned to the key; `jku`, `x5u`, `jwk` and `x5c` in the header are never read (RFC 8725
    section 3). A token seen before is found by its SHA-256 in a bounded cache; expiry, revocation and the binding are
    checked on every call, and a change of the key set empties the cache.
    """

    def __init__(
        self,
        issuer: str,
        audience: str | Collection[str],
        keys: KeySet,
        revoked: Revocations,
        clock: Callable[[], float],
        *,
        cache_size: int = 20_000,
    ) -> None:
        self._issuer = issuer
        self._tenant_issuers = issuer.rstrip("/") + "/t/"
        self._audience = frozenset((audience,)) if isinstance(audience, str) else frozenset(audience)
        self._keys = keys
        self._revoked = revoked
        self._clock = clock
        self._cache_size = cache_size
        self._cache: OrderedDict[bytes, tuple[Principal, Traces]] = OrderedDict()
        self._generation = keys.generation

    def verify(self, token: str, *, digest: bytes = b"", jkt: str = "", x5t_s256: str = "") -> Principal:
        """Return the caller of `token`, or raise a `TokenRefused` that says why.

        `digest` is `digest_of(token)` from whoever has kept it; b"": nobody has.

        `jkt` is the thumbprint of the DPoP key that signed this request's proof (RFC 9449), `x5t_s256` that of the
        caller's TLS certificate (RFC 8705): a token bound to one is refused without it, as a thief has no proof.
        """
        if self._generation != self._keys.generation:
            self._cache.clear()
            self._generation = self._keys.generation
        if len(token) > MAX_TOKEN_CHARS:
            raise TokenMalformed("The access token is too long.", hint="Send the token as it was issued.")
        if not digest:
            digest = digest_of(token)
        found = self._cache.get(digest)
        if found is None:
            principal = self._decode(token)
            traces = Traces.of(principal)
        else:
            self._cache.move_to_end(digest)
            principal, traces = found
        if principal.expires_at <= self._clock():
            self._cache.pop(digest, None)
            raise TokenExpired(
                "The access token has expired.", hint="Get a new one from the token endpoint before expires_in is over."
            )
        if self._revoked.refuses(traces):
            raise TokenRevoked("The access token was revoked.", hint="Get a new one from the token endpoint.")
        if (principal.jkt and principal.jkt != jkt) or (principal.x5t_s256 and principal.x5t_s256 != x5t_s256):
            raise TokenUnbound(
                "The access token is bound to a key that this request does not prove.",
                hint="Send it as 'Authorization: DPoP' with a proof of its key, or with its client certificate.",
            )
        if found is None:
            self._cache[digest] = (principal, traces)
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return principal

    def is_revoked(self, caller: Principal) -> bool:
        """Tell whether a caller known by other means than a token has lost what it stands on: client, tenant, token."""
        return self._revoked.refuses(Traces.of(caller))

    def _decode(self, token: str) -> Principal:
        claims = self.read(token)
        now = self._clock()
        if max(claims.nbf, claims.iat) > now + CLOCK_SKEW_S:
            raise TokenNotYetValid(
                "The access token is not valid yet.", hint="Check the clock of the machine that issued it."
            )
        audiences = (claims.aud,) if isinstance(claims.aud, str) else claims.aud
        if not self._audience.intersection(audiences):
            raise TokenForeign(
                "The access token is for another audience.",
                hint="Request it without 'resource', or with the base URL of this gateway as 'resource'.",
            )
        return Principal(
            tenant_id=claims.tenant_id,
            client_id=claims.client_id,
            scopes=frozenset(claims.scope.split()),
            token_id=claims.jti,
            expires_at=claims.exp,
            subject=claims.sub,
            details=tuple(claims.authorization_details),
            actors=_actor_chain(claims.act),
            lineage=tuple(claims.lineage),
            issued_at=claims.iat,
            jkt=claims.cnf.get("jkt", ""),
            x5t_s256=claims.cnf.get("x5t#S256", ""),
        )

    def read(self, token: str) -> Claims:
        """Return the claims of a token whose type, signature and issuer are right, whatever its times and audience.

        Raises `Unavailable` while there is no key at all.
        """
        shape = _COMPACT.fullmatch(token)
        if shape is None:
            raise TokenMalformed(
                "The credentials are not an access token of this gateway.",
                hint="Send the access_token of the token endpoint; a provider key or a client secret is no token.",
            )
        try:
            header = _decode_header(_unbase64(shape[1]))
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise TokenMalformed("The access token's header is not readable.", debug=str(error)) from None
        if header.typ.lower() not in _TYPES:
            raise TokenMalformed("The credentials are a JWT, but no access token.", debug=f"typ {header.typ[:40]!r}")
        key = self._keys.get(header.kid)
        if not len(self._keys):
            # Started while the database is away: nothing is known of this token, and its holder should not drop it.
            raise Unavailable(
                "This process has not loaded the signing keys yet.", hint="Send the request again in a moment."
            )
        if key is None or header.alg != key.alg or header.crit is not msgspec.UNSET or header.b64 is not msgspec.UNSET:
            raise TokenForged(
                "The access token is not signed by a key of this gateway.",
                hint="Get a new one from the token endpoint.",
                debug=f"kid {header.kid[:64]!r} alg {header.alg[:16]!r}",
            )
        payload = key.verify(token)
        if payload is None:
            raise TokenForged("The access token's signature is not valid.", debug=f"kid {key.kid}")
        try:
            claims = _decode_claims(payload)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise TokenMalformed("The access token lacks required claims.", debug=str(error)) from None
        if claims.iss != self._issuer and not claims.iss.startswith(self._tenant_issuers):
            raise TokenForeign("The access token is from another issuer.", debug=f"iss {claims.iss[:200]!r}")
        return claims


def _unbase64(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _nested_actors(actors: tuple[str, ...]) -> dict[str, Any]:
    claim: dict[str, Any] = {}
    for actor in reversed(actors):
        claim = {"sub": actor, "act": claim} if claim else {"sub": actor}
    return claim


def _actor_chain(act: Mapping[str, Any] | None) -> tuple[str, ...]:
    chain = []
    while isinstance(act, Mapping) and isinstance(act.get("sub"), str):
        chain.append(act["sub"])
        act = act.get("act")
    return tuple(chain)
