"""What the RFCs demand of tokens and of the endpoints around them, one named row a requirement, driven over HTTP."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from joserfc import jwk, jwt

from auth.certificates import ClientCertificate, thumbprint
from auth.client_metadata import TOKEN_EXCHANGE
from auth.keyset import KeySet, Signer
from auth.revocations import Revocations
from auth.tokens import TokenRevoked, Verifier
from gateway.database import Postgres
from gateway.forwarded import ForwardedCaller, certificate_of
from gateway.settings import ConfigurationInvalid, read_settings
from gateway.trust import Trust
from tests.auth.conformance import (
    ASSERTION_TYPE,
    GRANT,
    Table,
    assertion,
    claims_of,
    exchange,
    header_of,
    introspect,
    jwks,
    refused,
)
from tests.auth.conftest import ISSUER, NOW, World
from tests.auth.test_binding import certificate

ROWS = Table()
row = ROWS.row


# --- RFC 7662, 9701: introspection ---------------------------------------------------------------------------------


@row("7662 2.1: the caller must authenticate")
async def _(world: World) -> None:
    refused(await world.post("/oauth2/introspect", {"token": "x"}), 401, "invalid_client")


@row("7662 2.1: a missing token is an invalid_request")
async def _(world: World) -> None:
    client = await world.client("acme")
    refused(await world.post("/oauth2/introspect", {}, headers=client.basic), 400, "invalid_request")


@row("7662 2.2: unknown and foreign tokens are exactly {active: false}")
async def _(world: World) -> None:
    client, rival = await world.client("acme"), await world.client("rival")
    for text in ("garbage", await world.token(rival)):
        answer = await introspect(world, client, text)
        assert (answer.status_code, answer.json()) == (200, {"active": False})


@row("7662 2.1: a wrong hint still finds the token")
async def _(world: World) -> None:
    client = await world.client("acme")
    for hint in ("refresh_token", "nonsense"):
        answer = await introspect(world, client, await world.token(client), token_type_hint=hint)
        assert answer.json()["active"] is True


@row("7662 4: expired, early, revoked and forged tokens are inactive")
async def _(world: World) -> None:
    client = await world.client("acme", token_lifetime_s=60)
    token, gone = await world.token(client), await world.token(client)
    head, body, _ = token.split(".")
    early = world.services.keys.signer().sign({**claims_of(token), "nbf": int(NOW) + 600}, typ="at+jwt")
    assert (await world.post("/oauth2/revoke", {"token": gone}, headers=client.basic)).status_code == 200
    await world.heard()
    for text in (f"{head}.{body}.AAAA", early, gone):
        assert (await introspect(world, client, text)).json() == {"active": False}
    assert (await introspect(world, client, token)).json()["active"] is True
    world.clock.now += 60
    assert (await introspect(world, client, token)).json() == {"active": False}


@row("7662 2.2: the members are the token's own")
async def _(world: World) -> None:
    client = await world.client("acme")
    token = await world.token(client, scope="inference")
    answer, claims = (await introspect(world, client, token)).json(), claims_of(token)
    assert {name: answer[name] for name in claims} == claims
    assert answer["token_type"] == "Bearer"


@row("9701 5: the signed form is a JWT of its own type that no one can use as a token")
async def _(world: World) -> None:
    client = await world.client("acme")
    token = await world.token(client)
    headers = {**client.basic, "accept": "application/token-introspection+jwt"}
    answer = await world.post("/oauth2/introspect", {"token": token}, headers=headers)
    assert answer.headers["content-type"].startswith("application/token-introspection+jwt")
    assert header_of(answer.text)["typ"] == "token-introspection+jwt"
    claims = claims_of(answer.text)
    assert (claims["iss"], claims["aud"]) == (ISSUER, client.client_id)
    assert claims["token_introspection"]["active"] is True
    refused_as_token = await world.http.get("/api/v1/clients", headers={"authorization": f"Bearer {answer.text}"})
    assert refused_as_token.status_code == 401


# --- RFC 7009: revocation ------------------------------------------------------------------------------------------


@row("7009 2.1: another client's token is refused, another tenant's looks unknown")
async def _(world: World) -> None:
    one, two, rival = await world.client("acme"), await world.client("acme"), await world.client("rival")
    token = await world.token(one)
    refused(await world.post("/oauth2/revoke", {"token": token}, headers=two.basic), 400, "invalid_request")
    assert (await world.post("/oauth2/revoke", {"token": token}, headers=rival.basic)).status_code == 200
    await world.heard()
    assert world.verifier.verify(token).client_id == one.client_id


@row("7009 2.2: an unknown token is a 200")
async def _(world: World) -> None:
    client = await world.client("acme")
    assert (await world.post("/oauth2/revoke", {"token": "unknown"}, headers=client.basic)).status_code == 200


@row("7009 2.1: a bad hint is ignored")
async def _(world: World) -> None:
    client = await world.client("acme")
    token = await world.token(client)
    data = {"token": token, "token_type_hint": "nonsense"}
    assert (await world.post("/oauth2/revoke", data, headers=client.basic)).status_code == 200
    await world.heard()
    assert (await introspect(world, client, token)).json() == {"active": False}


@row("7009 2.1: another process hears of it by the notice, long before it polls; its malleable twin falls too")
async def _(world: World) -> None:
    client = await world.client("acme")
    token = await world.token(client)
    keys, revocations = KeySet(), Revocations()
    trust = Trust(world.database, keys, revocations, clock=world.clock, poll_s=3600)
    elsewhere = Verifier(ISSUER, ISSUER, keys, revocations, world.clock)
    assert isinstance(world.database, Postgres)
    first = asyncio.Event()
    tasks = [asyncio.create_task(work) for work in (trust.run(first), world.database.listen(trust.changed))]
    try:
        await first.wait()
        elsewhere.verify(token)
        twin = twin_of(token)
        elsewhere.verify(twin)
        assert (await world.post("/oauth2/revoke", {"token": token}, headers=client.basic)).status_code == 200
        async with asyncio.timeout(20):
            while not is_revoked(elsewhere, token):
                await asyncio.sleep(0.01)
        assert is_revoked(elsewhere, twin)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def is_revoked(verifier: Verifier, token: str) -> bool:
    try:
        verifier.verify(token)
    except TokenRevoked:
        return True
    return False


def twin_of(token: str) -> str:
    """Return the token with the other valid form of its ES256 signature: (r, n - s)."""
    signed, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    other = raw[:32] + (order - int.from_bytes(raw[32:])).to_bytes(32)
    return f"{signed}.{base64.urlsafe_b64encode(other).rstrip(b'=').decode()}"


@row("7009 2: access tokens are revocable, and refused everywhere once the notice was heard")
async def _(world: World) -> None:
    client = await world.client("acme")
    headers = await world.bearer(client)
    assert (await world.http.get("/api/v1/clients", headers=headers)).status_code == 200
    token = headers["authorization"].split()[1]
    assert (await world.post("/oauth2/revoke", {"token": token}, headers=client.basic)).status_code == 200
    await world.heard()
    answer = await world.http.get("/api/v1/clients", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "token_revoked")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


# --- RFC 8414: metadata --------------------------------------------------------------------------------------------


@row("8414 2: the issuer has no query and no fragment")
async def _(world: World) -> None:
    document = (await world.http.get("/.well-known/oauth-authorization-server")).json()
    assert not set("?#") & set(document["issuer"])
    with pytest.raises(ConfigurationInvalid):
        read_settings({"LLM_PROXY_ISSUER": ISSUER + "?a=1"})


@row("8414 3.3: the issuer is repeated identically, whatever the Host header says")
async def _(world: World) -> None:
    for host in ("gateway.example", "evil.example"):
        answer = await world.http.get("/.well-known/oauth-authorization-server", headers={"host": host})
        assert answer.json()["issuer"] == ISSUER
        assert "evil.example" not in answer.text


@row("8414 2: response_types_supported is required and empty: there is no authorization endpoint")
async def _(world: World) -> None:
    document = (await world.http.get("/.well-known/oauth-authorization-server")).json()
    assert document["response_types_supported"] == []
    assert "authorization_endpoint" not in document


@row("8414 3.1: a tenant's issuer has the well-known part before its path, and only its clients")
async def _(world: World) -> None:
    client, rival = await world.client("acme"), await world.client("rival")
    document = (await world.http.get(f"/.well-known/oauth-authorization-server/t/{client.slug}")).json()
    assert document["issuer"] == f"{ISSUER}/t/{client.slug}"
    path = document["token_endpoint"].removeprefix(ISSUER)
    answer = await world.post(path, GRANT, headers=client.basic)
    assert claims_of(answer.json()["access_token"])["iss"] == f"{ISSUER}/t/{client.slug}"
    assert world.verifier.verify(answer.json()["access_token"]).tenant_id == client.tenant_id
    refused(await world.post(path, GRANT, headers=rival.basic), 401, "invalid_client")


@row("8414 2: signing algorithms are listed and none is not among them")
async def _(world: World) -> None:
    document = (await world.http.get("/.well-known/oauth-authorization-server")).json()
    for name, value in document.items():
        if name.endswith("_alg_values_supported"):
            assert value
            assert not {"none", "HS256"} & set(value)


@row("8414 2: every advertised endpoint, authentication method and grant works")
async def _(world: World) -> None:
    document = (await world.http.get("/.well-known/oauth-authorization-server")).json()
    assert (await world.http.get(document["jwks_uri"].removeprefix(ISSUER))).json()["keys"]
    endpoints = {
        name: document[f"{name}_endpoint"].removeprefix(ISSUER) for name in ("token", "introspection", "revocation")
    }
    for path in endpoints.values():
        refused(await world.post(path, {"token": "x", **GRANT}), 401, "invalid_client")
    signer, own = Signer.generate(), certificate()
    plain = await world.client("acme")
    keyed = await world.client("acme", auth_method="private_key_jwt", metadata={"jwks": jwks(signer)})
    metadata = {
        "self_signed_tls_client_auth": {"tls_client_certificates_s256": [thumbprint(own)]},
        "tls_client_auth": {"tls_client_auth_san_dns": "client.acme.example"},
    }
    mutual = {name: await world.client("acme", auth_method=name, metadata=data) for name, data in metadata.items()}
    tried: dict[str, Any] = {
        "client_secret_basic": lambda n: ({}, plain.basic),
        "client_secret_post": lambda n: ({"client_id": plain.client_id, "client_secret": plain.secret}, {}),
        "private_key_jwt": lambda n: (
            {
                "client_assertion": assertion(signer, keyed.client_id, jti=str(n)),
                "client_assertion_type": ASSERTION_TYPE,
            },
            {},
        ),
        **{name: lambda n, c=client: ({"client_id": c.client_id}, {}) for name, client in mutual.items()},
    }
    assert set(document["token_endpoint_auth_methods_supported"]) == set(tried)
    world.certificate = ClientCertificate(own, verified=True)
    for number, credentials in enumerate(tried.values()):
        for place, path in enumerate(endpoints.values()):
            data, headers = credentials(3 * number + place)
            answer = await world.post(path, {"token": "x", **GRANT, **data}, headers=headers)
            assert answer.status_code == 200, answer.text
    assert set(document["grant_types_supported"]) == {"client_credentials", TOKEN_EXCHANGE}
    assert (await exchange(world, plain, await world.token(plain))).status_code == 200


# --- RFC 9068, 9700, 8707, 6750 -------------------------------------------------------------------------------------


@row("9068 2.1: typ is at+jwt, the key is published, RS256 is available")
async def _(world: World) -> None:
    for alg in ("ES256", "RS256", "Ed25519"):
        client = await world.client("acme", metadata={"access_token_signed_response_alg": alg})
        token = await world.token(client)
        header = header_of(token)
        assert (header["typ"], header["alg"]) == ("at+jwt", alg)
        published = (await world.http.get("/oauth2/jwks")).json()["keys"]
        (key,) = [each for each in published if each["kid"] == header["kid"]]
        assert key["alg"] == alg
        assert jwt.decode(token, jwk.import_key(key), [alg]).claims["client_id"] == client.client_id
        assert world.verifier.verify(token).client_id == client.client_id


@row("9068 2.2: the seven required claims are there; the subject of a client's own token is the client")
async def _(world: World) -> None:
    client = await world.client("acme")
    claims = claims_of(await world.token(client))
    assert {"iss", "exp", "aud", "sub", "client_id", "iat", "jti"} <= set(claims)
    assert claims["sub"] == claims["client_id"] == client.client_id


@row("9068 4: another typ, issuer or audience and an expired token are refused")
async def _(world: World) -> None:
    client = await world.client("acme")
    claims, signer = claims_of(await world.token(client)), world.services.keys.signer()

    async def status(changes: dict[str, Any], typ: str = "at+jwt") -> int:
        token = signer.sign({**claims, **changes}, typ=typ)
        return (await world.http.get("/api/v1/clients", headers={"authorization": f"Bearer {token}"})).status_code

    assert await status({}) == 200
    for typ in ("JWT", "", "dpop+jwt", "token-introspection+jwt"):
        assert await status({}, typ) == 401
    for changes in (
        {"iss": "https://evil.example"},
        {"iss": ISSUER + ".evil.example"},
        {"aud": "https://evil.example"},
        {"exp": int(NOW)},
        {"nbf": int(NOW) + 600},
    ):
        assert await status(changes) == 401


@row("9700 2.3: a token is for one audience, and for no more than was asked for")
async def _(world: World) -> None:
    client = await world.client("acme")
    claims = claims_of(await world.token(client, scope="usage:read"))
    assert claims["aud"] == ISSUER
    assert claims["scope"] == "usage:read"


@row("9700 2.2.1: sender-constrained tokens are offered and advertised")
async def _(world: World) -> None:
    document = (await world.http.get("/.well-known/oauth-authorization-server")).json()
    assert document["dpop_signing_alg_values_supported"]
    assert document["tls_client_certificate_bound_access_tokens"] is True


@row("9700 4.13: what only a proxy may say counts from trusted proxies alone")
async def _(world: World) -> None:
    seen: list[dict[str, Any]] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        seen.append(scope)

    value = b":" + base64.b64encode(certificate()) + b":"
    headers = [(b"client-cert", value), (b"x-forwarded-for", b"203.0.113.1"), (b"x-forwarded-proto", b"https")]
    for peer in ("10.0.0.1", "192.0.2.7"):
        scope = {"type": "http", "client": (peer, 1), "scheme": "http", "headers": list(headers), "state": {}}
        await ForwardedCaller(app, trusted="10.0.0.1", form="client-cert")(scope, None, None)
    trusted, stranger = seen
    assert certificate_of(trusted) is not None
    assert certificate_of(stranger) is None
    assert (trusted["client"][0], trusted["scheme"]) == ("203.0.113.1", "https")
    assert (stranger["client"][0], stranger["scheme"]) == ("192.0.2.7", "http")


@row("9700 4.15: client ids are the server's own and cannot be chosen to equal a subject")
async def _(world: World) -> None:
    client = await world.client("acme")
    assert client.client_id.startswith("lpc_")
    assert "/" not in client.client_id


@row("8707 2: relative, fragment and foreign resources are an invalid_target")
async def _(world: World) -> None:
    client = await world.client("acme")
    for resource in ("relative", "/path", ISSUER + "#x", "https://evil.example", "urn:x", "http://[", ISSUER + "/v2"):
        answer = await world.post("/oauth2/token", {**GRANT, "resource": resource}, headers=client.basic)
        refused(answer, 400, "invalid_target")


@row("8707 2: aud is the resource")
async def _(world: World) -> None:
    client = await world.client("acme")
    assert claims_of(await world.token(client))["aud"] == ISSUER
    assert claims_of(await world.token(client, resource=ISSUER + "/v1"))["aud"] == ISSUER + "/v1"


@row("6750 2: two places, two headers or the URL are refused for the token")
async def _(world: World) -> None:
    headers = await world.bearer(await world.client("acme"))
    token = headers["authorization"].split()[1]
    assert (await world.http.get("/api/v1/clients", params={"access_token": token})).status_code == 422
    twice = [("authorization", f"Bearer {token}"), ("authorization", f"Bearer {token}")]
    assert (await world.http.get("/api/v1/clients", headers=twice)).status_code == 401


@row("6750 3.1: a missing scope is a 403 that names it")
async def _(world: World) -> None:
    headers = await world.bearer(await world.client("acme", scopes=["inference"]))
    answer = await world.http.get("/api/v1/clients", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")
    assert 'scope="clients:read"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize("name", list(ROWS))
async def test_conformance(name: str, world: World) -> None:
    await ROWS[name](world)
