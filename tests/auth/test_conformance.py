"""What RFC 6749, 7521 and 7523 demand of the token endpoint, one named row a requirement, driven over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from joserfc import jwk, jwt

from auth.client_metadata import TOKEN_EXCHANGE
from auth.clients import update_client
from auth.keyset import Signer
from gateway.preflight import static_findings
from gateway.settings import read_settings
from tests.auth.conformance import (
    ASSERTION_TYPE,
    FORM,
    GRANT,
    Table,
    assertion,
    basic,
    claims_of,
    jwks,
    present,
    refused,
)
from tests.auth.conftest import ISSUER, NOW, World

ROWS = Table()
row = ROWS.row


# --- RFC 6749 ---------------------------------------------------------------------------------------------------


@row("6749 3.2: the token endpoint takes POST only")
async def _(world: World) -> None:
    for method in ("GET", "PUT", "DELETE"):
        answer = await world.http.request(method, "/oauth2/token")
        assert answer.status_code == 405
        assert "POST" in answer.headers["allow"]


@row("6749 3.2: TLS: the issuer is https, or an address of this very machine")
async def _(world: World) -> None:
    def faults(issuer: str) -> list[str]:
        return [text for name, text in static_findings(read_settings({"LLM_PROXY_ISSUER": issuer})) if "ISSUER" in name]

    assert faults("http://llm.example.com")
    assert not faults("https://llm.example.com")
    assert not faults("http://127.0.0.1:8080")


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


@row("6749 3.3: a scope that differs from the request is in the answer, as is every other")
async def _(world: World) -> None:
    client = await world.client("acme", scopes=["inference", "usage:read"])
    answer = (await world.post("/oauth2/token", {**GRANT, "scope": "usage:read"}, headers=client.basic)).json()
    assert answer["scope"] == claims_of(answer["access_token"])["scope"] == "usage:read"


@row("6749 3.3: an omitted scope means all that the client holds, as documented")
async def _(world: World) -> None:
    client = await world.client("acme", scopes=["inference", "usage:read"])
    answer = (await world.post("/oauth2/token", GRANT, headers=client.basic)).json()
    assert answer["scope"] == claims_of(answer["access_token"])["scope"] == "inference usage:read"


@row("6749 4.4.3: no refresh token")
async def _(world: World) -> None:
    body = (await world.post("/oauth2/token", GRANT, headers=(await world.client("acme")).basic)).json()
    assert set(body) == {"access_token", "token_type", "expires_in", "scope"}
    assert body["token_type"] == "Bearer"


@row("6749 5.1: JSON with no-store and Pragma: no-cache")
async def _(world: World) -> None:
    answer = await world.post("/oauth2/token", GRANT, headers=(await world.client("acme")).basic)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["pragma"] == "no-cache"
    assert answer.headers["content-type"].startswith("application/json")


@row("6749 5.1: expires_in is exp - iat")
async def _(world: World) -> None:
    client = await world.client("acme", token_lifetime_s=600)
    body = (await world.post("/oauth2/token", GRANT, headers=client.basic)).json()
    claims = claims_of(body["access_token"])
    assert body["expires_in"] == claims["exp"] - claims["iat"] == 600


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


@row("7523 2.2: private_key_jwt works with every advertised algorithm, with and without client_id")
async def _(world: World) -> None:
    for number, alg in enumerate(("ES256", "RS256", "Ed25519")):
        signer = Signer.generate(alg)
        client = await world.client("acme", auth_method="private_key_jwt", metadata={"jwks": jwks(signer)})
        good = await present(world, assertion(signer, client.client_id, jti=f"a{number}"))
        assert good.status_code == 200, good.text
        good = await present(world, assertion(signer, client.client_id, jti="b"), client_id=client.client_id)
        assert good.status_code == 200, good.text


async def all_refused(world: World, *wrong: dict[str, Any]) -> None:
    """Each assertion with one of `wrong` changes is refused; the same one without them is not."""
    signer = Signer.generate()
    client = await world.client("acme", auth_method="private_key_jwt", metadata={"jwks": jwks(signer)})
    for changes in wrong:
        refused(await present(world, assertion(signer, client.client_id, **changes)), 401, "invalid_client")
        world.clock.now += 6  # lets the guard against guessing forgive
    later = int(world.clock.now) + 60
    assert (await present(world, assertion(signer, client.client_id, exp=later))).status_code == 200


@row("7523 3: iss and sub are the client_id")
async def _(world: World) -> None:
    await all_refused(world, {"iss": "other"}, {"sub": "other"}, {"iss": None}, {"sub": None})


@row("7523 3: a missing or foreign aud is refused")
async def _(world: World) -> None:
    await all_refused(world, {"aud": None}, {"aud": "https://evil.example"}, {"aud": ISSUER + ".evil.example"})


@row("7523bis 4: aud is exactly the issuer: no array, not the token endpoint")
async def _(world: World) -> None:
    await all_refused(
        world, {"aud": ISSUER + "/oauth2/token"}, {"aud": [ISSUER]}, {"aud": [ISSUER, "https://evil.example"]}
    )


@row("7523 3: exp is required, not over and not far ahead")
async def _(world: World) -> None:
    times = (None, int(NOW) - 60, int(NOW) + 86_400 * 3650, "never", True)
    await all_refused(world, *({"exp": each} for each in times))


@row("7523 3: nbf and iat are honoured")
async def _(world: World) -> None:
    await all_refused(world, {"nbf": int(NOW) + 300}, {"iat": int(NOW) + 300}, {"nbf": "soon"})


@row("7523 3: jti is required")
async def _(world: World) -> None:
    await all_refused(world, {"jti": None}, {"jti": ""}, {"jti": 7})


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


@row("8725 3.1: alg is pinned by the registered key; jku, x5u, x5c and jwk of the header are never followed")
async def _(world: World) -> None:
    signer, thief = Signer.generate(), Signer.generate()
    client = await world.client("acme", auth_method="private_key_jwt", metadata={"jwks": jwks(signer)})
    world.jwks.documents["https://evil.example/jwks"] = jwks(thief)
    stolen = Signer(signer.kid, thief.alg, thief.key)
    for header in (
        {"jku": "https://evil.example/jwks"},
        {"x5u": "https://evil.example/jwks"},
        {"jwk": thief.public().jwk()},
        {"kid": "https://evil.example/jwks"},
        {"kid": "../../../dev/null"},
        {"kid": "' or 1=1 --"},
    ):
        refused(await present(world, assertion(stolen, client.client_id, header=header)), 401, "invalid_client")
    assert world.jwks.fetched == []


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


@pytest.mark.parametrize("name", list(ROWS))
async def test_conformance(name: str, world: World) -> None:
    await ROWS[name](world)
