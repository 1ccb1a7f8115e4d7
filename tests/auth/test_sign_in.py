"""Signing in with OpenID Connect, against a provider on a real socket: the right way, and every wrong one."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
import sqlalchemy as sa
from joserfc.jwk import OctKey, RSAKey
from sqlmodel import col

from auth.identity import make_rule
from auth.models import Member
from auth.people import SESSION_S, cookie_name
from auth.relying_party import ATTEMPT_S, ProviderConfig, RelyingParty
from auth.remote_keys import RemoteKeys
from auth.secret import Secret
from gateway.guarded_calls import GuardedCalls
from gateway.published_keys import GuardedJwks, GuardedWeb
from gateway.upstream.connect import DirectConnector
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.pool import ConnectionPool
from tests.auth.conftest import ISSUER, PEPPERS, TestClient, World, slug_of
from tests.fakes.openid_provider import CLIENT_ID, CLIENT_SECRET, OpenIdProvider, run_openid_provider

CALLBACK = f"{ISSUER}/sign-in/callback"
SESSION, ATTEMPT = cookie_name(ISSUER), cookie_name(ISSUER, "attempt")
OPERATORS = (make_rule("email", "root@ops.example"), make_rule("realm_access.roles", "llm-operators"))


@dataclass
class Browser:
    """Keeps cookies as a browser does, and follows where it is sent."""

    world: World
    provider: OpenIdProvider
    cookies: dict[str, str] = field(default_factory=dict)

    async def get(self, place: str) -> httpx.Response:
        self.world.http.cookies.clear()
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        answer = await self.world.http.get(place.removeprefix(ISSUER), headers={"cookie": cookie} if cookie else {})
        for line in answer.headers.get_list("set-cookie"):
            pair, *flags = line.split("; ")
            name, _, value = pair.partition("=")
            assert {"httponly", "secure", "path=/", "samesite=lax"} <= {each.lower() for each in flags}
            assert name.startswith("__Host-")
            self.cookies[name] = value
            if "max-age=0" in line.lower():
                del self.cookies[name]
        return answer

    async def begin(self, **query: str) -> str:
        """Return where at the provider the browser was sent."""
        answer = await self.get(f"/sign-in/oidc?{urlencode(query)}")
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]

    async def sign_in(self, **query: str) -> httpx.Response:
        return await self.get(self.provider.visit(await self.begin(**query)))

    async def me(self) -> httpx.Response:
        return await self.get("/me")


@pytest.fixture
async def provider(world: World) -> AsyncIterator[OpenIdProvider]:
    policy = EgressPolicy(allow_private=True)
    pool = ConnectionPool(DirectConnector(policy))
    calls = GuardedCalls(pool, policy)
    async with run_openid_provider(world.clock, CALLBACK) as running:
        # The database is shared: a former test's provider may have had the same port, and so be the same issuer.
        async with world.services.sessions.platform() as session:
            await session.execute(sa.delete(Member).where(col(Member.issuer) == running.issuer))
        config = ProviderConfig(running.issuer, CLIENT_ID, Secret(CLIENT_SECRET), CALLBACK, operators=OPERATORS)
        world.sign_in_at(
            RelyingParty(config, GuardedWeb(calls), RemoteKeys(GuardedJwks(calls)), key=PEPPERS.derive(b"sign-in"))
        )
        yield running
        await pool.close()


@pytest.fixture
def browser(world: World, provider: OpenIdProvider) -> Browser:
    return Browser(world, provider)


async def declare(world: World, slug: str = "acme", **body: Any) -> dict[str, Any]:
    """Declare a member through the management API."""
    client = await world.client(slug)
    wanted = {"value": "ada@acme.example", "scopes": ["pools:read", "usage:read"], **body}
    answer = await world.http.post("/api/v1/members", json=wanted, headers=await world.bearer(client))
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def signed_in(answer: httpx.Response, place: str = "/me") -> bool:
    assert answer.status_code in {200, 303, 400, 403, 503}, answer.text
    return (answer.status_code, answer.headers.get("location")) == (303, place)


@pytest.mark.parametrize(("alg", "methods"), [("RS256", ("client_secret_basic",)), ("ES256", ("client_secret_post",))])
async def test_a_member_signs_in(
    world: World, provider: OpenIdProvider, browser: Browser, alg: str, methods: tuple[str, ...]
) -> None:
    await declare(world, value="Ada@ACME.example")
    provider.alg, provider.methods = alg, methods
    assert signed_in(await browser.sign_in())
    assert set(browser.cookies) == {SESSION}, "the attempt's cookie is gone"
    page = await browser.me()
    assert "ada@acme.example" in page.text
    assert "pools:read, usage:read" in page.text
    event = world.trail.events[-1]
    assert (event.tenant_id, event.action, event.actor) == (
        world.tenants["acme"],
        "person.sign_in",
        "person:ada@acme.example",
    )
    assert event.detail["sub"] == "u-1"
    world.clock.now += SESSION_S + 1
    assert (await browser.me()).status_code == 401


@pytest.mark.parametrize(
    "person",
    [
        {"sub": "r", "email": "root@ops.example", "email_verified": True},
        {"sub": "r", "realm_access": {"roles": ["users", "llm-operators"]}},
    ],
)
async def test_operators_are_those_whom_the_configuration_names(
    provider: OpenIdProvider, browser: Browser, person: dict[str, Any]
) -> None:
    provider.person = person
    assert signed_in(await browser.sign_in())
    assert "platform" in (await browser.me()).text


async def test_an_operators_session_ends_with_its_rule(
    world: World, provider: OpenIdProvider, browser: Browser
) -> None:
    provider.person = {"sub": "r", "email": "root@ops.example", "email_verified": True}
    await browser.sign_in()
    policy = EgressPolicy()
    calls = GuardedCalls(ConnectionPool(DirectConnector(policy)), policy)
    config = ProviderConfig(provider.issuer, CLIENT_ID, None, CALLBACK, operators=OPERATORS[1:])
    world.sign_in_at(RelyingParty(config, GuardedWeb(calls), RemoteKeys(None), key=b"k" * 32))
    assert (await browser.me()).status_code == 401


async def test_claims_that_only_userinfo_has_count(world: World, provider: OpenIdProvider, browser: Browser) -> None:
    await declare(world)
    provider.only_in_userinfo = frozenset({"email", "email_verified"})
    assert signed_in(await browser.sign_in())


async def test_userinfo_about_somebody_else_counts_for_nothing(
    world: World, provider: OpenIdProvider, browser: Browser
) -> None:
    await declare(world)
    provider.only_in_userinfo, provider.userinfo = frozenset({"email", "email_verified"}), {"sub": "u-2"}
    assert not signed_in(await browser.sign_in())


async def test_whoever_belongs_to_two_tenants_chooses(world: World, browser: Browser) -> None:
    await declare(world, "acme")
    await declare(world, "rival", claim="sub", value="u-1")
    page = await browser.sign_in(after="/me?x=1")
    assert page.status_code == 200
    for name in ("acme", "rival"):
        slug = slug_of(world.tenants[name])
        assert f"/sign-in/oidc?tenant={slug}&amp;after=/me%3Fx%3D1" in page.text
        assert signed_in(await browser.sign_in(tenant=slug, after="/me?x=1"), "/me?x=1")
        assert str(world.tenants[name]) in (await browser.me()).text


async def test_a_suspended_tenant_signs_nobody_in(world: World, browser: Browser) -> None:
    await declare(world)
    async with world.database.platform() as connection:
        await connection.execute("update tenant set status = 'suspended' where id = $1", world.tenants["acme"])
    assert (await browser.sign_in()).status_code == 403


async def test_removing_a_member_ends_its_sessions_everywhere(world: World, browser: Browser) -> None:
    first = await declare(world)
    second = await declare(world, claim="sub", value="u-1", scopes=["keys:read"])
    assert signed_in(await browser.sign_in())
    assert "keys:read" in (await browser.me()).text, "both rules give their scopes"
    gone = await world.http.delete(
        f"/api/v1/members/{second['id']}", headers=await world.bearer(await world.client("acme"))
    )
    assert gone.status_code == 204
    await world.heard()
    assert (await browser.me()).status_code == 401
    world.clock.now += 1
    assert signed_in(await browser.sign_in())
    assert "keys:read" not in (await browser.me()).text
    assert first["value"] == "ada@acme.example"


async def test_a_session_is_listed_and_ended_by_its_tenant_alone(world: World, browser: Browser) -> None:
    await declare(world)
    await browser.sign_in()
    ours, theirs = await world.bearer(await world.client("acme")), await world.bearer(await world.client("rival"))
    listed = (await world.http.get("/api/v1/sessions", headers=ours)).json()["items"]
    assert [each["subject"] for each in listed] == ["ada@acme.example"]
    assert "digest" not in listed[0]
    place = f"/api/v1/sessions/{listed[0]['id']}"
    assert (await world.http.get("/api/v1/sessions", headers=theirs)).json()["items"] == []
    assert (await world.http.delete(place, headers=theirs)).status_code == 404
    assert (await browser.me()).status_code == 200
    assert (await world.http.delete(place, headers=ours)).status_code == 204
    assert (await browser.me()).status_code == 401


async def test_operators_see_and_end_their_own_sessions(
    world: World, provider: OpenIdProvider, browser: Browser
) -> None:
    provider.person = {"sub": f"op-{world.tenants['acme']}", "email": "root@ops.example", "email_verified": True}
    await browser.sign_in()
    headers = await world.bearer(await world.client("platform", scopes=["platform"]))
    listed = (await world.http.get("/api/v1/sessions?limit=200", headers=headers)).json()["items"]
    for each in listed:
        assert (await world.http.delete(f"/api/v1/sessions/{each['id']}", headers=headers)).status_code == 204
    assert (await browser.me()).status_code == 401


async def refused(world: World, browser: Browser, answer: httpx.Response, status: int = 400) -> None:
    """Nobody is signed in, and the operators' trail knows."""
    assert answer.status_code == status, answer.text
    assert SESSION not in browser.cookies
    assert (await browser.me()).status_code == 401
    assert world.trail.events[-1].action == "person.sign_in_refused"


