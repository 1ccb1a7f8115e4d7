"""What RFC 8693 and RFC 9396 demand of narrower tokens, one named row a requirement, driven over HTTP."""

from __future__ import annotations

import json

import pytest

from tests.auth.conformance import ACCESS_TOKEN, GRANT, Table, exchange, refused
from tests.auth.conftest import World

ROWS = Table()
row = ROWS.row


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
