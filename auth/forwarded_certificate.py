"""The caller's TLS certificate as a proxy in front passes it on. Pure; trusting the proxy is the caller's decision."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from auth.certificates import ClientCertificate

MAX_HEADER_CHARS = 16_384


def from_client_cert(value: str) -> ClientCertificate | None:
    """Read `Client-Cert` (RFC 9440 section 2.2): the DER as a structured-field byte sequence `:base64:`.

    The proxy sends it only for certificates that it has verified (section 2.4).
    """
    if not 2 < len(value) <= MAX_HEADER_CHARS or not (value[0] == value[-1] == ":"):
        return None
    try:
        return ClientCertificate(base64.b64decode(value[1:-1], validate=True), verified=True)
    except (binascii.Error, ValueError):
        return None


def from_escaped_pem(value: str, verify: str) -> ClientCertificate | None:
    """Read nginx's `$ssl_client_escaped_cert` and `$ssl_client_verify`: SUCCESS means that the chain was verified.

    With `ssl_verify_client optional_no_ca` the proxy passes self-signed certificates on too, which count by their
    thumbprint alone.
    """
    if not 0 < len(value) <= MAX_HEADER_CHARS:
        return None
    try:
        certificate = x509.load_pem_x509_certificate(unquote(value).encode())
    except ValueError:
        return None
    return ClientCertificate(certificate.public_bytes(Encoding.DER), verified=verify == "SUCCESS")
