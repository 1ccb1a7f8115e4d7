"""Certificates in headers: what proxies send, and what attackers might."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from auth.forwarded_certificate import MAX_HEADER_CHARS, from_client_cert, from_escaped_pem
from tests.auth.test_binding import certificate


def test_rfc_9440_byte_sequences() -> None:
    der = certificate()
    found = from_client_cert(":" + base64.b64encode(der).decode() + ":")
    assert found is not None
    assert (found.der, found.verified) == (der, True)


@pytest.mark.parametrize(("verify", "verified"), [("SUCCESS", True), ("NONE", False), ("FAILED:x", False), ("", False)])
def test_nginx_escaped_pem(verify: str, verified: bool) -> None:
    der = certificate()
    pem = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()
    found = from_escaped_pem(quote(pem), verify)
    assert found is not None
    assert (found.der, found.verified) == (der, verified)


@pytest.mark.parametrize("bad", ["", ":", "::", "x", ":*:", "::::", ":" + "A" * MAX_HEADER_CHARS + ":"])
def test_anything_else_is_no_certificate(bad: str) -> None:
    assert from_client_cert(bad) is None
    assert from_escaped_pem(bad, "SUCCESS") is None
