"""TLS certificates that proxies pass on: believed from trusted peers alone, and in the shape that was chosen."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from auth.certificates import thumbprint
from auth.keyset import ALGORITHMS
from gateway.forwarded import ForwardedCaller, certificate_of, thumbprint_of
from gateway.setting_values import SIGNING_ALGORITHMS
from tests.auth.test_binding import certificate

DER = certificate()
RFC9440 = (b"client-cert", b":" + base64.b64encode(DER) + b":")
PEM = quote(x509.load_der_x509_certificate(DER).public_bytes(Encoding.PEM)).encode()
NGINX = (b"x-ssl-client-cert", PEM)


async def seen(form: str, *headers: tuple[bytes, bytes], peer: str = "10.0.0.1") -> dict[str, Any]:
    """Return the scope that an application behind `ForwardedCaller` sees."""
    scopes: list[dict[str, Any]] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        scopes.append(scope)

    scope = {"type": "http", "client": (peer, 1), "scheme": "http", "headers": list(headers), "state": {}}
    await ForwardedCaller(app, trusted="10.0.0.0/24", form=form)(scope, None, None)
    return scopes[0]


async def test_a_trusted_proxy_is_believed() -> None:
    scope = await seen("client-cert", RFC9440, (b"x-forwarded-for", b"203.0.113.9"))
    found = certificate_of(scope)
    assert found is not None
    assert (found.der, found.verified) == (DER, True)
    assert thumbprint_of(scope) == thumbprint(DER)
    assert scope["client"][0] == "203.0.113.9"


@pytest.mark.parametrize(("verify", "verified"), [(b"SUCCESS", True), (b"FAILED:self-signed", False), (b"", False)])
async def test_nginx_says_whether_the_chain_was_verified(verify: bytes, verified: bool) -> None:
    found = certificate_of(await seen("nginx", NGINX, (b"x-ssl-client-verify", verify)))
    assert found is not None
    assert (found.der, found.verified) == (DER, verified)


@pytest.mark.parametrize(
    ("form", "headers", "peer"),
    [
        pytest.param("client-cert", (RFC9440,), "10.0.1.1", id="from anybody else"),
        pytest.param("client-cert", (RFC9440, (b"x-forwarded-for", b"10.0.0.1")), "203.0.113.9", id="claims a proxy"),
        pytest.param("client-cert", (RFC9440, RFC9440), "10.0.0.1", id="twice"),
        pytest.param("client-cert", (NGINX, (b"x-ssl-client-verify", b"SUCCESS")), "10.0.0.1", id="the other form"),
        pytest.param("nginx", (RFC9440,), "10.0.0.1", id="the other form again"),
        pytest.param("client-cert", ((b"client-cert", b":!:"),), "10.0.0.1", id="unreadable"),
        pytest.param("nginx", ((b"x-ssl-client-cert", b"%zz"),), "10.0.0.1", id="unreadable PEM"),
        pytest.param("client-cert", (), "10.0.0.1", id="none"),
    ],
)
async def test_anything_else_is_no_certificate(form: str, headers: Any, peer: str) -> None:
    scope = await seen(form, *headers, peer=peer)
    assert certificate_of(scope) is None
    assert thumbprint_of(scope) == ""


def test_the_algorithms_of_the_settings_are_those_of_the_keys() -> None:
    assert SIGNING_ALGORITHMS == ALGORITHMS
