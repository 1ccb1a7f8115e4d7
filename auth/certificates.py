"""TLS client certificates as credentials and as the thing a token is bound to (RFC 8705). Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """The caller's TLS certificate (DER); `verified`: its chain was checked against the installation's CAs."""

    der: bytes
    verified: bool


def thumbprint(der: bytes) -> str:
    """Return `x5t#S256`: the base64url SHA-256 of the certificate (RFC 8705 section 3.1)."""
    return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()


def registered_certificates(metadata: Mapping[str, Any]) -> list[bytes]:
    """Return the certificates (DER) that a client registered whole, as `x5c` of its `jwks` (RFC 8705 section 2.2.2)."""
    jwks = metadata.get("jwks")
    keys = jwks.get("keys") if isinstance(jwks, dict) else None
    found = []
    for key in keys if isinstance(keys, list) else ():
        chain = key.get("x5c") if isinstance(key, dict) else None
        if isinstance(chain, list) and chain and isinstance(chain[0], str):
            with suppress(ValueError):
                found.append(base64.b64decode(chain[0], validate=True))
    return found


def is_self_signed(der: bytes) -> bool:
    """Tell whether a certificate was signed with its own key, so that it vouches for nothing but that key."""
    try:
        parsed = x509.load_der_x509_certificate(der)
        parsed.verify_directly_issued_by(parsed)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def fits(certificate: ClientCertificate, method: str, metadata: Mapping[str, Any], *, now: datetime) -> bool:
    """Tell whether `certificate` is the registered client's (RFC 8705 sections 2.1 and 2.2).

    `tls_client_auth` needs a chain that was verified and the registered subject or alternative name;
    `self_signed_tls_client_auth` needs one of the registered certificates or thumbprints, within its validity.
    """
    try:
        parsed = x509.load_der_x509_certificate(certificate.der)
        valid = parsed.not_valid_before_utc <= now <= parsed.not_valid_after_utc
    except ValueError:
        return False
    if not valid:
        return False
    if method == "self_signed_tls_client_auth":
        own = thumbprint(certificate.der)
        registered = [str(each) for each in metadata.get("tls_client_certificates_s256", ())]
        registered += [thumbprint(each) for each in registered_certificates(metadata)]
        return any(hmac.compare_digest(own, each) for each in registered)
    return method == "tls_client_auth" and certificate.verified and _named(parsed, metadata)


def _named(certificate: x509.Certificate, metadata: Mapping[str, Any]) -> bool:
    if (subject := metadata.get("tls_client_auth_subject_dn")) is not None:
        try:
            return x509.Name.from_rfc4514_string(str(subject)) == certificate.subject
        except ValueError:
            return False
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    if (dns := metadata.get("tls_client_auth_san_dns")) is not None:
        return str(dns).lower() in [each.lower() for each in names.get_values_for_type(x509.DNSName)]
    uri = metadata.get("tls_client_auth_san_uri")
    return uri is not None and uri in names.get_values_for_type(x509.UniformResourceIdentifier)
