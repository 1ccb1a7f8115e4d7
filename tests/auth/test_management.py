"""/api/v1/clients and /api/v1/tokens over HTTP: what they do, and what they must never let anyone do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from auth.scopes import CLIENTS_READ, CLIENTS_WRITE, PLATFORM, TENANTS_ACT
from tests.auth.conftest import ISSUER, TestClient, World

GRANT = {"grant_type": "client_credentials"}


async def registered(world: World, headers: dict[str, str], **body: Any) -> dict[str, Any]:
    answer = await world.http.post("/api/v1/clients", json={"name": "app", **body}, headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = answer.json()
    return found


def as_client(world: World, owner: TestClient, made: dict[str, Any], secret: str | None = None) -> TestClient:
    return TestClient(owner.tenant_id, owner.slug, made["client_id"], secret or made["client_secret"])


async def test_a_client_lives_its_life(world: World) -> None:
    owner = await world.client("acme")
    headers = await world.bearer(owner)
    made = await registered(world, headers, scopes=["inference", "usage:read"])
    app = as_client(world, owner, made)
    token = await world.token(app)
    path = f"/api/v1/clients/{app.client_id}"

    read = await world.http.get(path, headers=headers)
    assert read.headers["etag"] == '"1"'
    assert "client_secret" not in read.json()
    assert app.secret not in read.text
    assert app.secret.startswith(read.json()["secrets"][0]["prefix"])
    assert read.json()["secrets"][0]["last_used_at"] is not None

    changed = await world.http.patch(
        path, json={"scopes": ["inference"]}, headers={**headers, "if-match": read.headers["etag"]}
    )
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
    stale = await world.http.patch(path, json={"name": "x"}, headers={**headers, "if-match": read.headers["etag"]})
    assert stale.status_code == 412
    await world.heard()
    with pytest.raises(Exception, match="revoked"):  # it had been given more than the client may hold now
        world.verifier.verify(token)

    world.clock.now += 1
    token = await world.token(app)
    assert (await world.http.delete(path, headers=headers)).status_code == 204
    await world.heard()
    with pytest.raises(Exception, match="revoked"):
        world.verifier.verify(token)
    assert (await world.post("/oauth2/token", GRANT, headers=app.basic)).status_code == 401
    assert (await world.http.get(path, headers=headers)).status_code == 404
    actions = [(event.action, event.actor) for event in world.trail.events]
    assert actions == [(f"client.{verb}", owner.client_id) for verb in ("create", "update", "delete")]
    assert app.secret not in repr(world.trail.events)
    assert [dict(event.detail) for event in world.trail.events] == [
        {"name": "app", "scopes": ["inference", "usage:read"]},
        {"changed": ["scopes"], "scopes": ["inference"]},
        {},
    ]


async def test_of_edits_at_once_for_one_version_of_a_client_one_is_made(world: World) -> None:
    headers = await world.bearer(await world.client("acme"))
    path = f"/api/v1/clients/{(await registered(world, headers))['client_id']}"
    for number in range(1, 4):
        names = [f"edit-{number}-{each}" for each in range(8)]
        answers = await asyncio.gather(
            *(
                world.http.patch(path, json={"name": name}, headers={**headers, "if-match": f'"{number}"'})
                for name in names
            )
        )
        assert sorted(answer.status_code for answer in answers) == [200] + [412] * 7
        made = next(answer.json() for answer in answers if answer.status_code == 200)
        read = (await world.http.get(path, headers=headers)).json()
        assert (read["name"], read["version"]) == (made["name"], number + 1)


async def test_edits_at_once_of_different_members_of_a_client_all_last(world: World) -> None:
    headers = await world.bearer(await world.client("acme"))
    path = f"/api/v1/clients/{(await registered(world, headers))['client_id']}"
    changes: list[dict[str, Any]] = [
        {"name": "n"},
        {"token_lifetime_s": 60},
        {"metadata": {"dpop_bound_access_tokens": True}},
    ]
    answers = await asyncio.gather(*(world.http.patch(path, json=each, headers=headers) for each in changes))
    assert [answer.status_code for answer in answers] == [200] * 3
    read = (await world.http.get(path, headers=headers)).json()
    assert all(read[name] == value for each in changes for name, value in each.items())
    assert read["version"] == 4


async def test_two_secrets_live_at_once_and_rotating_one_breaks_nobody(world: World) -> None:
    owner = await world.client("acme")
    headers = await world.bearer(owner)
    made = await registered(world, headers)
    path = f"/api/v1/clients/{made['client_id']}/secrets"
    answer = await world.http.post(path, json={"retire_others_in_s": 3600}, headers=headers)
    assert answer.status_code == 201, answer.text
    second = as_client(world, owner, made, answer.json()["client_secret"])
    first = as_client(world, owner, made)
    for each in (first, second):
        await world.token(each)
    full = await world.http.post(path, headers=headers)
    assert full.status_code == 409
    assert made["secrets"][0]["id"] in full.json()["hint"]
    world.clock.now += 3599
    await world.token(first)
    world.clock.now += 1
    assert (await world.post("/oauth2/token", GRANT, headers=first.basic)).status_code == 401
    await world.token(second)
    headers = await world.bearer(owner)
    third = await world.http.post(path, headers=headers)  # the expired one makes room
    assert third.status_code == 201, third.text
    gone = await world.http.delete(f"{path}/{answer.json()['id']}", headers=headers)
    assert gone.status_code == 204
    assert (await world.post("/oauth2/token", GRANT, headers=second.basic)).status_code == 401


async def test_grant_types_follow_the_scopes_until_they_are_set(world: World) -> None:
    headers = await world.bearer(await world.client("acme"))
    made = await registered(world, headers, scopes=["inference"])
    path = f"/api/v1/clients/{made['client_id']}"
    assert made["grant_types"] == ["client_credentials"]
    answer = await world.http.patch(path, json={"scopes": ["inference", "tokens:issue"]}, headers=headers)
    assert "urn:ietf:params:oauth:grant-type:token-exchange" in answer.json()["grant_types"]
    answer = await world.http.patch(path, json={"grant_types": ["client_credentials"]}, headers=headers)
    answer = await world.http.patch(path, json={"name": "renamed"}, headers=headers)
    assert answer.json()["grant_types"] == ["client_credentials"]


async def test_pages_walk_all_clients_of_the_tenant_and_no_others(world: World) -> None:
    owner, rival = await world.client("acme"), await world.client("rival")
    more = [await world.client("acme") for _ in range(4)]
    headers, seen, cursor = await world.bearer(owner), list[str](), None
    while True:
        params = {"limit": "2", **({"cursor": cursor} if cursor else {})}
        page = (await world.http.get("/api/v1/clients", params=params, headers=headers)).json()
        seen += [each["client_id"] for each in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [owner.client_id, *(each.client_id for each in more)]
    assert rival.client_id not in seen


async def test_an_operator_that_may_manage_takes_away_what_leaked(world: World) -> None:
    """But not what can do more than itself, and then itself."""
    leaked = await world.client("platform", scopes=[PLATFORM])
    acting = await world.client("platform", scopes=[PLATFORM, TENANTS_ACT])
    stolen = {"authorization": f"Bearer {await world.token(leaked)}"}
    assert (await world.http.get("/api/v1/clients", headers=stolen)).status_code == 403
    rescue = await world.client("platform", scopes=[PLATFORM, CLIENTS_READ, CLIENTS_WRITE])
    headers = await world.bearer(rescue)
    listed = (await world.http.get("/api/v1/clients", headers=headers)).json()["items"]
    assert {leaked.client_id, acting.client_id, rescue.client_id} <= {each["client_id"] for each in listed}
    path = "/api/v1/clients/"
    assert (await world.http.delete(path + acting.client_id, headers=headers)).status_code == 403
    assert (await world.http.delete(path + leaked.client_id, headers=headers)).status_code == 204
    await world.heard()
    assert (await world.http.get("/api/v1/sessions", headers=stolen)).status_code == 401
    assert (await world.post("/oauth2/token", GRANT, headers=leaked.basic)).status_code == 401
    assert (await world.http.delete(path + rescue.client_id, headers=headers)).status_code == 204


async def long_lived(world: World, headers: dict[str, str]) -> tuple[str, str]:
    """Make a token; return its address and itself."""
    wish = {"name": "t", "scopes": ["pools:read"], "expires_in_s": 86_400}
    made = await world.http.post("/api/v1/tokens", json=wish, headers=headers)
    assert made.status_code == 201, made.text
    return f"/api/v1/tokens/{made.json()['id']}", made.json()["access_token"]


async def test_a_token_is_listed_as_revoked_whichever_way_it_was(world: World) -> None:
    owner = await world.client("acme")
    headers = await world.bearer(owner)
    made = await registered(world, headers, scopes=["tokens:issue", "pools:read"])
    app = as_client(world, owner, made)
    path, token = await long_lived(world, headers)
    of_app, _ = await long_lived(world, await world.bearer(app))
    kept, _ = await long_lived(world, headers)

    async def revoked(address: str) -> bool:
        return (await world.http.get(address, headers=headers)).json()["revoked_at"] is not None

    assert [await revoked(each) for each in (path, of_app, kept)] == [False] * 3
    assert (await world.post("/oauth2/revoke", {"token": token}, headers=owner.basic)).status_code == 200
    assert [await revoked(each) for each in (path, of_app, kept)] == [True, False, False]
    await world.http.patch(f"/api/v1/clients/{app.client_id}", json={"status": "disabled"}, headers=headers)
    assert [await revoked(each) for each in (path, of_app, kept)] == [True, True, False]
    for _ in range(2):
        assert (await world.http.delete(kept, headers=headers)).status_code == 204
    assert await revoked(kept)
    assert [event.action for event in world.trail.events].count("token.revoke") == 2, (
        "one by each way, none by a repeat"
    )


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ({"kty": "EC", "kid": "x"}, "curve P-256"),
        ({"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"}, "not a whole public key"),
        ({"kty": "OKP", "crv": "X25519", "x": "A" * 43}, "curve Ed25519"),
        ({"kty": "RSA", "e": "AQAB", "n": "_" * 170}, "2048 bits"),
        ({"kty": "RSA", "e": "AQAB", "n": "é"}, "2048 bits"),
        ({"kty": "RSA", "n": "_" * 342}, "not a whole public key"),
    ],
)
async def test_a_key_that_could_never_authenticate_a_client_is_refused(
    world: World, key: dict[str, Any], says: str
) -> None:
    headers = await world.bearer(await world.client("acme"))
    body = {"name": "keyed", "auth_method": "private_key_jwt", "metadata": {"jwks": {"keys": [key]}}}
    answer = await world.http.post("/api/v1/clients", json=body, headers=headers)
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["pointer"] == "/metadata/jwks/keys/0"
    assert says in error["detail"]


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE", "POST"])
async def test_another_tenants_client_does_not_exist(world: World, method: str) -> None:
    owner, rival = await world.client("acme"), await world.client("rival")
    path = f"/api/v1/clients/{rival.client_id}" + ("/secrets" if method == "POST" else "")
    body: Any = {"json": {}} if method in {"PATCH", "POST"} else {}
    answer = await world.http.request(method, path, headers=await world.bearer(owner), **body)
    assert answer.status_code == 404
    missing = path.replace(rival.client_id, "lpc_nobody")
    other = await world.http.request(method, missing, headers=await world.bearer(owner), **body)
    assert other.json()["detail"] == answer.json()["detail"].replace(rival.client_id, "lpc_nobody")
    await world.token(rival)


async def test_nobody_hands_out_more_than_they_hold(world: World) -> None:
    small = await world.client("acme", scopes=["clients:write", "clients:read", "inference", "tokens:issue"])
    admin = await world.client("acme")
    headers = await world.bearer(small)
    for scopes in (["pools:write"], ["platform"], ["inference", "audit:read"]):
        answer = await world.http.post("/api/v1/clients", json={"name": "x", "scopes": scopes}, headers=headers)
        assert answer.status_code in {403, 422}, answer.text
    path = f"/api/v1/clients/{admin.client_id}"
    assert (await world.http.post(f"{path}/secrets", headers=headers)).status_code == 403
    assert (await world.http.patch(path, json={"name": "x"}, headers=headers)).status_code == 403
    assert (await world.http.delete(path, headers=headers)).status_code == 403
    token = await world.http.post("/api/v1/tokens", json={"name": "x", "scopes": ["pools:write"]}, headers=headers)
    assert token.status_code == 403


async def test_a_narrowed_token_makes_no_lasting_credentials(world: World) -> None:
    owner = await world.client("acme")
    narrow = await world.bearer(owner, authorization_details='[{"type":"llm_proxy","pools":["p"]}]')
    answer = await world.http.post("/api/v1/clients", json={"name": "x"}, headers=narrow)
    assert answer.status_code == 403
    made = await world.http.post("/api/v1/tokens", json={"name": "x", "expires_in_s": 86_400}, headers=narrow)
    assert made.status_code == 201, made.text
    principal = world.verifier.verify(made.json()["access_token"])
    assert principal.details[0]["pools"] == ["p"]
    assert principal.expires_at <= world.clock.now + 3600
    assert principal.lineage
    assert (await world.http.get("/api/v1/tokens", headers=narrow)).status_code == 403


async def test_a_long_lived_token_is_named_listed_and_revoked(world: World) -> None:
    owner = await world.client("acme")
    headers = await world.bearer(owner)
    body = {
        "name": "customer 17",
        "expires_in_s": 90 * 86_400,
        "subject": "customer:17",
        "authorization_details": [{"type": "llm_proxy", "models": ["gpt-4o*"], "rpm": 60}],
    }
    answer = await world.http.post("/api/v1/tokens", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    token = answer.json()["access_token"]
    world.clock.now += 60 * 86_400
    principal = world.verifier.verify(token)
    assert principal.subject == f"{owner.client_id}/customer:17"
    assert principal.scopes == {"inference"}
    headers = await world.bearer(owner)
    listed = await world.http.get("/api/v1/tokens", headers=headers)
    assert [each["name"] for each in listed.json()["items"]] == ["customer 17"]
    assert token not in listed.text
    path = f"/api/v1/tokens/{answer.json()['id']}"
    assert (await world.http.delete(path, headers=headers)).status_code == 204
    assert (await world.http.delete(path, headers=headers)).status_code == 204
    await world.heard()
    with pytest.raises(Exception, match="revoked"):
        world.verifier.verify(token)
    assert (await world.http.get(path, headers=headers)).json()["revoked_at"] is not None


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"name": ""}, "/name"),
        ({"name": "x", "scopes": ["nonsense"]}, "/scopes"),
        ({"name": "x", "scopes": []}, "/scopes"),
        ({"name": "x", "token_lifetime_s": 1}, "/token_lifetime_s"),
        ({"name": "x", "grant_types": ["password"]}, "/grant_types"),
        ({"name": "x", "auth_method": "none"}, "/auth_method"),
        ({"name": "x", "auth_method": "private_key_jwt"}, "/metadata/jwks"),
        ({"name": "x", "metadata": {"jwks": {"keys": [{"kty": "EC", "d": "x"}]}}}, "/metadata/jwks/keys/0"),
        ({"name": "x", "metadata": {"jwks": {"keys": [{"kty": "oct", "k": "x"}]}}}, "/metadata/jwks/keys/0"),
        ({"name": "x", "metadata": {"other": 1}}, "/metadata"),
        ({"name": "x", "auth_method": "tls_client_auth"}, "/metadata"),
        ({"name": "x", "authorization_details": [{"type": "other"}]}, "/authorization_details"),
    ],
)
async def test_bad_input_is_answered_with_the_place_to_mend(world: World, body: dict[str, Any], pointer: str) -> None:
    headers = await world.bearer(await world.client("acme"))
    answer = await world.http.post("/api/v1/clients", json=body, headers=headers)
    assert answer.status_code == 422, answer.text
    assert pointer in [each["pointer"] for each in answer.json()["errors"]]


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'{"name": 1}', b'{"name":"x","y":1}', b"\xff"])
async def test_malformed_bodies_are_4xx(world: World, body: bytes) -> None:
    headers = {**await world.bearer(await world.client("acme")), "content-type": "application/json"}
    for path in ("/api/v1/clients", "/api/v1/tokens"):
        answer = await world.http.post(path, content=body, headers=headers)
        assert 400 <= answer.status_code < 500, answer.text


async def test_only_operators_rotate_the_signing_key(world: World) -> None:
    tenant = await world.client("acme")
    operator = await world.client("platform", scopes=["platform"])
    answer = await world.http.post("/api/v1/signing-keys/rotate", headers=await world.bearer(tenant))
    assert answer.status_code == 403
    token = await world.token(tenant)
    old = {each["kid"] for each in (await world.http.get("/oauth2/jwks")).json()["keys"]}
    answer = await world.http.post("/api/v1/signing-keys/rotate", headers=await world.bearer(operator))
    assert answer.status_code == 200, answer.text
    assert answer.json()["kid"] not in old
    assert world.verifier.verify(token).client_id == tenant.client_id  # the old key stays published
    assert world.verifier.verify(await world.token(tenant)).client_id == tenant.client_id
    assert world.trail.events[-1].action == "signing_key.rotate"


async def test_no_operator_scope_for_a_tenants_client(world: World) -> None:
    with pytest.raises(Exception, match="platform is for clients of the platform tenant only"):
        await world.client("acme", scopes=["platform"])


async def test_the_openapi_document_lists_the_routes(world: World) -> None:
    document = (await world.http.get("/api/v1/openapi.json")).json()
    assert {"/api/v1/clients", "/api/v1/clients/{client_id}", "/api/v1/tokens"} <= set(document["paths"])
    assert ISSUER not in str(document)