async def test_an_answer_that_no_browser_asked_for_signs_nobody_in(
    world: World, provider: OpenIdProvider, browser: Browser
) -> None:
    """Login CSRF: the attacker's own good answer, put into the victim's browser."""
    await declare(world)
    attacker = Browser(world, provider)
    answer = provider.visit(await attacker.begin())
    await refused(world, browser, await browser.get(answer))
    await browser.begin()
    await refused(world, browser, await browser.get(answer))


async def test_wrong_state(world: World, provider: OpenIdProvider, browser: Browser) -> None:
    await declare(world)
    provider.answer = {"state": "x" * 43}
    await refused(world, browser, await browser.sign_in())
    provider.answer = {"state": None}
    await refused(world, browser, await browser.sign_in())


@pytest.mark.parametrize("iss", ["https://evil.example", None, ""])
async def test_an_answer_of_another_issuer_is_a_mix_up(
    world: World, provider: OpenIdProvider, browser: Browser, iss: str | None
) -> None:
    await declare(world)
    provider.answer = {"iss": iss}
    await refused(world, browser, await browser.sign_in())
    assert "POST /token" not in provider.asked, "the code went nowhere"


async def test_iss_may_be_left_out_where_the_provider_never_sends_it(
    world: World, provider: OpenIdProvider, browser: Browser
) -> None:
    await declare(world)
    provider.discovery, provider.answer = {"authorization_response_iss_parameter_supported": False}, {"iss": None}
    assert signed_in(await browser.sign_in())


