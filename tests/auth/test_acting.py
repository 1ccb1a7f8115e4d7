"""An operator's way into a tenant: how far it reaches, how long, and who may not take it."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from auth.scopes import CLIENTS_WRITE, PLATFORM, POOLS_READ, TENANT_SCOPES, TENANTS_ACT, TOKENS_ISSUE
from tests.auth.conftest import ISSUER, World

PATH = "/api/v1/tokens/acting"


async def act(world: World, headers: dict[str, str], slug: str = "acme", *scopes: str) -> Any:
    body = {"tenant_id": str(world.tenants[slug]), "scopes": list(scopes)}
    return await world.http.post(PATH, json=body, headers=headers)


async def acting(world: World, *scopes: str) -> dict[str, str]:
    operator = await world.client("platform", scopes=(PLATFORM, TENANTS_ACT))
    answer = await act(world, await world.bearer(operator), "acme", *scopes)
    assert answer.status_code == 200, answer.text
    return {"authorization": f"Bearer {answer.json()['access_token']}"}


async def test_it_is_the_tenants_with_the_named_scopes_for_minutes_and_in_both_trails(world: World) -> None:
    operator = await world.client("platform", scopes=(PLATFORM, TENANTS_ACT))
    answer = await act(world, await world.bearer(operator), "acme", POOLS_READ, CLIENTS_WRITE)

    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["expires_in"] == 300
    principal = world.verifier.verify(answer.json()["access_token"])
    assert principal.tenant_id == world.tenants["acme"]
    assert principal.scopes == {POOLS_READ, CLIENTS_WRITE}
    assert principal.client_id == operator.client_id
    assert not principal.is_operator
    noted = [(event.tenant_id, event.action, event.actor) for event in world.trail.events[-2:]]
    assert noted == [
        (world.tenants["platform"], "tenant.act", operator.client_id),
        (world.tenants["acme"], "operator.act", operator.client_id),
    ]


@pytest.mark.parametrize("scopes", [(PLATFORM,), (TENANTS_ACT,)])
async def test_an_operator_with_half_of_it_may_not(world: World, scopes: tuple[str, ...]) -> None:
    operator = await world.client("platform", scopes=scopes)

    assert (await act(world, await world.bearer(operator), "acme", POOLS_READ)).status_code == 403


async def test_a_tenants_client_may_not_and_cannot_be_given_the_scope(world: World) -> None:
    client = await world.client("rival", scopes=TENANT_SCOPES)
    headers = await world.bearer(client)

    assert (await act(world, headers, "acme", POOLS_READ)).status_code == 403
    wish = {"name": "climber", "scopes": [PLATFORM, TENANTS_ACT]}
    assert (await world.http.post("/api/v1/clients", json=wish, headers=headers)).status_code in (400, 403)


@pytest.mark.parametrize("scopes", [(), (PLATFORM,), (TENANTS_ACT, POOLS_READ), ("made:up",)])
async def test_scopes_are_the_tenants_own(world: World, scopes: tuple[str, ...]) -> None:
    operator = await world.client("platform", scopes=(PLATFORM, TENANTS_ACT))

    assert (await act(world, await world.bearer(operator), "acme", *scopes)).status_code == 422


async def test_neither_the_platform_nor_nowhere_is_a_tenant_to_act_in(world: World) -> None:
    operator = await world.client("platform", scopes=(PLATFORM, TENANTS_ACT))
    headers = await world.bearer(operator)

    assert (await act(world, headers, "platform", POOLS_READ)).status_code == 404
    stray = {"tenant_id": str(uuid4()), "scopes": [POOLS_READ]}
    assert (await world.http.post(PATH, json=stray, headers=headers)).status_code == 404


async def test_it_registers_no_client_that_can_do_more(world: World) -> None:
    headers = await acting(world, CLIENTS_WRITE)

    more = await world.http.post("/api/v1/clients", json={"name": "x", "scopes": [POOLS_READ]}, headers=headers)
    same = await world.http.post("/api/v1/clients", json={"name": "x", "scopes": [CLIENTS_WRITE]}, headers=headers)

    assert (more.status_code, same.status_code) == (403, 201)


async def test_it_cannot_act_further_nor_live_longer(world: World) -> None:
    headers = await acting(world, TOKENS_ISSUE, POOLS_READ)

    assert (await act(world, headers, "rival", POOLS_READ)).status_code == 403
    wish = {"name": "keep", "scopes": [POOLS_READ], "expires_in_s": 30 * 86_400}
    made = await world.http.post("/api/v1/tokens", json=wish, headers=headers)
    assert made.status_code == 201, made.text
    world.clock.now += 301
    late = {"authorization": f"Bearer {made.json()['access_token']}"}
    assert (await world.http.get("/api/v1/clients", headers=late)).status_code == 401


async def test_it_ends_with_its_operator(world: World) -> None:
    operator = await world.client("platform", scopes=(PLATFORM, TENANTS_ACT, CLIENTS_WRITE))
    bearer = await world.bearer(operator)
    answer = await act(world, bearer, "acme", POOLS_READ)
    await world.http.patch(f"/api/v1/clients/{operator.client_id}", json={"status": "disabled"}, headers=bearer)
    await world.heard()

    gone = {"authorization": f"Bearer {answer.json()['access_token']}"}
    assert (await world.http.get("/api/v1/clients", headers=gone)).status_code == 401


async def test_a_session_by_its_link_ends_with_the_operators_token(world: World) -> None:
    """Like whatever else was made with the token of five minutes, which came from that one."""
    operator = await world.client("platform", scopes=(PLATFORM, TENANTS_ACT))
    bearer = await world.bearer(operator)
    answer = await act(world, bearer, "acme", POOLS_READ)
    headers = {"authorization": f"Bearer {answer.json()['access_token']}"}
    made = await world.http.post("/api/v1/sign-in-links", json={}, headers=headers)
    assert made.status_code == 201, made.text
    secret = str(made.json()["url"]).rpartition("/")[2]
    ours = {"origin": ISSUER, "sec-fetch-site": "same-origin"}
    opened = await world.http.post("/sign-in", data={"token": secret}, headers=ours)
    cookie = {"cookie": opened.headers["set-cookie"].partition(";")[0]}
    world.http.cookies.clear()
    assert (await world.http.get("/me", headers=cookie)).status_code == 200

    token = bearer["authorization"].removeprefix("Bearer ")
    assert (await world.post("/oauth2/revoke", {"token": token}, headers=operator.basic)).status_code == 200
    await world.heard()
    assert (await world.http.get("/me", headers=cookie)).status_code == 401
