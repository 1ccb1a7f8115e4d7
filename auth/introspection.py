"""What an access token says to whoever may ask: introspection (RFC 7662) and its signed form (RFC 9701)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from auth.keyset import Signer
from auth.principal import PLATFORM_TENANT_ID
from auth.tokens import TokenRefused, Verifier

MEDIA_TYPE = "application/token-introspection+jwt"
INACTIVE: Mapping[str, Any] = {"active": False}


def describe(verifier: Verifier, token: str, tenant_id: UUID) -> dict[str, Any]:
    """Return the token's members, or exactly `{"active": false}` (RFC 7662 section 2.2).

    Inactive is whatever does not verify now, and any token of another tenant, unless an operator's client asks. A bound
    token is described with its `cnf`: checking the proof is up to the resource that asks.
    """
    try:
        claims = verifier.read(token)
        cnf = claims.cnf
        verifier.verify(token, jkt=cnf.get("jkt", ""), x5t_s256=cnf.get("x5t#S256", ""))
    except TokenRefused:
        return dict(INACTIVE)
    if tenant_id not in {claims.tenant_id, PLATFORM_TENANT_ID}:
        return dict(INACTIVE)
    document: dict[str, Any] = {
        "active": True,
        "iss": claims.iss,
        "aud": claims.aud,
        "sub": claims.sub,
        "client_id": claims.client_id,
        "tenant_id": str(claims.tenant_id),
        "scope": claims.scope,
        "iat": int(claims.iat),
        "exp": int(claims.exp),
        "jti": claims.jti,
        "token_type": "DPoP" if "jkt" in cnf else "Bearer",
    }
    if claims.authorization_details:
        document["authorization_details"] = claims.authorization_details
    if claims.act:
        document["act"] = claims.act
    if cnf:
        document["cnf"] = cnf
    return document


def sign(signer: Signer, document: Mapping[str, Any], *, issuer: str, audience: str, now: float) -> str:
    """Return the signed form (RFC 9701 section 5): its `typ` keeps it from passing for an access token."""
    claims = {"iss": issuer, "aud": audience, "iat": int(now), "token_introspection": dict(document)}
    return signer.sign(claims, typ="token-introspection+jwt")