async def test_an_answer_is_good_once(world: World, provider: OpenIdProvider, browser: Browser) -> None:
    await declare(world)
    place = provider.visit(await browser.begin())
    held = dict(browser.cookies)
    assert signed_in(await browser.get(place))
    replayed = Browser(world, provider, held)  # the attempt's cookie kept: a copied profile
    await refused(world, replayed, await replayed.get(place))


async def test_a_code_of_another_browser_is_bound_to_its_verifier(
    world: World, provider: OpenIdProvider, browser: Browser
) -> None:
    """Code injection (RFC 9700 section 4.5): a stolen code under the thief's own state; PKCE refuses it."""
    await declare(world)
    victim = Browser(world, provider)
    stolen = parse_qs(urlsplit(provider.visit(await victim.begin())).query)["code"][0]
    provider.answer = {"code": stolen}
    await refused(world, browser, await browser.sign_in())


async def test_the_provider_says_no(world: World, provider: OpenIdProvider, browser: Browser) -> None:
    provider.answer = {"code": None, "error": "access_denied", "error_description": "<script>alert(1)</script>"}
    answer = await browser.sign_in()
    assert "access_denied" in answer.text
    assert "<script" not in answer.text
    await refused(world, browser, answer)
    provider.answer = {"code": None, "error": "<script>alert(1)</script>"}
    assert "<script" not in (await browser.sign_in()).text


