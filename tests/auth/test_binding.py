"""Tokens bound to keys and certificates: DPoP (RFC 9449) and mutual TLS (RFC 8705), attacked."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwt

from auth.certificates import ClientCertificate, thumbprint
from auth.keyset import Signer
from tests.auth.conftest import ISSUER, NOW, TestClient, World

GRANT = {"grant_type": "client_credentials"}
TOKEN_URL = ISSUER + "/oauth2/token"
CLIENTS_URL = ISSUER + "/api/v1/clients"


def proof(signer: Signer, *, header: dict[str, Any] | None = None, **changes: Any) -> str:
    claims: dict[str, Any] = {"htm": "POST", "htu": TOKEN_URL, "iat": int(NOW), "jti": "p1", **changes}
    kept = {name: value for name, value in claims.items() if value is not None}
    public = {"typ": "dpop+jwt", "alg": signer.alg, "jwk": signer.key.as_dict(private=False)}
    return jwt.encode({**public, **(header or {})}, kept, signer.key, [signer.alg])


def ath(token: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()).rstrip(b"=").decode()


async def ask(world: World, client: TestClient, text: str) -> httpx.Response:
    return await world.post("/oauth2/token", GRANT, headers={**client.basic, "dpop": text})


async def nonce_of(world: World, client: TestClient, signer: Signer) -> str:
    answer = await ask(world, client, proof(signer, jti="for the nonce"))
    assert (answer.status_code, answer.json()["error"]) == (400, "use_dpop_nonce")
    return answer.headers["dpop-nonce"]


@pytest.mark.parametrize("alg", ["ES256", "RS256", "Ed25519"])
async def test_a_bound_token_works_with_its_key_alone(world: World, alg: str) -> None:
    signer, thief, client = Signer.generate(alg), Signer.generate(), await world.client("acme")
    nonce = await nonce_of(world, client, signer)
    answer = await ask(world, client, proof(signer, nonce=nonce))
    assert answer.status_code == 200, answer.text
    assert answer.json()["token_type"] == "DPoP"
    token = answer.json()["access_token"]

    async def get(scheme: str, *proofs: str) -> int:
        headers = [("authorization", f"{scheme} {token}"), *(("dpop", each) for each in proofs)]
        return (await world.http.get("/api/v1/clients", headers=headers)).status_code

    def fresh(by: Signer, jti: str, **changes: Any) -> str:
        return proof(by, **{"htm": "GET", "htu": CLIENTS_URL, "ath": ath(token), "jti": jti, **changes})

    assert await get("DPoP", fresh(signer, "r1")) == 200
    assert await get("DPoP", fresh(signer, "r1")) == 401  # replayed
    assert await get("Bearer") == 401  # stolen, without a proof
    assert await get("Bearer", fresh(signer, "r2")) == 401
    assert await get("DPoP") == 401
    assert await get("DPoP", fresh(thief, "r3")) == 401
    assert await get("DPoP", fresh(signer, "r4", htm="POST")) == 401
    assert await get("DPoP", fresh(signer, "r5", htu=TOKEN_URL)) == 401
    assert await get("DPoP", fresh(signer, "r6", ath=ath("other"))) == 401
    assert await get("DPoP", fresh(signer, "r7", ath=None)) == 401
    assert await get("DPoP", fresh(signer, "r8", iat=int(NOW) - 120)) == 401
    assert await get("DPoP", fresh(signer, "r9"), fresh(signer, "r10")) == 401


async def test_the_host_header_cannot_move_the_target_of_a_proof(world: World) -> None:
    signer, client = Signer.generate(), await world.client("acme")
    nonce = await nonce_of(world, client, signer)
    text = proof(signer, nonce=nonce, htu="https://evil.example/oauth2/token")
    headers = {**client.basic, "dpop": text, "host": "evil.example"}
    answer = await world.post("/oauth2/token", GRANT, headers=headers)
    assert answer.json()["error"] == "invalid_dpop_proof"


async def test_bad_proofs_at_the_token_endpoint(world: World) -> None:
    signer, client = Signer.generate(), await world.client("acme")
    nonce = await nonce_of(world, client, signer)
    bad = [
        proof(signer, header={"typ": "JWT"}, nonce=nonce),
        proof(signer, header={"jwk": Signer.generate().key.as_dict(private=False)}, nonce=nonce),
        proof(signer, header={"jwk": signer.key.as_dict(private=True)}, nonce=nonce),
        proof(signer, htm="GET", nonce=nonce),
        proof(signer, htu=ISSUER + "/oauth2/introspect", nonce=nonce),
        proof(signer, htu="http://gateway.example/oauth2/token", nonce=nonce),
        proof(signer, iat=int(NOW) + 60, nonce=nonce),
        proof(signer, jti=None, nonce=nonce),
        "garbage",
    ]
    for text in bad:
        answer = await ask(world, client, text)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_dpop_proof"), answer.text
    assert (await ask(world, client, proof(signer, nonce="guessed"))).json()["error"] == "use_dpop_nonce"
    good = proof(signer, nonce=nonce)
    assert (await ask(world, client, good)).status_code == 200
    assert (await ask(world, client, good)).json()["error_description"] == "The proof was used before."
    world.clock.now += 200
    old = proof(signer, nonce=nonce, iat=int(world.clock.now), jti="p2")
    assert (await ask(world, client, old)).json()["error"] == "use_dpop_nonce"


async def test_a_registration_can_demand_proofs(world: World) -> None:
    client = await world.client("acme", metadata={"dpop_bound_access_tokens": True})
    answer = await world.post("/oauth2/token", GRANT, headers=client.basic)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_dpop_proof")


async def test_an_unbound_token_is_no_dpop_token(world: World) -> None:
    client = await world.client("acme")
    token = await world.token(client)
    text = proof(Signer.generate(), htm="GET", htu=CLIENTS_URL, ath=ath(token))
    answer = await world.http.get("/api/v1/clients", headers={"authorization": f"DPoP {token}", "dpop": text})
    assert answer.status_code == 401


def certificate(name: str = "client.acme.example", *, days: int = 365) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name.from_rfc4514_string(f"CN={name},O=Acme")
    start = datetime.fromtimestamp(NOW, UTC) - timedelta(days=1)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.DER)


async def by_certificate(world: World, client: TestClient, der: bytes | None, *, verified: bool) -> httpx.Response:
    world.certificate = None if der is None else ClientCertificate(der, verified)
    return await world.post("/oauth2/token", {**GRANT, "client_id": client.client_id})


async def test_a_self_signed_certificate_authenticates_by_its_thumbprint(world: World) -> None:
    own, other = certificate(), certificate()
    metadata = {
        "tls_client_certificates_s256": [thumbprint(own)],
        "tls_client_certificate_bound_access_tokens": True,
    }
    client = await world.client("acme", auth_method="self_signed_tls_client_auth", metadata=metadata)
    answer = await by_certificate(world, client, own, verified=False)
    assert answer.status_code == 200, answer.text
    token = answer.json()["access_token"]
    assert world.verifier.verify(token, x5t_s256=thumbprint(own)).x5t_s256 == thumbprint(own)
    for stolen in ("", thumbprint(other)):
        with pytest.raises(Exception, match="bound to a key"):
            world.verifier.verify(token, x5t_s256=stolen)
    for der in (other, None, b"garbage"):
        assert (await by_certificate(world, client, der, verified=True)).status_code == 401


@pytest.mark.parametrize(
    "metadata",
    [
        {"tls_client_auth_subject_dn": "CN=client.acme.example,O=Acme"},
        {"tls_client_auth_san_dns": "client.acme.example"},
    ],
)
async def test_a_ca_issued_certificate_authenticates_by_its_registered_name(
    world: World, metadata: dict[str, str]
) -> None:
    client = await world.client("acme", auth_method="tls_client_auth", metadata=metadata)
    good = certificate()
    assert (await by_certificate(world, client, good, verified=True)).status_code == 200
    assert (await by_certificate(world, client, good, verified=False)).status_code == 401
    assert (await by_certificate(world, client, certificate("evil.example"), verified=True)).status_code == 401
    assert (await by_certificate(world, client, certificate(days=0), verified=True)).status_code == 401
