"""Signing in by a one-time link: works once, for its person, in its browser; everything else is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from auth.people import IDLE_S, LINK_S, SESSION_S, cookie_header, cookie_name, is_same_origin
from tests.auth.conftest import ISSUER, TestClient, World

OURS = {"origin": ISSUER, "sec-fetch-site": "same-origin"}
COOKIE = cookie_name(ISSUER)


async def link(world: World, client: TestClient, **body: Any) -> str:
    """Return the secret of a new link."""
    answer = await world.http.post("/api/v1/sign-in-links", json=body, headers=await world.bearer(client))
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return str(answer.json()["url"]).removeprefix(ISSUER + "/sign-in/")


async def use(world: World, secret: str, headers: dict[str, str] | None = None) -> httpx.Response:
    world.http.cookies.clear()
    answer = await world.http.post("/sign-in", data={"token": secret}, headers=OURS if headers is None else headers)
    world.http.cookies.clear()
    return answer


async def signed_in(world: World, client: TestClient, **body: Any) -> dict[str, str]:
    """Return the Cookie header of a new session."""
    answer = await use(world, await link(world, client, **body))
    assert (answer.status_code, answer.headers["location"]) == (303, "/me")
    return {"cookie": answer.headers["set-cookie"].partition(";")[0]}


async def me(world: World, cookie: dict[str, str]) -> httpx.Response:
    return await world.http.get("/me", headers=cookie)


async def test_a_link_signs_in_once(world: World) -> None:
    secret = await link(world, await world.client("acme"), subject="ada@acme.example", scopes=["pools:read"])
    shown = await world.http.get(f"/sign-in/{secret}")  # a preview: it changes nothing
    assert shown.status_code == 200
    assert "script" not in shown.headers["content-security-policy"]
    assert shown.headers["referrer-policy"] == "same-origin"
    answer = await use(world, secret)
    assert answer.headers["set-cookie"].startswith(f"{COOKIE}=")
    assert {"HttpOnly", "Secure", "Path=/", "SameSite=Lax"} <= set(answer.headers["set-cookie"].split("; "))
    page = await me(world, {"cookie": answer.headers["set-cookie"].partition(";")[0]})
    assert page.status_code == 200
    assert "ada@acme.example" in page.text
    assert "pools:read" in page.text
    assert "pools:write" not in page.text
    assert (await use(world, secret)).status_code == 400
    assert [event.action for event in world.trail.events][-2:] == ["sign_in_link.create", "person.sign_in"]
    assert world.trail.events[-2].detail == {"scopes": ["pools:read"]}


async def test_racing_for_a_link_one_wins(world: World) -> None:
    secret = await link(world, await world.client("acme"))
    answers = await asyncio.gather(*(use(world, secret) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [303, 400, 400, 400, 400, 400]


async def test_links_and_sessions_end(world: World) -> None:
    client = await world.client("acme")
    late = await link(world, client)
    cookie = await signed_in(world, client)
    world.clock.now += LINK_S + 1
    assert (await use(world, late)).status_code == 400
    assert (await me(world, cookie)).status_code == 200
    world.clock.now += IDLE_S + 1
    assert (await me(world, cookie)).status_code == 401
    busy = await signed_in(world, client)
    for _ in range(SESSION_S // 1200):
        assert (await me(world, busy)).status_code == 200
        world.clock.now += 1200
    assert (await me(world, busy)).status_code == 401


async def test_the_secret_itself_is_stored_nowhere(world: World) -> None:
    client = await world.client("acme")
    secret, cookie = await link(world, client), await signed_in(world, client)
    async with world.database.platform() as connection:
        rows = str([dict(row) for row in await connection.fetch("select * from web_session")])
    assert secret not in rows
    assert cookie["cookie"].partition("=")[2] not in rows


async def test_a_link_secret_is_no_cookie_and_the_reverse(world: World) -> None:
    client = await world.client("acme")
    secret, cookie = await link(world, client), await signed_in(world, client)
    assert (await me(world, {"cookie": f"{COOKIE}={secret}"})).status_code == 401
    assert (await use(world, cookie["cookie"].partition("=")[2])).status_code == 400
    assert (await me(world, {"cookie": f"{COOKIE}="})).status_code == 401
    assert (await me(world, {"cookie": f"{COOKIE}={'x' * 43}"})).status_code == 401


@pytest.mark.parametrize("everywhere", [False, True])
async def test_signing_out(world: World, everywhere: bool) -> None:
    client = await world.client("acme")
    here, there = await signed_in(world, client, subject="ada"), await signed_in(world, client, subject="ada")
    other = await signed_in(world, client, subject="bob")
    form = {"everywhere": "1"} if everywhere else {}
    answer = await world.http.post("/sign-out", data=form, headers={**OURS, **here})
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert (await me(world, here)).status_code == 401
    assert (await me(world, there)).status_code == (401 if everywhere else 200)
    assert (await me(world, other)).status_code == 200


async def test_a_session_goes_with_the_client_that_made_it(world: World) -> None:
    manager, client = await world.client("acme"), await world.client("acme")
    unused = await link(world, client)
    cookie = await signed_in(world, client)
    gone = await world.http.delete(f"/api/v1/clients/{client.client_id}", headers=await world.bearer(manager))
    assert gone.status_code == 204
    await world.heard()
    assert (await me(world, cookie)).status_code == 401
    assert (await use(world, unused)).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
        {"origin": ISSUER, "sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": ISSUER + ".evil.example"},
        {"sec-fetch-site": "none"},
        {},
    ],
)
async def test_forms_of_other_sites_do_nothing(world: World, headers: dict[str, str]) -> None:
    client = await world.client("acme")
    secret, cookie = await link(world, client), await signed_in(world, client)
    assert (await use(world, secret, headers)).status_code == 403
    assert (await world.http.post("/sign-out", headers={**headers, **cookie})).status_code == 403
    assert (await me(world, cookie)).status_code == 200
    assert (await use(world, secret)).status_code == 303


async def test_a_cookie_opens_no_api(world: World) -> None:
    cookie = await signed_in(world, await world.client("acme"))
    assert (await world.http.get("/api/v1/clients", headers=cookie)).status_code == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [({"scopes": ["platform"]}, 403), ({"subject": "<b>"}, 422), ({"subject": ""}, 422), ({"name": "x"}, 422)],
)
async def test_links_beyond_the_caller_are_refused(world: World, body: dict[str, Any], status: int) -> None:
    client = await world.client("acme")
    answer = await world.http.post("/api/v1/sign-in-links", json=body, headers=await world.bearer(client))
    assert answer.status_code == status


async def test_a_narrowed_token_signs_nobody_in(world: World) -> None:
    client = await world.client("acme")
    narrow = await world.bearer(client, authorization_details='[{"type":"llm_proxy","rpm":1}]')
    assert (await world.http.post("/api/v1/sign-in-links", headers=narrow)).status_code == 403
    assert (await world.http.post("/api/v1/sign-in-links")).status_code == 401


async def test_what_the_page_shows_is_escaped(world: World) -> None:
    page = await world.http.get("/sign-in/%22%3E%3Cscript%3E")
    assert "<script>" not in page.text


def test_the_cookie_is_bound_to_host_and_tls() -> None:
    assert cookie_header("https://a.example", "v", max_age_s=1).startswith("__Host-")
    assert "Secure" not in cookie_header("http://127.0.0.1:8080", "v", max_age_s=1)


def test_a_hidden_referrer_is_no_other_site() -> None:
    assert is_same_origin({"origin": "null", "sec-fetch-site": "same-origin"}, ISSUER)


async def test_a_token_for_inference_alone_signs_nobody_in(world: World) -> None:
    """It is what customers hold: with it they could put sign-ins of anybody into the audit trail."""
    plain = await world.client("acme", scopes=["inference"])
    answer = await world.http.post(
        "/api/v1/sign-in-links", json={"subject": "ada@acme.example"}, headers=await world.bearer(plain)
    )
    assert answer.status_code == 403
    assert "no page" in answer.json()["detail"]
    wide = await world.bearer(await world.client("acme"))
    none = await world.http.post("/api/v1/sign-in-links", json={"scopes": []}, headers=wide)
    assert none.status_code == 403
    assert not [event for event in world.trail.events if event.action == "sign_in_link.create"]