async def test_a_repeated_parameter(world: World, provider: OpenIdProvider, browser: Browser) -> None:
    await declare(world)
    await refused(world, browser, await browser.get(provider.visit(await browser.begin()) + "&code=other"))


async def test_an_attempt_ends(world: World, provider: OpenIdProvider, browser: Browser) -> None:
    await declare(world)
    place = provider.visit(await browser.begin())
    world.clock.now += ATTEMPT_S + 1
    await refused(world, browser, await browser.get(place))


async def test_a_forged_attempt(world: World, provider: OpenIdProvider, browser: Browser) -> None:
    await declare(world)
    place = provider.visit(await browser.begin())
    body, _, mac = browser.cookies[ATTEMPT].partition(".")
    raw = json.loads(base64.urlsafe_b64decode(body + "=="))
    forged = base64.urlsafe_b64encode(json.dumps({**raw, "after": "/evil"}).encode()).rstrip(b"=").decode()
    for cookie in (f"{forged}.{mac}", body, f"{body}.", "", "é", f"{body}.{mac}x"):
        browser.cookies[ATTEMPT] = cookie
        if cookie.isascii():
            await refused(world, browser, await browser.get(place))


NOT_OURS = RSAKey.generate_key(2048, {"kid": "r1"}, private=True)


def _unsigned(provider: OpenIdProvider, claims: dict[str, Any]) -> str:
    parts = ({"alg": "none", "kid": "r1"}, claims)
    return ".".join(base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=").decode() for each in parts) + "."


def _hs_with_public_key(provider: OpenIdProvider, claims: dict[str, Any]) -> str:
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"r1"}').rstrip(b"=")
    signed = head + b"." + base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")
    mac = hmac.digest(provider.rsa.as_pem(private=False), signed, "sha256")
    return (signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


def _hs_with_client_secret(provider: OpenIdProvider, claims: dict[str, Any]) -> str:
    return provider.sign(claims, OctKey.import_key(CLIENT_SECRET), alg="HS256")


def _own_key_in_the_header(provider: OpenIdProvider, claims: dict[str, Any]) -> str:
    return provider.sign(claims, NOT_OURS, jwk=NOT_OURS.as_dict(private=False))


@pytest.mark.parametrize(
    "forge",
    [
        _unsigned,
        _hs_with_public_key,
        _hs_with_client_secret,
        _own_key_in_the_header,
        lambda provider, claims: provider.sign(claims, NOT_OURS),
        lambda provider, claims: provider.sign(claims)[:-4] + "AAAA",
        lambda provider, claims: "no.jwt",
        lambda provider, claims: "",
    ],
)
async def test_id_tokens_that_the_provider_did_not_sign(
    world: World,
    provider: OpenIdProvider,
    browser: Browser,
    forge: Callable[[OpenIdProvider, dict[str, Any]], str],
) -> None:
    await declare(world)
    provider.forge = lambda claims: forge(provider, claims)
    await refused(world, browser, await browser.sign_in())


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"iss": "https://evil.example"},
        {"aud": "another-client"},
        {"aud": [CLIENT_ID, "another-client"]},
        {"aud": [CLIENT_ID, "another-client"], "azp": "another-client"},
        {"azp": "another-client"},
        {"aud": None},
        {"exp": 1_000_000_000},
        {"exp": None},
        {"exp": "soon"},
        {"iat": 1_000_000_000},
        {"iat": 2_000_000_000},
        {"nbf": 2_000_000_000},
        {"sub": ""},
        {"sub": None},
        {"sub": 7},
    ],
)
async def test_id_tokens_that_are_not_for_this_sign_in(
    world: World, provider: OpenIdProvider, browser: Browser, changes: dict[str, Any]
) -> None:
    await declare(world)
    provider.id_token = changes
    await refused(world, browser, await browser.sign_in())


