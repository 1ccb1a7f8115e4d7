"""What the RFCs demand of the OAuth endpoints, one named row a requirement, driven over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from joserfc import jwk, jwt

from auth.client_metadata import TOKEN_EXCHANGE
from auth.clients import update_client
from auth.keyset import Signer
from tests.auth.conftest import ISSUER, NOW, World

FORM = "application/x-www-form-urlencoded"
GRANT = {"grant_type": "client_credentials"}
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"


def basic(client_id: str, secret: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{client_id}:{secret}".encode()).decode()}


def refused(answer: httpx.Response, status: int, error: str) -> None:
    assert (answer.status_code, answer.json()["error"]) == (status, error), answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"].startswith("application/json")
    assert all(" " <= char <= "~" and char not in '"\\' for char in answer.json().get("error_description", ""))


def claims_of(token: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    return found


def header_of(token: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token.split(".", maxsplit=1)[0] + "=="))
    return found


Row = Callable[[World], Awaitable[None]]
ROWS: dict[str, Row] = {}


def row(name: str) -> Callable[[Row], Row]:
    def keep(check: Row) -> Row:
        assert name not in ROWS
        ROWS[name] = check
        return check

    return keep


# --- RFC 6749 ---------------------------------------------------------------------------------------------------


@row("6749 3.2: the token endpoint takes POST only")
async def _(world: World) -> None:
    for method in ("GET", "PUT", "DELETE"):
        answer = await world.http.request(method, "/oauth2/token")
        assert answer.status_code == 405
        assert "POST" in answer.headers["allow"]


@row("6749 3.2: an empty parameter is an omitted one")
async def _(world: World) -> None:
    client = await world.client("acme", scopes=["inference"])
    answer = await world.post("/oauth2/token", {**GRANT, "scope": "", "resource": ""}, headers=client.basic)
    assert answer.json()["scope"] == "inference"


@row("6749 3.2: unknown parameters are ignored")
async def _(world: World) -> None:
    client = await world.client("acme")
    assert (await world.post("/oauth2/token", {**GRANT, "x": "y"}, headers=client.basic)).status_code == 200


@row("6749 3.2: a repeated parameter is an invalid_request")
async def _(world: World) -> None:
    client = await world.client("acme")
    for body in ("grant_type=client_credentials&grant_type=client_credentials", "scope=a&scope=&grant_type=x"):
        headers = {**client.basic, "content-type": FORM}
        refused(await world.http.post("/oauth2/token", content=body, headers=headers), 400, "invalid_request")


@row("6749 2.3.1: Basic credentials are form-decoded")
async def _(world: World) -> None:
    client = await world.client("acme")
    encoded = "".join(f"%{ord(char):02X}" for char in client.secret)
    headers = basic(client.client_id.replace("_", "%5F"), encoded)
    assert (await world.post("/oauth2/token", GRANT, headers=headers)).status_code == 200


@row("6749 2.3.1: credentials in the body work")
async def _(world: World) -> None:
    client = await world.client("acme")
    data = {**GRANT, "client_id": client.client_id, "client_secret": client.secret}
    assert (await world.post("/oauth2/token", data)).status_code == 200


@row("6749 2.3.1: credentials in the URL are refused")
async def _(world: World) -> None:
    client = await world.client("acme")
    query = f"client_id={client.client_id}&client_secret={client.secret}"
    refused(await world.post(f"/oauth2/token?{query}", GRANT), 400, "invalid_request")


@row("6749 2.3: two authentication methods are an invalid_request")
async def _(world: World) -> None:
    client = await world.client("acme")
    data = {**GRANT, "client_id": client.client_id, "client_secret": client.secret}
    refused(await world.post("/oauth2/token", data, headers=client.basic), 400, "invalid_request")
    data = {**GRANT, "client_assertion": "x", "client_assertion_type": ASSERTION_TYPE}
    refused(await world.post("/oauth2/token", data, headers=client.basic), 400, "invalid_request")


@row("6749 2.3: client_id beside Basic must be the same")
async def _(world: World) -> None:
    client = await world.client("acme")
    refused(
        await world.post("/oauth2/token", {**GRANT, "client_id": "x"}, headers=client.basic), 400, "invalid_request"
    )
    data = {**GRANT, "client_id": client.client_id}
    assert (await world.post("/oauth2/token", data, headers=client.basic)).status_code == 200


@row("6749 2.3.1: guessing is slowed where it comes from, without locking the owner out")
async def _(world: World) -> None:
    client = await world.client("acme")
    wrong = basic(client.client_id, client.secret[:-1] + ("0" if client.secret[-1] != "0" else "1"))
    statuses = [(await world.post("/oauth2/token", GRANT, headers=wrong)).status_code for _ in range(12)]
    assert statuses[:10] == [401] * 10
    assert statuses[-1] == 429
    limited = await world.post("/oauth2/token", GRANT, headers=wrong)
    assert int(limited.headers["retry-after"]) >= 1
    assert (await world.post("/oauth2/token", GRANT, headers=client.basic)).status_code == 200
    world.clock.now += 60
    assert (await world.post("/oauth2/token", GRANT, headers=wrong)).status_code == 401


@row("6749 3.2.1: a request without credentials is an invalid_client")
async def _(world: World) -> None:
    client = await world.client("acme")
    refused(await world.post("/oauth2/token", GRANT), 401, "invalid_client")
    refused(await world.post("/oauth2/token", {**GRANT, "client_id": client.client_id}), 401, "invalid_client")


@row("6749 5.2: failed Basic is answered by 401 and WWW-Authenticate: Basic")
async def _(world: World) -> None:
    answer = await world.post("/oauth2/token", GRANT, headers=basic("lpc_x", "y"))
    refused(answer, 401, "invalid_client")
    assert answer.headers["www-authenticate"].startswith('Basic realm="')


@row("6749 5.2: unknown client, wrong secret, disabled client and wrong method answer byte for byte the same")
async def _(world: World) -> None:
    known, disabled = await world.client("acme"), await world.client("acme")
    keyed = await world.client("acme", auth_method="private_key_jwt", metadata={"jwks": jwks(Signer.generate())})
    async with world.sessions.tenant(disabled.tenant_id) as session:
        await update_client(
            session,
            disabled.tenant_id,
            disabled.client_id,
            {"status": "disabled"},
            if_match=None,
            now=datetime.fromtimestamp(NOW, UTC),
        )
    answers = [
        await world.post("/oauth2/token", GRANT, headers=headers)
        for headers in (
            basic("lpc_0000000000000000000000", known.secret),
            basic(known.client_id, disabled.secret),
            basic(known.client_id, "wrong"),
            disabled.basic,
            basic(keyed.client_id, known.secret),
        )
    ]
    assert len({(each.status_code, each.content, tuple(sorted(each.headers.items()))) for each in answers}) == 1


@row("6749 4.4: a client without credentials gets nothing")
async def _(world: World) -> None:
    refused(await world.post("/oauth2/token", {**GRANT, "client_id": "public"}), 401, "invalid_client")


@row("6749 5.2: a missing grant_type is an invalid_request")
async def _(world: World) -> None:
    client = await world.client("acme")
    refused(await world.post("/oauth2/token", {"scope": "inference"}, headers=client.basic), 400, "invalid_request")


@row("6749 5.2: another grant_type is an unsupported_grant_type")
async def _(world: World) -> None:
    client = await world.client("acme")
    for grant in ("password", 'x"\\\u00e9'):
        answer = await world.post("/oauth2/token", {"grant_type": grant}, headers=client.basic)
        refused(answer, 400, "unsupported_grant_type")


@row("6749 5.2: a grant that the client is not registered for is an unauthorized_client")
async def _(world: World) -> None:
    client = await world.client("acme", scopes=["inference"])
    answer = await world.post("/oauth2/token", {"grant_type": TOKEN_EXCHANGE}, headers=client.basic)
    refused(answer, 400, "unauthorized_client")


@row("6749 3.3: a scope beyond the client's is an invalid_scope")
async def _(world: World) -> None:
    client = await world.client("acme", scopes=["inference"])
    for scope in ("platform", "inference pools:read", "nonsense", " inference", "inference  x", 'a"b'):
        refused(
            await world.post("/oauth2/token", {**GRANT, "scope": scope}, headers=client.basic), 400, "invalid_scope"
        )


@row("6749 3.3: the granted scope is in the answer; an omitted one means all that the client holds")
async def _(world: World) -> None:
    client = await world.client("acme", scopes=["inference", "usage:read"])
    answer = (await world.post("/oauth2/token", GRANT, headers=client.basic)).json()
    assert answer["scope"] == claims_of(answer["access_token"])["scope"] == "inference usage:read"
    answer = (await world.post("/oauth2/token", {**GRANT, "scope": "usage:read"}, headers=client.basic)).json()
    assert answer["scope"] == claims_of(answer["access_token"])["scope"] == "usage:read"


@row("6749 4.4.3 and 5.1: no refresh token, JSON, no-store, expires_in is exp - iat")
async def _(world: World) -> None:
    client = await world.client("acme", token_lifetime_s=600)
    answer = await world.post("/oauth2/token", GRANT, headers=client.basic)
    body = answer.json()
    assert set(body) == {"access_token", "token_type", "expires_in", "scope"}
    assert body["token_type"] == "Bearer"
    claims = claims_of(body["access_token"])
    assert body["expires_in"] == claims["exp"] - claims["iat"] == 600
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["pragma"] == "no-cache"
    assert answer.headers["content-type"].startswith("application/json")


@row("6749 10.10: token ids have at least 128 random bits")
async def _(world: World) -> None:
    client = await world.client("acme")
    ids = [claims_of(await world.token(client))["jti"] for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(len(base64.urlsafe_b64decode(each)) * 8 >= 128 for each in ids)


@row("6749 B: invalid UTF-8 is a 400, in body and Basic")
async def _(world: World) -> None:
    client = await world.client("acme")
    headers = {**client.basic, "content-type": FORM}
    for body in (b"grant_type=%FF", b"grant_type=\xff", b"a=%00"):
        refused(await world.http.post("/oauth2/token", content=body, headers=headers), 400, "invalid_request")
    for broken in (b"\xff:x", b"%FF:x"):
        broken_basic = {"authorization": "Basic " + base64.b64encode(broken).decode(), "content-type": FORM}
        answer = await world.http.post("/oauth2/token", content="grant_type=x", headers=broken_basic)
        refused(answer, 400, "invalid_request")


@row("6749 3.2: only form-encoded bodies of sane size")
async def _(world: World) -> None:
    client = await world.client("acme")
    refused(await world.http.post("/oauth2/token", json=GRANT, headers=client.basic), 400, "invalid_request")
    many = "&".join(f"p{number}=1" for number in range(100))
    headers = {**client.basic, "content-type": FORM}
    refused(await world.http.post("/oauth2/token", content=many, headers=headers), 400, "invalid_request")
    answer = await world.http.post("/oauth2/token", content="a=" + "b" * 70_000, headers=headers)
    assert answer.status_code == 413


# --- RFC 7523, 7521: client assertions ----------------------------------------------------------------------------


def jwks(signer: Signer) -> dict[str, Any]:
    return {"keys": [signer.public().jwk()]}


def assertion(signer: Signer, client_id: str, *, header: dict[str, Any] | None = None, **changes: Any) -> str:
    claims: dict[str, Any] = {
        "iss": client_id,
        "sub": client_id,
        "aud": ISSUER,
        "iat": int(NOW),
        "exp": int(NOW) + 60,
        "jti": "once",
        **changes,
    }
    kept = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode({"alg": signer.alg, "kid": signer.kid, **(header or {})}, kept, signer.key, [signer.alg])


async def present(world: World, text: str, **more: str) -> httpx.Response:
    data = {**GRANT, "client_assertion": text, "client_assertion_type": ASSERTION_TYPE, **more}
    return await world.post("/oauth2/token", data)


@row("7523 2.2: private_key_jwt works with every advertised algorithm, with and without client_id")
async def _(world: World) -> None:
    for number, alg in enumerate(("ES256", "RS256", "Ed25519")):
        signer = Signer.generate(alg)
        client = await world.client("acme", auth_method="private_key_jwt", metadata={"jwks": jwks(signer)})
        good = await present(world, assertion(signer, client.client_id, jti=f"a{number}"))
        assert good.status_code == 200, good.text
        good = await present(world, assertion(signer, client.client_id, jti="b"), client_id=client.client_id)
        assert good.status_code == 200, good.text


@row("7523 3 and 7523bis: iss, sub, aud, exp, nbf and jti of an assertion are checked")
async def _(world: World) -> None:
    signer = Signer.generate()
    client = await world.client("acme", auth_method="private_key_jwt", metadata={"jwks": jwks(signer)})
    wrong: list[dict[str, Any]] = [
        {"iss": "other"},
        {"sub": "other"},
        {"aud": None},
        {"aud": "https://evil.example"},
        {"aud": ISSUER + "/oauth2/token"},
        {"aud": [ISSUER]},
        {"aud": [ISSUER, "https://evil.example"]},
        {"exp": None},
        {"exp": int(NOW) - 60},
        {"exp": int(NOW) + 86_400 * 3650},
        {"exp": "never"},
        {"nbf": int(NOW) + 300},
        {"iat": int(NOW) + 300},
        {"jti": None},
        {"jti": ""},
    ]
    for changes in wrong:
        refused(await present(world, assertion(signer, client.client_id, **changes)), 401, "invalid_client")
        world.clock.now += 6  # lets the guard against guessing forgive
    later = int(world.clock.now) + 60
    assert (await present(world, assertion(signer, client.client_id, exp=later))).status_code == 200


@row("7523 3: one jti works once, also when eight race")
async def _(world: World) -> None:
    signer = Signer.generate()
    client = await world.client("acme", auth_method="private_key_jwt", metadata={"jwks": jwks(signer)})
    text = assertion(signer, client.client_id)
    statuses = [each.status_code for each in await asyncio.gather(*(present(world, text) for _ in range(8)))]
    assert sorted(statuses) == [200] + [401] * 7


@row("7523 3: bad signature, none, HS256 over the public key, foreign and embedded keys are refused")
async def _(world: World) -> None:
    signer, other = Signer.generate(), Signer.generate()
    client = await world.client("acme", auth_method="private_key_jwt", metadata={"jwks": jwks(signer)})
    good = assertion(signer, client.client_id)
    head, body, signature = good.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    hs = jwt.encode(
        {"alg": "HS256", "kid": signer.kid},
        claims_of(good),
        jwk.OctKey.import_key(json.dumps(signer.public().jwk()).encode()),
        ["HS256"],
    )
    embedded = assertion(
        Signer(signer.kid, other.alg, other.key), client.client_id, header={"jwk": other.key.as_dict(private=False)}
    )
    for text in (
        f"{head}.{body}.{signature[:-4]}AAAA",
        f"{none}.{body}.",
        hs,
        assertion(Signer(signer.kid, other.alg, other.key), client.client_id),
        embedded,
        "garbage",
        "a.b.c",
    ):
        refused(await present(world, text), 401, "invalid_client")


@row("7521 4.2: client_id unlike the assertion's subject is refused")
async def _(world: World) -> None:
    signer = Signer.generate()
    client = await world.client("acme", auth_method="private_key_jwt", metadata={"jwks": jwks(signer)})
    other = await world.client("acme", auth_method="private_key_jwt", metadata={"jwks": jwks(signer)})
    for claimed in ("lpc_other", other.client_id):
        answer = await present(world, assertion(signer, client.client_id), client_id=claimed)
        refused(answer, 401, "invalid_client")


@row("7523 2.2: the assertion needs its type, once")
async def _(world: World) -> None:
    refused(await world.post("/oauth2/token", {**GRANT, "client_assertion": "x"}), 400, "invalid_request")
    data = {**GRANT, "client_assertion": "x", "client_assertion_type": "other"}
    refused(await world.post("/oauth2/token", data), 400, "invalid_request")
    body = f"grant_type=client_credentials&client_assertion=x&client_assertion=y&client_assertion_type={ASSERTION_TYPE}"
    answer = await world.http.post("/oauth2/token", content=body, headers={"content-type": FORM})
    refused(answer, 400, "invalid_request")


@row("8725 3.11: an access token is no client assertion and an assertion no access token")
async def _(world: World) -> None:
    signer = Signer.generate()
    client = await world.client("acme", auth_method="private_key_jwt", metadata={"jwks": jwks(signer)})
    plain = await world.client("acme")
    refused(await present(world, await world.token(plain)), 401, "invalid_client")
    answer = await world.http.get(
        "/api/v1/clients", headers={"authorization": "Bearer " + assertion(signer, client.client_id)}
    )
    assert answer.status_code == 401


# --- RFC 7662, 9701: introspection ---------------------------------------------------------------------------------


async def introspect(world: World, client: Any, token: str, **more: Any) -> httpx.Response:
    return await world.post("/oauth2/introspect", {"token": token, **more}, headers=client.basic)


@row("7662 2.1: the caller must authenticate, and the token is required")
async def _(world: World) -> None:
    client = await world.client("acme")
    refused(await world.post("/oauth2/introspect", {"token": "x"}), 401, "invalid_client")
    refused(await world.post("/oauth2/introspect", {}, headers=client.basic), 400, "invalid_request")


@row("7662 2.2: unknown, foreign, expired, revoked and forged tokens are exactly {active: false}")
async def _(world: World) -> None:
    client, rival = await world.client("acme", token_lifetime_s=60), await world.client("rival")
    token, foreign = await world.token(client), await world.token(rival)
    head, body, _ = token.split(".")
    for text in ("garbage", foreign, f"{head}.{body}.AAAA"):
        assert (await introspect(world, client, text)).json() == {"active": False}
    gone = await world.token(client)
    assert (await world.post("/oauth2/revoke", {"token": gone}, headers=client.basic)).status_code == 200
    await world.heard()
    assert (await introspect(world, client, gone)).json() == {"active": False}
    assert (await introspect(world, client, token)).json()["active"] is True
    world.clock.now += 60
    assert (await introspect(world, client, token)).json() == {"active": False}


@row("7662 2.1: a wrong hint still finds the token; 2.2: the members are the token's own")
async def _(world: World) -> None:
    client = await world.client("acme")
    token = await world.token(client, scope="inference")
    answer = (await introspect(world, client, token, token_type_hint="refresh_token")).json()
    claims = claims_of(token)
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


@row("7009 2.2: unknown tokens and bad hints are 200")
async def _(world: World) -> None:
    client = await world.client("acme")
    data = {"token": "unknown", "token_type_hint": "nonsense"}
    assert (await world.post("/oauth2/revoke", data, headers=client.basic)).status_code == 200


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


@row("8414 2 and 3.3: the issuer is repeated identically, without query or fragment")
async def _(world: World) -> None:
    document = (await world.http.get("/.well-known/oauth-authorization-server")).json()
    assert document["issuer"] == ISSUER
    assert not set("?#") & set(document["issuer"])


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


@row("8414 2: signing algorithms are listed and none is not among them; every advertised endpoint answers")
async def _(world: World) -> None:
    document = (await world.http.get("/.well-known/oauth-authorization-server")).json()
    for name, value in document.items():
        if name.endswith("_alg_values_supported"):
            assert value
            assert not {"none", "HS256"} & set(value)
    assert (await world.http.get(document["jwks_uri"].removeprefix(ISSUER))).json()["keys"]
    for name in ("token_endpoint", "introspection_endpoint", "revocation_endpoint"):
        refused(await world.post(document[name].removeprefix(ISSUER), {"token": "x", **GRANT}), 401, "invalid_client")


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


@row("9700 4.15: client ids are the server's own and cannot be chosen to equal a subject")
async def _(world: World) -> None:
    client = await world.client("acme")
    assert client.client_id.startswith("lpc_")
    assert "/" not in client.client_id


@row("8707 2: relative, fragment and foreign resources are an invalid_target; aud is the resource")
async def _(world: World) -> None:
    client = await world.client("acme")
    for resource in ("relative", "/path", ISSUER + "#x", "https://evil.example", "urn:x", "http://[", ISSUER + "/v2"):
        answer = await world.post("/oauth2/token", {**GRANT, "resource": resource}, headers=client.basic)
        refused(answer, 400, "invalid_target")
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


# --- RFC 8693: token exchange -----------------------------------------------------------------------------------------


async def exchange(world: World, client: Any, token: str, **parameters: str) -> httpx.Response:
    data = {"grant_type": TOKEN_EXCHANGE, "subject_token": token, "subject_token_type": ACCESS_TOKEN, **parameters}
    return await world.post("/oauth2/token", {k: v for k, v in data.items() if v}, headers=client.basic)


@row("8693 2: a narrower token, with act, issued_token_type and the subject's bounds")
async def _(world: World) -> None:
    client = await world.client("acme")
    source = await world.token(client)
    details = json.dumps([{"type": "llm_proxy", "pools": ["prod"], "models": ["gpt-4o*"], "rpm": 10}])
    answer = await exchange(
        world, client, source, scope="inference", authorization_details=details, requested_subject="customer:17"
    )
    body = answer.json()
    assert answer.status_code == 200, body
    assert body["issued_token_type"] == ACCESS_TOKEN
    assert body["token_type"] == "Bearer"
    assert body["authorization_details"][0]["pools"] == ["prod"]
    principal = world.verifier.verify(body["access_token"])
    assert principal.scopes == {"inference"}
    assert principal.actors == (client.client_id,)
    assert principal.subject == f"{client.client_id}/customer:17"
    assert [event.action for event in world.trail.events] == ["token.exchange"]


@row("8693: scope left out means inference alone, and nothing beyond the subject token")
async def _(world: World) -> None:
    client = await world.client("acme")
    narrow = await world.token(client, scope="usage:read")
    assert (await exchange(world, client, await world.token(client))).json()["scope"] == "inference"
    refused(await exchange(world, client, narrow), 400, "invalid_scope")
    refused(await exchange(world, client, narrow, scope="inference"), 400, "invalid_scope")


@row("8693 2.1: types are required with tokens and forbidden without")
async def _(world: World) -> None:
    client = await world.client("acme")
    token = await world.token(client)
    for wrong in (
        {"subject_token_type": ""},
        {"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"},
        {"actor_token_type": ACCESS_TOKEN},
        {"actor_token": token},
        {"subject_token": ""},
        {"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"},
        {"requested_subject": "a/b"},
        {"subject_token": "garbage"},
    ):
        refused(await exchange(world, client, token, **wrong), 400, "invalid_request")


@row("8693: never across tenants, never longer than the subject token, at most four links")
async def _(world: World) -> None:
    client, rival = await world.client("acme"), await world.client("rival")
    refused(await exchange(world, rival, await world.token(client)), 400, "invalid_request")
    token = await world.token(client)
    world.clock.now += 3000
    answer = await exchange(world, client, token, scope="inference tokens:issue")
    assert answer.json()["expires_in"] == 600
    for _ in range(3):
        answer = await exchange(world, client, answer.json()["access_token"], scope="inference tokens:issue")
        assert answer.status_code == 200
    refused(await exchange(world, client, answer.json()["access_token"]), 400, "invalid_request")


@row("8693 with 7009: a token falls with any token or client that it came from")
async def _(world: World) -> None:
    root, middle = await world.client("acme"), await world.client("acme")
    first = await world.token(root)
    second = (await exchange(world, middle, first, scope="inference")).json()["access_token"]
    third = (await exchange(world, middle, second)).json()["access_token"]
    await world.heard()
    world.verifier.verify(third)
    assert (await world.post("/oauth2/revoke", {"token": first}, headers=root.basic)).status_code == 200
    await world.heard()
    for token in (first, second, third):
        with pytest.raises(Exception, match="revoked"):
            world.verifier.verify(token)


@row("9396 6: authorization_details narrow a client's own token; malformed or wider ones are refused")
async def _(world: World) -> None:
    held = [{"type": "llm_proxy", "pools": ["prod"], "rpm": 100}]
    client = await world.client("acme", authorization_details=held)
    token = world.verifier.verify(await world.token(client))
    assert token.details[0]["limits"] == [{"bucket": f"{client.client_id}:0", "rpm": 100}]
    for bad in ("{", '[{"type":"x"}]', '[{"type":"llm_proxy","pools":["other"]}]', '[{"type":"llm_proxy","rpm":101}]'):
        data = {**GRANT, "authorization_details": bad}
        answer = await world.post("/oauth2/token", data, headers=client.basic)
        refused(answer, 400, "invalid_authorization_details")


@pytest.mark.parametrize("name", list(ROWS))
async def test_conformance(name: str, world: World) -> None:
    await ROWS[name](world)
