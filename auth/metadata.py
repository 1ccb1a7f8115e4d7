"""The authorization server's metadata document (RFC 8414): what works here, and nothing else. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from auth.client_metadata import ASSERTION_ALGORITHMS, AUTH_METHODS, GRANT_TYPES
from auth.details import TYPE
from auth.scopes import SCOPES

TOKEN_PATH = "/oauth2/token"  # noqa: S105 - a path
JWKS_PATH = "/oauth2/jwks"
INTROSPECTION_PATH = "/oauth2/introspect"
REVOCATION_PATH = "/oauth2/revoke"
WELL_KNOWN_PATH = "/.well-known/oauth-authorization-server"
DISCOVERY_PATH = "/.well-known/openid-configuration"
TENANT_PREFIX = "/t/"


def tenant_issuer(issuer: str, slug: str | None) -> str:
    """Return the issuer of a tenant's own endpoints, `issuer` itself without a tenant."""
    return issuer if slug is None else f"{issuer.rstrip('/')}{TENANT_PREFIX}{slug}"


def metadata(
    issuer: str, *, signing_algs: Sequence[str], mtls: bool, service_documentation: str = ""
) -> dict[str, Any]:
    """Return the document of `issuer`, which it repeats identically (RFC 8414 section 3.3).

    `response_types_supported` is required by section 2 and empty here, as there is no authorization endpoint. Section
    3.2 would leave empty arrays out; this one is sent, because clients look for the required member.
    """
    base = issuer.rstrip("/")
    methods = [each for each in AUTH_METHODS if mtls or "tls" not in each]
    document: dict[str, Any] = {
        "issuer": issuer,
        "token_endpoint": base + TOKEN_PATH,
        "jwks_uri": base + JWKS_PATH,
        "introspection_endpoint": base + INTROSPECTION_PATH,
        "revocation_endpoint": base + REVOCATION_PATH,
        "response_types_supported": [],
        "grant_types_supported": list(GRANT_TYPES),
        "scopes_supported": list(SCOPES),
        "token_endpoint_auth_methods_supported": methods,
        "token_endpoint_auth_signing_alg_values_supported": list(ASSERTION_ALGORITHMS),
        "introspection_endpoint_auth_methods_supported": methods,
        "introspection_endpoint_auth_signing_alg_values_supported": list(ASSERTION_ALGORITHMS),
        "introspection_signing_alg_values_supported": list(signing_algs),
        "revocation_endpoint_auth_methods_supported": methods,
        "revocation_endpoint_auth_signing_alg_values_supported": list(ASSERTION_ALGORITHMS),
        "dpop_signing_alg_values_supported": list(ASSERTION_ALGORITHMS),
        "authorization_details_types_supported": [TYPE],
    }
    if mtls:
        document["tls_client_certificate_bound_access_tokens"] = True
    if service_documentation:
        document["service_documentation"] = service_documentation
    return document


def discovery(issuer: str, *, signing_algs: Sequence[str]) -> dict[str, Any]:
    """Return the document by which others find the keys of assertions (OpenID Connect Discovery 1.0 section 3).

    It is for providers that are told to trust the issuer (workload identity federation). People do not sign in here:
    there is no authorization endpoint.
    """
    return {
        "issuer": issuer,
        "jwks_uri": issuer.rstrip("/") + JWKS_PATH,
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": list(signing_algs),
        "claims_supported": ["iss", "sub", "aud", "tenant_id", "iat", "exp", "jti"],
    }