@pytest.mark.parametrize(
    "person",
    [
        {"sub": "u-9", "email": "ada@acme.example"},
        {"sub": "u-9", "email": "ada@acme.example", "email_verified": False},
        {"sub": "u-9", "email": "ada@acme.example", "email_verified": "false"},
        {"sub": "u-9", "email": ["ada@acme.example"], "email_verified": True},
        {"sub": "u-9", "preferred_username": "ada@acme.example", "name": "ada@acme.example"},
        {"sub": "ada@acme.example"},
        {"sub": "u-9", "emails": ["ada@acme.example"], "profile.email": "ada@acme.example"},
    ],
)
async def test_an_address_that_nobody_verified_makes_nobody_a_member(
    world: World, provider: OpenIdProvider, browser: Browser, person: dict[str, Any]
) -> None:
    await declare(world)
    provider.person = person
    await refused(world, browser, await browser.sign_in(), 403)


async def test_an_unverified_address_beside_a_verified_one_of_the_other_document(
    world: World, provider: OpenIdProvider, browser: Browser
) -> None:
    await declare(world)
    provider.person = {"sub": "u-9", "email": "mallory@evil.example", "email_verified": True}
    provider.id_token = {"email": "ada@acme.example", "email_verified": None}
    await refused(world, browser, await browser.sign_in(), 403)


@pytest.mark.parametrize(
    "after",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\r\nset-cookie: x=y",
        "javascript:alert(1)",
        "evil.example",
        "/" * 3 + "evil.example",
        "/%0d%0a" + "x" * 600,
        "",
    ],
)
async def test_no_open_redirect(world: World, browser: Browser, after: str) -> None:
    await declare(world)
    assert signed_in(await browser.sign_in(after=after))


async def test_a_session_that_somebody_planted_is_not_kept(
    world: World, provider: OpenIdProvider, browser: Browser
) -> None:
    """Session fixation: the cookie is always a new one, and what the browser had before ends."""
    await declare(world)
    attacker = Browser(world, provider)
    assert signed_in(await attacker.sign_in())
    planted = browser.cookies[SESSION] = attacker.cookies[SESSION]
    assert signed_in(await browser.sign_in())
    assert browser.cookies[SESSION] != planted
    assert (await attacker.me()).status_code == 401


async def test_a_provider_that_is_away_or_strange(world: World, provider: OpenIdProvider, browser: Browser) -> None:
    await declare(world)
    for wrong in (
        {"issuer": "https://evil.example"},
        {"token_endpoint": "ftp://x"},
        {"jwks_uri": None},
        {"authorization_endpoint": "javascript:alert(1)"},
    ):
        provider.discovery = wrong
        assert (await browser.get("/sign-in/oidc")).status_code == 503
    provider.discovery, provider.away = {}, True
    assert (await browser.get("/sign-in/oidc")).status_code == 503
    provider.away = False
    place = provider.visit(await browser.begin())
    provider.away = True
    assert (await browser.get(place)).status_code in {400, 503}
    assert SESSION not in browser.cookies


