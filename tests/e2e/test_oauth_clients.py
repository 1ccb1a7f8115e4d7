"""Python's OAuth clients, unchanged, against a running gateway: Authlib and requests-oauthlib."""

from __future__ import annotations

import base64
import hashlib
import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from authlib.integrations.httpx_client import OAuth2Client
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from joserfc import jwk, jwt
from oauthlib.oauth2 import BackendApplicationClient
from requests.auth import HTTPBasicAuth
from requests_oauthlib import OAuth2Session

from tests.e2e.conftest import RunningGateway

ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"

Register = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def metadata(gateway: RunningGateway) -> dict[str, Any]:
    """What discovery (RFC 8414) tells a client."""
    document: dict[str, Any] = httpx2.get(gateway.base_url + "/.well-known/oauth-authorization-server").json()
    assert document["issuer"] == gateway.base_url
    return document


@pytest.fixture(scope="module")
def register(gateway: RunningGateway, token: str) -> Register:
    def make(auth_method: str, **members: Any) -> dict[str, Any]:
        body = {"name": auth_method, "scopes": ["inference", "tokens:issue"], "auth_method": auth_method, **members}
        answer = httpx2.post(
            gateway.base_url + "/api/v1/clients", json=body, headers={"authorization": f"Bearer {token}"}
        )
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    return make


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
def test_authlib_with_a_secret(metadata: dict[str, Any], register: Register, method: str) -> None:
    made = register(method)
    with OAuth2Client(made["client_id"], made["client_secret"], token_endpoint_auth_method=method) as client:
        got = client.fetch_token(metadata["token_endpoint"], grant_type="client_credentials", scope="inference")
    assert (got["token_type"], got["scope"]) == ("Bearer", "inference")


@pytest.mark.parametrize("alg", ["ES256", "RS256"])
def test_authlib_with_a_key(metadata: dict[str, Any], register: Register, alg: str) -> None:
    key = jwk.ECKey.generate_key("P-256") if alg == "ES256" else jwk.RSAKey.generate_key(2048)
    made = register("private_key_jwt", metadata={"jwks": {"keys": [key.as_dict(private=False)]}})
    with OAuth2Client(made["client_id"], key, token_endpoint_auth_method="private_key_jwt") as client:
        # Authlib would name the token endpoint: the audience is the issuer, which is what keeps mix-ups out.
        client.register_client_auth_method(PrivateKeyJWT(metadata["issuer"], alg=alg))
        assert client.fetch_token(metadata["token_endpoint"], grant_type="client_credentials")["access_token"]


def test_authlib_introspects_exchanges_and_revokes(metadata: dict[str, Any], gateway: RunningGateway) -> None:
    with OAuth2Client(gateway.client_id, gateway.client_secret) as client:
        got = client.fetch_token(metadata["token_endpoint"], grant_type="client_credentials")["access_token"]
        narrow = client.fetch_token(
            metadata["token_endpoint"],
            grant_type=EXCHANGE,
            subject_token=got,
            subject_token_type=ACCESS_TOKEN,
            scope="inference",
            requested_subject="customer:1",
        )
        assert (narrow["scope"], narrow["issued_token_type"]) == ("inference", ACCESS_TOKEN)

        def active(each: str) -> bool:
            answer = client.introspect_token(metadata["introspection_endpoint"], token=each)
            return bool(answer.json()["active"])

        assert active(got)
        assert active(narrow["access_token"])
        assert client.revoke_token(metadata["revocation_endpoint"], token=got).status_code == 200
        give_up = time.monotonic() + 10
        while active(got) or active(narrow["access_token"]):  # what came from it goes with it
            assert time.monotonic() < give_up


def test_requests_oauthlib(metadata: dict[str, Any], gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")  # the development gateway speaks http on loopback
    who = BackendApplicationClient(client_id=gateway.client_id, scope=["inference", "clients:read"])
    with OAuth2Session(client=who) as session:
        basic = HTTPBasicAuth(gateway.client_id, gateway.client_secret)
        assert session.fetch_token(metadata["token_endpoint"], auth=basic)["access_token"]
        assert session.get(gateway.base_url + "/api/v1/clients").status_code == 200
        assert session.get(gateway.base_url + "/v1/models").status_code == 200
        in_body = session.fetch_token(
            metadata["token_endpoint"], client_secret=gateway.client_secret, include_client_id=True
        )
        told = session.post(
            metadata["introspection_endpoint"],
            data={"token": in_body["access_token"]},
            auth=basic,
            withhold_token=True,
        )
        assert told.json()["active"] is True
        gone = session.post(
            metadata["revocation_endpoint"], data={"token": in_body["access_token"]}, auth=basic, withhold_token=True
        )
        assert gone.status_code == 200


def test_dpop_on_every_path(metadata: dict[str, Any], gateway: RunningGateway) -> None:
    key = jwk.ECKey.generate_key("P-256")

    def proof(method: str, url: str, **claims: str) -> str:
        header = {"typ": "dpop+jwt", "alg": "ES256", "jwk": key.as_dict(private=False)}
        given = {"htm": method, "htu": url, "iat": int(time.time()), "jti": str(uuid.uuid4()), **claims}
        return jwt.encode(header, given, key)

    def ask(**claims: str) -> httpx2.Response:
        return httpx2.post(
            metadata["token_endpoint"],
            data={"grant_type": "client_credentials"},
            auth=(gateway.client_id, gateway.client_secret),
            headers={"dpop": proof("POST", metadata["token_endpoint"], **claims)},
        )

    refused = ask()
    assert refused.json()["error"] == "use_dpop_nonce"
    got = ask(nonce=refused.headers["dpop-nonce"]).json()
    assert got["token_type"] == "DPoP"
    token = got["access_token"]
    ath = base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()).rstrip(b"=").decode()
    for path in ("/v1/models", "/api/v1/clients"):
        url = gateway.base_url + path
        good = {"authorization": f"DPoP {token}", "dpop": proof("GET", url, ath=ath)}
        assert httpx2.get(url, headers=good).status_code == 200
        assert httpx2.get(url, headers=good).status_code == 401  # the same proof again
        assert httpx2.get(url, headers={"authorization": f"Bearer {token}"}).status_code == 401
