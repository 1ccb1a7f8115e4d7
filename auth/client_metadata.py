"""What a client's authentication method needs to know of it, by the names of RFC 7591, RFC 8705 and RFC 9449."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from auth.certificates import is_self_signed, registered_certificates
from auth.client_keys import public_key
from auth.keyset import ALGORITHMS

CLIENT_CREDENTIALS = "client_credentials"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 - a registered name, no secret
GRANT_TYPES = (CLIENT_CREDENTIALS, TOKEN_EXCHANGE)

AUTH_METHODS = (
    "client_secret_basic",
    "client_secret_post",
    "private_key_jwt",
    "tls_client_auth",
    "self_signed_tls_client_auth",
)

FEDERATED = "federated_jwt"
"""A client without any credential of ours: a JWT of its own platform speaks for it (workload identity federation)."""

REGISTRABLE_METHODS = (*AUTH_METHODS, FEDERATED)

ASSERTION_ALGORITHMS = ("ES256", "RS256", "PS256", "Ed25519")
"""What a client may sign its assertions and proofs with; symmetric ones are out (RFC 9700 section 2.5)."""

MAX_JWKS_KEYS = 8
_KNOWN = frozenset(
    {
        "jwks",
        "jwks_uri",
        "federation",
        "tls_client_auth_subject_dn",
        "tls_client_auth_san_dns",
        "tls_client_auth_san_uri",
        "tls_client_certificates_s256",
        "tls_client_certificate_bound_access_tokens",
        "dpop_bound_access_tokens",
        "access_token_signed_response_alg",
    }
)
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


def check(auth_method: str, metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is wrong as (JSON pointer, sentence) pairs; an empty list when the client can authenticate."""
    errors: list[tuple[str, str]] = []
    if auth_method not in REGISTRABLE_METHODS:
        errors.append(("/auth_method", f"choose from {', '.join(REGISTRABLE_METHODS)}"))
    errors += [("/metadata", f"unknown member {name}") for name in sorted(set(metadata) - _KNOWN)]
    if len(json.dumps(dict(metadata))) > 32_768:
        errors.append(("/metadata", "is larger than 32 KiB"))
    if "jwks" in metadata or (auth_method == "private_key_jwt" and "jwks_uri" not in metadata):
        errors += _check_jwks(metadata.get("jwks"))
        if auth_method == "private_key_jwt" and not errors:
            errors += _check_usable(metadata["jwks"]["keys"])
    if "jwks" in metadata and "jwks_uri" in metadata:
        errors.append(("/metadata", "has jwks and jwks_uri: choose one (RFC 7591 section 2)"))
    if "jwks_uri" in metadata:
        errors += _check_uri("/metadata/jwks_uri", metadata["jwks_uri"])
    if auth_method == FEDERATED or "federation" in metadata:
        errors += _check_federation(metadata.get("federation"))
    if auth_method == "tls_client_auth" and not any(name in metadata for name in _PKI_NAMES):
        errors.append(("/metadata", f"tls_client_auth needs one of {', '.join(_PKI_NAMES)}"))
    if auth_method == "self_signed_tls_client_auth":
        errors += _check_self_signed(metadata)
    for name in _PKI_NAMES:
        if name in metadata and (not isinstance(metadata[name], str) or not metadata[name]):
            errors.append((f"/metadata/{name}", "must be a non-empty string"))
    thumbprints = metadata.get("tls_client_certificates_s256", [])
    if not isinstance(thumbprints, list) or not all(isinstance(each, str) and len(each) == 43 for each in thumbprints):
        errors.append(("/metadata/tls_client_certificates_s256", "must list base64url SHA-256 thumbprints"))
    for name in ("tls_client_certificate_bound_access_tokens", "dpop_bound_access_tokens"):
        if not isinstance(metadata.get(name, False), bool):
            errors.append((f"/metadata/{name}", "must be true or false"))
    if metadata.get("access_token_signed_response_alg", ALGORITHMS[0]) not in ALGORITHMS:
        errors.append(("/metadata/access_token_signed_response_alg", f"choose from {', '.join(ALGORITHMS)}"))
    return errors


def _check_self_signed(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Check that there is a certificate or its thumbprint, whole ones being self-signed (RFC 8705 section 2.2)."""
    whole = registered_certificates(metadata)
    if not whole and not metadata.get("tls_client_certificates_s256"):
        return [
            (
                "/metadata",
                "needs the certificate as x5c of a key in jwks, or its thumbprint in tls_client_certificates_s256",
            )
        ]
    if not all(is_self_signed(each) for each in whole):
        return [("/metadata/jwks", "has an x5c that is no self-signed certificate; tls_client_auth is for CAs' ones")]
    return []


def _check_uri(pointer: str, value: object) -> list[tuple[str, str]]:
    try:
        parts = urlsplit(value) if isinstance(value, str) and len(value) <= 2048 and value.isprintable() else None
    except ValueError:
        parts = None
    if parts is None or parts.scheme != "https" or not parts.hostname or parts.username or parts.fragment:
        return [(pointer, "must be an https URL without user and fragment")]
    return []


def _check_federation(federation: object) -> list[tuple[str, str]]:
    """Check `{"issuer", "subject", "jwks_uri"}`: whose JWTs speak for the client, exactly one subject of theirs."""
    if not isinstance(federation, dict) or set(federation) != {"issuer", "subject", "jwks_uri"}:
        return [("/metadata/federation", 'needs {"issuer": …, "subject": …, "jwks_uri": …}')]
    errors = _check_uri("/metadata/federation/jwks_uri", federation["jwks_uri"])
    errors += _check_uri("/metadata/federation/issuer", federation["issuer"])
    if not isinstance(federation["subject"], str) or not 1 <= len(federation["subject"]) <= 512:
        errors.append(("/metadata/federation/subject", "needs the exact sub of the workload's tokens"))
    return errors


_PKI_NAMES = ("tls_client_auth_subject_dn", "tls_client_auth_san_dns", "tls_client_auth_san_uri")


def _check_usable(keys: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Check that signatures can be verified by each: a client could else never authenticate, and nobody say why."""
    errors = []
    for place, key in enumerate(keys):
        try:
            public_key(key)
        except ValueError as error:
            errors.append((f"/metadata/jwks/keys/{place}", str(error)))
    return errors


def _check_jwks(jwks: object) -> list[tuple[str, str]]:
    if not isinstance(jwks, dict) or not isinstance(jwks.get("keys"), list) or not jwks["keys"]:
        return [("/metadata/jwks", 'needs a JWK Set with the client\'s public keys: {"keys": […]}')]
    if len(jwks["keys"]) > MAX_JWKS_KEYS:
        return [("/metadata/jwks", f"holds more than {MAX_JWKS_KEYS} keys")]
    errors = []
    for place, key in enumerate(jwks["keys"]):
        if not isinstance(key, dict) or key.get("kty") not in {"EC", "RSA", "OKP"}:
            errors.append((f"/metadata/jwks/keys/{place}", "must be an EC, RSA or OKP public key"))
        elif _PRIVATE_MEMBERS & set(key):
            errors.append((f"/metadata/jwks/keys/{place}", "holds a private key: replace it, send the public half"))
        elif not isinstance(key.get("x5c", []), list) or not all(isinstance(each, str) for each in key.get("x5c", [])):
            errors.append((f"/metadata/jwks/keys/{place}/x5c", "must list certificates in base64, the key's own first"))
        elif key.get("alg", "ES256") not in ASSERTION_ALGORITHMS:
            errors.append((f"/metadata/jwks/keys/{place}/alg", f"choose from {', '.join(ASSERTION_ALGORITHMS)}"))
    return errors