async def test_internal_addresses_are_behind_the_guard(
    world: World, provider: OpenIdProvider, browser: Browser
) -> None:
    """A provider whose discovery document points inside gets no call there (SSRF)."""
    await declare(world)
    policy = EgressPolicy()
    pool = ConnectionPool(DirectConnector(policy))
    calls = GuardedCalls(pool, policy)
    config = ProviderConfig(provider.issuer, CLIENT_ID, None, CALLBACK)
    world.sign_in_at(RelyingParty(config, GuardedWeb(calls), RemoteKeys(GuardedJwks(calls)), key=b"k" * 32))
    assert (await browser.get("/sign-in/oidc")).status_code == 503
    assert provider.asked == []
    await pool.close()


async def test_hammering_is_slowed(world: World, browser: Browser) -> None:
    statuses = [(await browser.get("/sign-in/callback?code=x&state=y")).status_code for _ in range(31)]
    assert statuses[:5] == [400] * 5
    assert statuses[-1] == 429


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"claim": "preferred_username", "value": "ada"}, 422),
        ({"claim": "aud", "value": CLIENT_ID}, 422),
        ({"claim": "email_verified", "value": "true"}, 422),
        ({"claim": "email", "value": "acme.example"}, 422),
        ({"claim": "", "value": "x"}, 422),
        ({"claim": "sub", "value": ""}, 422),
        ({"value": "a@b.example", "scopes": []}, 422),
        ({"value": "a@b.example", "scopes": ["inference"]}, 422),
        ({"value": "a@b.example", "scopes": ["platform"]}, 403),
    ],
)
async def test_members_that_are_not_valid(
    world: World, provider: OpenIdProvider, body: dict[str, Any], status: int
) -> None:
    client = await world.client("acme")
    answer = await world.http.post(
        "/api/v1/members", json={"scopes": ["pools:read"], **body}, headers=await world.bearer(client)
    )
    assert answer.status_code == status, answer.text


async def test_members_are_the_tenants_own(world: World, provider: OpenIdProvider) -> None:
    made = await declare(world)
    place, rival = f"/api/v1/members/{made['id']}", await world.bearer(await world.client("rival"))
    assert (await world.http.get(place, headers=rival)).status_code == 404
    assert (await world.http.delete(place, headers=rival)).status_code == 404
    ours: TestClient = await world.client("acme")
    headers = await world.bearer(ours)
    assert (await world.http.get(place, headers=headers)).json() == made
    again = await world.http.post(
        "/api/v1/members", json={"value": "ADA@acme.example", "scopes": ["pools:read"]}, headers=headers
    )
    assert again.status_code == 409
    assert [each["id"] for each in (await world.http.get("/api/v1/members", headers=headers)).json()["items"]] == [
        made["id"]
    ]
    less = await world.bearer(await world.client("acme", scopes=["clients:read"]))
    assert (await world.http.delete(place, headers=less)).status_code == 403
    narrow = await world.client("acme", scopes=["clients:write", "clients:read"])
    wider = await world.http.post(
        "/api/v1/members",
        json={"value": "eve@acme.example", "scopes": ["keys:write"]},
        headers=await world.bearer(narrow),
    )
    assert wider.status_code == 403


async def test_without_a_provider_the_pages_say_so(world: World) -> None:
    assert (await world.http.get("/sign-in")).status_code == 200
    assert (await world.http.get("/sign-in/oidc")).status_code == 404
    assert (await world.http.get("/sign-in/callback?code=x")).status_code == 404
    answer = await world.http.post(
        "/api/v1/members",
        json={"value": "a@b.example", "scopes": ["pools:read"]},
        headers=await world.bearer(await world.client("acme")),
    )
    assert answer.status_code == 409


async def test_signing_out_offers_the_providers_own(world: World, provider: OpenIdProvider, browser: Browser) -> None:
    await declare(world)
    await browser.sign_in()
    answer = await world.http.post(
        "/sign-out",
        headers={
            "origin": ISSUER,
            "sec-fetch-site": "same-origin",
            "cookie": f"{SESSION}={browser.cookies[SESSION]}",
        },
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/signed-out")
    assert (await browser.me()).status_code == 401
    assert f"{provider.issuer}/logout" in (await browser.get("/signed-out")).text
