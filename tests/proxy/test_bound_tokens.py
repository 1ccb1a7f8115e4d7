"""The data path and tokens that are bound to a key or a certificate: a stolen one is worth nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any
from uuid import UUID

import pytest

from auth.bearer import ProofChecker
from auth.certificates import ClientCertificate, thumbprint
from auth.keyset import KeySet, Signer
from auth.revocations import Revocations
from auth.tokens import Grant, Verifier, mint
from gateway.forwarded import CERTIFICATE
from gateway.metering.pricing import load_prices
from gateway.proxy.app import DataPath
from tests.auth.conftest import ISSUER, NOW
from tests.auth.test_binding import ath, certificate, proof

SIGNER, HOLDER, THIEF = Signer.generate(), Signer.generate(), Signer.generate()
OWN, OTHER = certificate(), certificate()


class NoTenants:
    """A directory that knows nobody: who gets there was let in."""

    def get(self, tenant_id: UUID) -> None:
        return None

    async def find(self, tenant_id: UUID) -> None:
        return None


def token_bound_to(**confirmation: str) -> str:
    names = {"jkt": "jkt", "x5t": "x5t#S256"}
    grant = Grant(
        issuer=ISSUER,
        audience=ISSUER,
        tenant_id=UUID(int=1),
        client_id="app",
        subject="app",
        scopes=frozenset({"inference"}),
        lifetime_s=3600,
        confirmation={names[name]: value for name, value in confirmation.items()},
    )
    return mint(SIGNER, grant, now=NOW, token_id="jti")


@pytest.fixture
def data_path() -> DataPath:
    def clock() -> float:
        return NOW

    verifier = Verifier(ISSUER, ISSUER, KeySet([SIGNER.public()]), Revocations(), clock)
    nothing: Any = None
    directory: Any = NoTenants()
    return DataPath(
        verifier=verifier,
        proofs=ProofChecker(ISSUER, clock),
        directory=directory,
        upstream=nothing,
        recorders=(),
        prices=load_prices(),
        rng=Random(0),
        unix_clock=clock,
    )


async def code_of(
    data_path: DataPath, token: str, scheme: str = "DPoP", proofs: Sequence[str] = (), der: bytes | None = None
) -> str:
    """Return the code of the answer; `not_permitted` and the like come from behind the token check."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", f"{scheme} {token}".encode()), (b"accept", b"application/problem+json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "headers": [*headers, *((b"dpop", each.encode()) for each in proofs)],
        "client": ("127.0.0.1", 1),
        "state": {CERTIFICATE: ClientCertificate(der, verified=False)} if der else {},
    }
    await data_path(scope, receive, send)
    return str(json.loads(b"".join(each.get("body", b"") for each in sent))["code"])


async def test_a_bound_token_needs_a_fresh_proof_of_its_key(data_path: DataPath) -> None:
    token = token_bound_to(jkt=HOLDER.key.thumbprint())

    def fresh(by: Signer, jti: str, **changes: Any) -> list[str]:
        claims = {"htu": ISSUER + "/v1/chat/completions", "ath": ath(token), "jti": jti, **changes}
        return [proof(by, **claims)]

    assert await code_of(data_path, token, proofs=fresh(HOLDER, "1")) == "tenant_suspended"
    assert await code_of(data_path, token, proofs=fresh(HOLDER, "1")) == "invalid_dpop_proof"
    assert await code_of(data_path, token, "Bearer") == "token_binding_missing"
    assert await code_of(data_path, token, "Bearer", fresh(HOLDER, "2")) == "token_binding_missing"
    assert await code_of(data_path, token) == "invalid_dpop_proof"
    assert await code_of(data_path, token, proofs=fresh(THIEF, "3")) == "token_binding_missing"
    assert await code_of(data_path, token, proofs=fresh(HOLDER, "4", htu=ISSUER + "/v1/models")) == "invalid_dpop_proof"
    assert await code_of(data_path, token, proofs=fresh(HOLDER, "5", htm="GET")) == "invalid_dpop_proof"
    assert await code_of(data_path, token, proofs=[*fresh(HOLDER, "6"), *fresh(HOLDER, "7")]) == "invalid_dpop_proof"
    assert await code_of(data_path, token, proofs=fresh(HOLDER, "8", ath="x")) == "invalid_dpop_proof"


async def test_a_token_without_a_key_is_no_dpop_token(data_path: DataPath) -> None:
    token = token_bound_to()
    claims: dict[str, Any] = {"htu": ISSUER + "/v1/chat/completions", "ath": ath(token)}
    assert await code_of(data_path, token, proofs=[proof(HOLDER, **claims)]) == "token_binding_missing"
    assert await code_of(data_path, token, "Bearer") == "tenant_suspended"


async def test_a_token_bound_to_a_certificate_needs_it(data_path: DataPath) -> None:
    token = token_bound_to(x5t=thumbprint(OWN))
    assert await code_of(data_path, token, "Bearer", der=OWN) == "tenant_suspended"
    assert await code_of(data_path, token, "Bearer", der=OTHER) == "token_binding_missing"
    assert await code_of(data_path, token, "Bearer") == "token_binding_missing"
