"""The management API over a real database: what it stores, shows, refuses and never shows."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import asyncpg
import httpx
import pytest
from litestar import Litestar
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send
from uuid_utils.compat import uuid7

from auth.client_secrets import Peppers
from auth.errors import Fault
from auth.paging import encode_cursor
from auth.principal import PLATFORM_TENANT_ID, Principal
from auth.revocations import Revocations, Traces
from auth.scopes import TENANT_SCOPES
from auth.secret import Secret
from auth.storage import Connections
from gateway.balancing.quota import Limits
from gateway.cli.audit import check_export
from gateway.control.orm import OrmSessions
from gateway.problems import handle
from gateway.proxy.pool_settings import read_quota
from tenants.api.services import CustodyParts, TenantServices
from tenants.datakeys import DataKeys
from tenants.history import contradictions
from tenants.routes import make_router
from tenants.shares.protocol import InMemoryShares
from tenants.snapshot import SnapshotLoader
from tenants.sources.protocol import InMemorySource
from tenants.verification import verify_everything
from tests.conftest import TestDatabase
from tests.tenants.catalogue import CATALOGUE
from tests.tenants.conftest import Plant, Planted

KEY = "sk-proj-0123456789abcdefghij"
NEW_KEY = "sk-proj-zyxwvutsrqponmlkjihg"


def caller(app: ASGIApp) -> ASGIApp:
    """Take the verified caller from test headers, where `auth.middleware` would put it."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            if "x-tenant" in headers:
                scopes = frozenset(headers.get("x-scopes", " ".join(TENANT_SCOPES)).split())
                scope["auth"] = Principal(UUID(headers["x-tenant"]), "client-1", scopes, "jti", 2e9)
        await app(scope, receive, send)

    return wrapped


class Now:
    """The time, which moves on when told."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def now() -> Now:
    return Now()


async def assert_documented(client: httpx.AsyncClient, response: httpx.Response) -> None:
    """An answer that is no problem has a status that the OpenAPI document names for its address."""
    path, method = response.request.url.path, response.request.method.lower()
    named = [
        set(item[method]["responses"])
        for template, item in (await client.get("/schema/openapi.json")).json()["paths"].items()
        if method in item and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path.rstrip("/"))
    ]
    assert any(str(response.status_code) in statuses for statuses in named), (method, path, response.status_code, named)


class Api:
    """One caller of the API."""

    def __init__(self, client: httpx.AsyncClient, tenant_id: UUID, scopes: str | None = None) -> None:
        self.client = client
        self.headers = {"x-tenant": str(tenant_id)} | ({} if scopes is None else {"x-scopes": scopes})

    async def __call__(
        self, method: str, path: str, body: Any = None, *, expect: int | None = None, **headers: str
    ) -> Any:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        response = await self.client.request(method, f"/api/v1{path}", json=body, headers=self.headers | sent)
        if expect is not None:
            assert response.status_code == expect, response.text
        if response.status_code < 400:
            await assert_documented(self.client, response)
        return response


@pytest.fixture
async def client(
    sessions: OrmSessions, database: Connections, data_keys: DataKeys, now: Now
) -> AsyncIterator[httpx.AsyncClient]:
    services = TenantServices(
        sessions=sessions,
        sealer=data_keys,
        catalogue=CATALOGUE,
        peppers=Peppers({1: b"p" * 32}),
        now=now,
        forget=data_keys.forget,
        custody=CustodyParts(database, data_keys, InMemoryShares()),
        prober=InMemorySource(),
    )
    app = Litestar([make_router(services)], middleware=[caller], exception_handlers={Exception: handle})
    transport = httpx.ASGITransport(cast(Any, app))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as opened:
        yield opened


@pytest.fixture
async def acme(plant: Plant) -> Planted:
    return await plant("acme")


@pytest.fixture
def api(client: httpx.AsyncClient, acme: Planted) -> Api:
    return Api(client, acme.tenant_id)


@pytest.fixture
def operator(client: httpx.AsyncClient) -> Api:
    return Api(client, PLATFORM_TENANT_ID, "platform")


def key_body(**more: Any) -> dict[str, Any]:
    return {"name": "k2", "provider": "openai", "api_key": KEY, **more}


async def test_a_tenant_with_its_first_client(operator: Api, database: Connections) -> None:
    created = await operator("POST", "/tenants", {"slug": "initech"}, expect=201)
    body = created.json()
    assert created.headers["location"] == f"/api/v1/tenants/{body['id']}"
    secret = body["client"]["client_secret"]
    assert len(secret) > 40
    assert set(body["client"]["scopes"]) == TENANT_SCOPES
    read = await operator("GET", f"/tenants/{body['id']}", expect=200)
    assert "client" not in read.json()
    assert secret not in read.text
    clash = await operator("POST", "/tenants", {"slug": "initech"}, expect=409)
    assert clash.json()["hint"] == "Choose another slug."
    async with database.platform() as connection:
        dump = str(await connection.fetch("select * from client_secret")) + str(
            await connection.fetch("select * from idempotency_key")
        )
    assert secret not in dump


async def test_a_repeated_creation_shows_the_secret_only_once(operator: Api, database: Connections) -> None:
    first = await operator("POST", "/tenants", {"slug": "initech"}, expect=201, idempotency_key="abc")
    again = await operator("POST", "/tenants", {"slug": "initech"}, expect=201, idempotency_key="abc")
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["client"]["client_secret"] is None
    assert again.json()["id"] == first.json()["id"]
    other = await operator("POST", "/tenants", {"slug": "other"}, expect=409, idempotency_key="abc")
    assert "different request" in other.json()["detail"]
    async with database.platform() as connection:
        stored = await connection.fetchval("select response::text from idempotency_key")
    assert first.json()["client"]["client_secret"] not in stored


async def test_suspend_and_delete_a_tenant(operator: Api, acme: Planted, database: Connections) -> None:
    path = f"/tenants/{acme.tenant_id}"
    tag = (await operator("GET", path, expect=200)).headers["etag"]
    changed = await operator("PATCH", path, {"status": "suspended"}, expect=200, if_match=tag)
    assert changed.json()["status"] == "suspended"
    await operator("PATCH", path, {"status": "active"}, expect=412, if_match=tag)
    await operator("PATCH", path, {"status": "gone"}, expect=422)
    await operator("DELETE", path, expect=204)
    await operator("GET", path, expect=404)
    async with database.platform() as connection:
        for table in ("data_key", "provider_key", "key_version", "pool"):
            assert await connection.fetchval(f"select count(*) from {table}") == 0, table
        last = await connection.fetch("select action from audit_event order by at desc limit 2")
        assert {row["action"] for row in last} == {"tenant.delete", "tenant.shred"}
    shredded = (await operator("GET", "/custody/shredded", expect=200)).json()["items"]
    assert [(each["tenant_id"], each["slug"], each["restored"]) for each in shredded] == [
        (str(acme.tenant_id), "acme", False)
    ]
    assert shredded[0]["done_at"]
    assert shredded[0]["covers_backups"] is False, "its data key was wrapped before the shares were introduced"
    revoked = Revocations()
    await revoked.refresh(database, now=0.0)
    token = Principal(acme.tenant_id, "app", frozenset({"keys:read"}), "jti", 1e12)
    assert revoked.refuses(Traces.of(token))  # by the management API too, which asks for no tenant's status
    await operator("DELETE", f"/tenants/{PLATFORM_TENANT_ID}", expect=409)


async def test_operators_cannot_shut_themselves_out(operator: Api) -> None:
    path = f"/tenants/{PLATFORM_TENANT_ID}"
    refused = (await operator("PATCH", path, {"status": "suspended"}, expect=409)).json()
    assert "no operator could undo that" in refused["detail"]
    assert (await operator("PATCH", path, {"name": "Us"}, expect=200)).json()["status"] == "active"
    for name in ("", "a\n", "x" * 201):
        await operator("PATCH", path, {"name": name}, expect=422)


async def test_only_operators_reach_tenants(client: httpx.AsyncClient, acme: Planted) -> None:
    for scopes in ("pools:read", "platform", " ".join(TENANT_SCOPES)):
        intruder = Api(client, acme.tenant_id, scopes)
        await intruder("GET", "/tenants", expect=403)
        await intruder("POST", "/tenants", {"slug": "x"}, expect=403)
        await intruder("DELETE", f"/tenants/{acme.tenant_id}", expect=403)


async def test_ladders_follow_the_names_of_pools(api: Api) -> None:
    spare = (await api("POST", "/pools", {"name": "spare"}, expect=201)).json()
    ladder = {"fallbacks": [{"pool": "spare", "on": ["outage"]}, {"model": "gpt-4o-mini"}]}
    first = (await api("POST", "/pools", {"name": "first", "settings": ladder}, expect=201)).json()
    await api("PATCH", f"/pools/{spare['id']}", {"name": "reserve"}, expect=200)
    settings = (await api("GET", f"/pools/{first['id']}", expect=200)).json()["settings"]
    assert settings["fallbacks"] == [{"pool": "reserve", "on": ["outage"]}, {"model": "gpt-4o-mini"}]
    refused = await api("DELETE", f"/pools/{spare['id']}", expect=409)
    assert "'first'" in refused.json()["detail"]
    await api("PATCH", f"/pools/{first['id']}", {"settings": {"fallbacks": None}}, expect=200)
    await api("DELETE", f"/pools/{spare['id']}", expect=204)


async def test_pools_live(api: Api) -> None:
    made = await api("POST", "/pools", {"name": "eu", "strategy": "weighted_round_robin"}, expect=201)
    pool = made.json()
    assert (pool["strategy"], pool["is_default"], pool["settings"]) == ("weighted", False, {})
    path = f"/pools/{pool['id']}"
    changes = {"is_default": True, "settings": {"failover": False, "retry": {"max_attempts": 4, "budget_ratio": 0.5}}}
    changed = await api("PATCH", path, changes, expect=200, if_match=made.headers["etag"])
    assert changed.json()["is_default"] is True
    merged = await api("PATCH", path, {"settings": {"retry": {"max_attempts": None}, "failover": None}}, expect=200)
    assert merged.json()["settings"] == {"retry": {"budget_ratio": 0.5}}
    pools = (await api("GET", "/pools", expect=200)).json()["items"]
    assert [(each["name"], each["is_default"]) for each in pools] == [("main", False), ("eu", True)]
    await api("PATCH", path, {"is_default": False}, expect=409)
    await api("PATCH", path, {"name": "main"}, expect=409)
    await api("DELETE", path, expect=412, if_match='"1"')
    await api("DELETE", path, expect=204)
    await api("GET", path, expect=404)


async def test_pages(api: Api) -> None:
    for number in range(5):
        await api("POST", "/pools", {"name": f"p{number}"}, expect=201)
    names, cursor = [], ""
    while True:
        page = (await api("GET", f"/pools?limit=2{cursor}", expect=200)).json()
        assert len(page["items"]) <= 2
        names += [item["name"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert names == ["main", "p0", "p1", "p2", "p3", "p4"]
    await api("GET", "/pools?limit=0", expect=422)
    await api("GET", "/pools?cursor=zzz", expect=422)


async def test_a_key_goes_in_and_never_comes_out(
    api: Api, acme: Planted, database: Connections, data_keys: DataKeys
) -> None:
    path = f"/pools/{acme.pool_id}/keys"
    made = await api("POST", path, key_body(limits={"rpm": 3000}, models=["gpt-*"], weight=50), expect=201)
    key = made.json()
    assert key["current"]["prefix"] == "sk-proj"
    assert len(key["current"]["fingerprint"]) == 16
    shown = [made, await api("GET", path), await api("GET", f"/keys/{key['id']}"), await api("GET", "/audit")]
    shown.append(await api("GET", f"/keys/{key['id']}/versions"))
    shown.append(await api("POST", path, key_body(), expect=409))
    shown.append(await api("POST", path, key_body(name="!"), expect=422))
    for response in shown:
        assert KEY not in response.text
        assert KEY[8:] not in response.text
    async with database.platform() as connection:
        for table in ("key_version", "provider_key", "audit_event", "idempotency_key"):
            assert KEY not in str(await connection.fetch(f"select * from {table}"))
    loaded = await SnapshotLoader(database, data_keys).load(acme.tenant_id)
    assert loaded is not None
    found = {each.name: each for each in loaded.pools[0].keys}["k2"]
    assert found.secret == Secret(KEY)
    quotas = (await api("GET", "/quotas")).json()["items"]
    assert [quota["limits"] for quota in quotas if quota["name"] == "main/k2"] == [{"rpm": 3000}]
    await api("DELETE", f"/keys/{key['id']}", expect=204)
    assert [quota["name"] for quota in (await api("GET", "/quotas")).json()["items"]] == ["org"]


async def test_changing_a_key(api: Api, acme: Planted) -> None:
    path = f"/keys/{acme.key_id}"
    changed = await api("PATCH", path, {"weight": 0, "region": "eu", "max_in_flight": 3, "enabled": False}, expect=200)
    assert (changed.json()["weight"], changed.json()["enabled"]) == (0, False)
    assert changed.headers["etag"] == '"2"'
    cleared = await api("PATCH", path, {"region": None, "max_in_flight": None}, expect=200)
    assert (cleared.json()["region"], cleared.json()["max_in_flight"]) == (None, None)
    quota = (await api("POST", "/quotas", {"name": "q", "provider": "groq"}, expect=201)).json()
    refused = await api("PATCH", path, {"quota_id": quota["id"]}, expect=422)
    assert refused.json()["errors"] == [{"pointer": "/quota_id", "detail": "is a quota of groq"}]


async def test_a_model_familys_limits_are_set_merged_and_reach_the_data_path(
    api: Api, acme: Planted, database: Connections, data_keys: DataKeys
) -> None:
    every = {name: number for number, name in enumerate(("rpm", "tpm", "itpm", "otpm", "rpd", "tpd", "concurrency"), 1)}
    path, limits = f"/quotas/{acme.quota_id}", {**every, "models": {"gpt-4o*": every, "o3": {"concurrency": 2}}}
    await api("PATCH", path, {"limits": limits}, expect=200)
    changed = {"models": {"o3": None, "gpt-4o*": {"rpm": 90, "tpd": None}}}
    shown = (await api("PATCH", path, {"limits": changed}, expect=200)).json()["limits"]
    merged = {**every, "rpm": 90}
    del merged["tpd"]
    assert shown == {**every, "models": {"gpt-4o*": merged}}
    loaded = await SnapshotLoader(database, data_keys).load(acme.tenant_id)
    assert loaded is not None
    (quota,) = (read_quota(each) for pool in loaded.pools for each in pool.quotas if each.id == acme.quota_id)
    assert quota.limits == Limits(**every)
    assert quota.families == {"gpt-4o*": Limits(**merged)}


async def test_a_key_is_never_pointed_elsewhere_by_a_patch(api: Api, acme: Planted) -> None:
    """Whoever may edit keys must not be able to have a stored one sent to a host of theirs."""
    for member in ("base_url", "api_key", "provider", "pool_id"):
        await api("PATCH", f"/keys/{acme.key_id}", {member: "https://evil.example"}, expect=422)


async def test_the_character_nul_is_refused_where_it_cannot_be_stored(api: Api, operator: Api, acme: Planted) -> None:
    webhook = {"name": "hook", "driver": "openai", "config": {"project_id": "a\0"}, "credential": "sk-admin-0123456789"}
    changes: list[tuple[Api, str, str, Any]] = [
        (api, "PATCH", f"/pools/{acme.pool_id}", {"settings": {"model_aliases": {"a\0": "b"}}}),
        (api, "PATCH", f"/quotas/{acme.quota_id}", {"limits": {"models": {"a\0": {"rpm": 1}}}}),
        (api, "POST", "/sources", webhook),
        (operator, "POST", "/tenants", {"slug": "nul", "settings": {"a": "\0"}}),
    ]
    for who, method, path, body in changes:
        refused = (await who(method, path, body, expect=422)).json()
        assert "U+0000" in refused["detail"]
        assert "Take it out" in refused["hint"]


async def test_numbers_that_a_column_cannot_hold_are_refused(api: Api, acme: Planted) -> None:
    path = f"/keys/{acme.key_id}"
    await api("PATCH", path, {"max_in_flight": 2**31}, expect=422)
    await api("POST", f"/pools/{acme.pool_id}/keys", key_body(max_in_flight=10**12), expect=422)
    assert (await api("PATCH", path, {"max_in_flight": 2**31 - 1}, expect=200)).json()["max_in_flight"] == 2**31 - 1


@pytest.mark.parametrize("before", [1, 2])
async def test_no_stored_secret_follows_a_new_base_url(
    api: Api, acme: Planted, database: Connections, data_keys: DataKeys, before: int
) -> None:
    """Rolling back, revoking and the engine's watch would else send an old secret to the new host."""
    path = f"/keys/{acme.key_id}"
    for number in range(1, before):
        await api("POST", f"{path}/rotate", {"api_key": f"{KEY}{number}"}, expect=200)
    elsewhere = {"api_key": NEW_KEY, "base_url": "https://elsewhere.example"}
    moved = await api("POST", f"{path}/rotate", elsewhere, expect=200)
    assert moved.json()["base_url"] == "https://elsewhere.example"
    assert "base URL" in (await api("POST", f"{path}/rollback", {}, expect=409)).json()["hint"]
    await api("POST", f"{path}/versions/{before + 1}/revoke", {}, expect=409)
    async with database.tenant(acme.tenant_id) as connection:
        assert await connection.fetchval("select count(*) from key_version where envelope is not null") == 1
    loaded = await SnapshotLoader(database, data_keys).load(acme.tenant_id)
    assert loaded is not None
    assert [(key.base_url, key.secret) for key in loaded.pools[0].keys] == [
        ("https://elsewhere.example", Secret(NEW_KEY))
    ]
    assert await contradictions(database) == {}
    event = (await api("GET", "/audit?limit=200")).json()["items"][-1]
    assert (event["action"], event["detail"]["base_url"]) == ("key.rotate", "https://elsewhere.example")
    same = await api("POST", f"{path}/rotate", {"api_key": KEY, "base_url": "https://elsewhere.example"}, expect=200)
    assert same.json()["current"]["number"] == before + 2
    assert (await api("POST", f"{path}/rollback", {}, expect=200)).json()["current"]["number"] == before + 1


async def test_rotation_with_a_supplied_secret(
    api: Api, acme: Planted, database: Connections, data_keys: DataKeys
) -> None:
    path = f"/keys/{acme.key_id}"
    rotated = await api("POST", f"{path}/rotate", {"api_key": NEW_KEY}, expect=200, idempotency_key="r1")
    assert (rotated.json()["current"]["number"], rotated.json()["current"]["state"]) == (2, "current")
    again = await api("POST", f"{path}/rotate", {"api_key": NEW_KEY}, expect=200, idempotency_key="r1")
    assert again.json() == rotated.json()
    versions = (await api("GET", f"{path}/versions")).json()["items"]
    assert [(each["number"], each["state"]) for each in versions] == [(2, "current"), (1, "draining")]
    loaded = await SnapshotLoader(database, data_keys).load(acme.tenant_id)
    assert loaded is not None
    assert (loaded.pools[0].keys[0].secret, loaded.pools[0].keys[0].version) == (Secret(NEW_KEY), 2)


async def test_rotations_at_once_leave_one_current(api: Api, acme: Planted) -> None:
    path = f"/keys/{acme.key_id}"
    answers = await asyncio.gather(*(api("POST", f"{path}/rotate", {"api_key": f"{NEW_KEY}{n}"}) for n in range(4)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    versions = (await api("GET", f"{path}/versions")).json()["items"]
    assert [each["state"] for each in versions].count("current") == 1
    assert len(versions) == 1 + sum(answer.status_code == 200 for answer in answers)


async def test_sources_and_minted_rotation(api: Api, acme: Planted, database: Connections) -> None:
    credential = "sk-admin-0123456789abcdef"
    body = {"name": "admin", "driver": "openai", "config": {"project_id": "p1"}, "credential": credential}
    made = await api("POST", "/sources", body, expect=201)
    assert made.json()["has_credential"] is True
    for response in (made, await api("GET", "/sources"), await api("GET", f"/sources/{made.json()['id']}")):
        assert credential not in response.text
    path = f"/keys/{acme.key_id}"
    await api("POST", f"{path}/rotate", {}, expect=409)
    schedule = {"cron": "0 3 * * sun", "time_zone": "Europe/Zurich", "jitter_s": 600}
    wanted = {"source_id": made.json()["id"], "settings": {"schedule": schedule, "drain_s": 60}}
    planned = (await api("PUT", f"{path}/rotation", wanted, expect=200)).json()
    assert planned["due_at"] is not None
    assert planned["settings"] == {"schedule": schedule, "drain_s": 60.0}
    assert (await api("GET", f"{path}/rotation", expect=200)).json() == planned
    await api("POST", f"{path}/rotate", {}, expect=202, idempotency_key="m1")
    await api("POST", f"{path}/rotate", {}, expect=202, idempotency_key="m1")
    await api("POST", f"{path}/rotate", {}, expect=409)
    versions = (await api("GET", f"{path}/versions")).json()["items"]
    assert [(each["number"], each["state"]) for each in versions] == [(2, "pending"), (1, "current")]
    await api("DELETE", f"/sources/{made.json()['id']}", expect=409)
    await api("POST", f"{path}/versions/2/revoke", {}, expect=200)
    async with database.platform() as connection:
        for table in ("key_source", "audit_event", "idempotency_key"):
            assert credential not in str(await connection.fetch(f"select * from {table}"))


async def test_a_rotation_that_is_to_begin_later(api: Api, acme: Planted) -> None:
    path = f"/keys/{acme.key_id}"
    later = (datetime.now(UTC) + timedelta(days=2)).isoformat()
    body = {"api_key": NEW_KEY, "at": later}
    planned = await api("POST", f"{path}/rotate", body, expect=202, idempotency_key="later")
    assert planned.json()["current"]["number"] == 1
    await api("POST", f"{path}/rotate", body, expect=202, idempotency_key="later")
    waiting = (await api("GET", f"{path}/versions")).json()["items"]
    assert [(each["number"], each["state"]) for each in waiting] == [(2, "created"), (1, "current")]
    assert datetime.fromisoformat(waiting[0]["step_at"]) == datetime.fromisoformat(later)
    await api("POST", f"{path}/rotate", {"api_key": NEW_KEY}, expect=409)
    await api("POST", f"{path}/versions/2/revoke", {}, expect=200)
    await api("POST", f"{path}/rotate", {"api_key": NEW_KEY}, expect=200)


@pytest.mark.parametrize("own", [True, False])
async def test_a_repeat_after_the_moment_of_a_rotation_is_told_what_the_first_was(
    api: Api, acme: Planted, now: Now, own: bool
) -> None:
    """Its first answer was lost: refused, its sender would believe that nothing is under way."""
    path = f"/keys/{acme.key_id}"
    body = {"at": (now() + timedelta(minutes=1)).isoformat()} | ({"api_key": NEW_KEY} if own else {})
    if not own:
        hook = {"name": "s", "driver": "openai", "config": {"project_id": "p"}, "credential": "sk-admin-0123456789"}
        source = (await api("POST", "/sources", hook, expect=201)).json()["id"]
        await api("PUT", f"{path}/rotation", {"source_id": source}, expect=200)
    first = await api("POST", f"{path}/rotate", body, expect=202, idempotency_key="later")
    now.ahead = timedelta(hours=1)
    again = await api("POST", f"{path}/rotate", body, expect=202, idempotency_key="later")
    assert (again.json(), again.headers["idempotent-replayed"]) == (first.json(), "true")
    await api("POST", f"{path}/rotate", body, expect=422)


@pytest.mark.parametrize(
    ("at", "says"),
    [
        ("2026-01-05T12:00:00Z", "later than now"),
        ("2226-01-05T12:00:00Z", "366 days"),
        ("2226-01-05T12:00:00", "time zone"),
    ],
)
async def test_moments_that_cannot_be_meant(at: str, says: str, api: Api, acme: Planted) -> None:
    refused = await api("POST", f"/keys/{acme.key_id}/rotate", {"api_key": NEW_KEY, "at": at}, expect=422)
    assert refused.json()["errors"][0]["pointer"] == "/at"
    assert says in refused.json()["errors"][0]["detail"]


async def test_every_change_of_versions_can_be_repeated_safely(api: Api, acme: Planted) -> None:
    path = f"/keys/{acme.key_id}"
    await api("POST", f"{path}/rotate", {"api_key": NEW_KEY}, expect=200, idempotency_key="a")
    for call in (f"{path}/rollback", f"{path}/versions/2/revoke"):
        first = await api("POST", call, {}, expect=200, idempotency_key=call)
        again = await api("POST", call, {}, expect=200, idempotency_key=call)
        assert again.json() == first.json()
        assert again.headers["idempotent-replayed"] == "true"
    events = [event["action"] for event in (await api("GET", "/audit?limit=200")).json()["items"]]
    assert events.count("key.rollback") == events.count("key.revoke") == 1


async def test_a_pool_that_grows_by_itself(api: Api, acme: Planted) -> None:
    path = f"/pools/{acme.pool_id}/provisioning"
    await api("GET", path, expect=404)
    body = {"name": "admin", "driver": "openai", "config": {"project_id": "p1"}, "credential": "sk-admin-0123456789"}
    source = (await api("POST", "/sources", body, expect=201)).json()
    wanted = {"key": {"provider": "openai", "limits": {"rpm": 100}}, "max_keys": 5}
    made = await api("PUT", path, {"source_id": source["id"], "settings": wanted}, expect=200)
    assert made.json()["settings"] == wanted
    assert (made.json()["serving"], made.json()["utilisation"], made.json()["error"]) == (1, 0.0, None)
    await api("DELETE", f"/sources/{source['id']}", expect=409)
    await api("PUT", path, {"source_id": source["id"], "settings": {**wanted, "min_keys": 2}}, expect=200)
    assert (await api("GET", path, expect=200)).json()["settings"]["min_keys"] == 2
    swinging = {**wanted, "grow_above": 0.2, "shrink_below": 0.5}
    refused = await api("PUT", path, {"source_id": source["id"], "settings": swinging}, expect=422)
    assert refused.json()["errors"][0]["pointer"] == "/settings/shrink_below"
    by_hand = (await api("POST", "/sources", {"name": "m", "driver": "manual"}, expect=201)).json()
    await api("PUT", path, {"source_id": by_hand["id"], "settings": wanted}, expect=422)
    await api("DELETE", path, expect=204)
    await api("GET", path, expect=404)
    events = [event["action"] for event in (await api("GET", "/audit?limit=200")).json()["items"]]
    assert events.count("provisioning.set") == 2
    assert "provisioning.end" in events


async def test_the_etag_of_what_was_read_guards_a_change_of_it(api: Api, acme: Planted) -> None:
    """Of a pool's growth it is not the pool's."""
    body = {"name": "s", "driver": "openai", "config": {"project_id": "p1"}, "credential": "sk-admin-0123456789"}
    source = (await api("POST", "/sources", body, expect=201)).json()["id"]
    growth = {"source_id": source, "settings": {"key": {"provider": "openai"}, "max_keys": 5}}
    rotation = {"source_id": source}
    pool, key = f"/pools/{acme.pool_id}/provisioning", f"/keys/{acme.key_id}/rotation"
    await api("PUT", pool, growth, expect=412, if_match='"1"')
    await api("PUT", pool, growth, expect=200)
    for path, change in ((pool, growth), (key, rotation)):
        first = (await api("GET", path, expect=200)).headers["etag"]
        second = (await api("PUT", path, change, expect=200, if_match=first)).headers["etag"]
        assert first != second
        assert (await api("GET", path, expect=200)).headers["etag"] == second
        await api("PUT", path, change, expect=412, if_match=first)
        await api("PUT", path, change, expect=200, if_match=second)


async def test_an_account_whose_two_keys_take_turns_is_one_keys_alone(api: Api, acme: Planted) -> None:
    config = {"user_name": "bedrock", "in_use": "none"}
    credential = "AKIA0123456789ABCDEF:secret-0123456789"
    body = {"name": "iam", "driver": "aws", "config": config, "credential": credential}
    source = (await api("POST", "/sources", body, expect=201)).json()["id"]
    for _ in range(2):
        await api("PUT", f"/keys/{acme.key_id}/rotation", {"source_id": source}, expect=200)
    await api("PUT", f"/pools/{acme.pool_id}/rotation", {"source_id": source}, expect=200)
    entry = {"name": "second", "provider": "openai", "source_id": source}
    refused = await api("POST", f"/pools/{acme.pool_id}/keys", entry, expect=409)
    assert "take turns" in refused.json()["detail"]
    await api("POST", f"/pools/{acme.pool_id}/keys", {**entry, "api_key": NEW_KEY}, expect=422)
    await api(
        "POST", f"/pools/{acme.pool_id}/keys", {"name": "k2", "provider": "openai", "api_key": NEW_KEY}, expect=201
    )
    await api("PUT", f"/pools/{acme.pool_id}/rotation", {"source_id": source}, expect=409)
    wrong = {**body, "name": "other", "credential": "not-an-access-key"}
    assert (await api("POST", "/sources", wrong, expect=422)).json()["errors"][0]["pointer"] == "/credential"


async def test_roll_back_and_revoke(api: Api, acme: Planted) -> None:
    path = f"/keys/{acme.key_id}"
    await api("POST", f"{path}/rollback", {}, expect=409)
    await api("POST", f"{path}/versions/1/revoke", {}, expect=409)
    await api("POST", f"{path}/rotate", {"api_key": NEW_KEY}, expect=200)
    back = await api("POST", f"{path}/rollback", {}, expect=200)
    assert back.json()["current"]["number"] == 1
    gone = await api("POST", f"{path}/versions/1/revoke", {}, expect=200)
    assert gone.json()["current"]["number"] == 2
    forced = await api("POST", f"{path}/versions/2/revoke", {"force": True}, expect=200)
    assert forced.json()["current"] is None
    await api("POST", f"{path}/versions/9/revoke", {}, expect=404)


async def test_import_the_familiar_shape(api: Api, database: Connections, data_keys: DataKeys, acme: Planted) -> None:
    document = {
        "name": "imported",
        "providers": [
            {"name": "openai-primary", "api_key": KEY, "weight": 50, "rate_limit": 3000},
            {
                "name": "azure-eu",
                "api_key": "a" * 32,
                "weight": 30,
                "rate_limit": 2000,
                "base_url": "https://x.example",
            },
            {"name": "anthropic-backup", "api_key": "sk-ant-0123456789", "weight": 20, "rate_limit": 1000},
        ],
        "strategy": "weighted_round_robin",
        "failover": True,
    }
    made = await api("POST", "/pools/import", document, expect=201)
    assert made.json()["strategy"] == "weighted"
    assert [(key["name"], key["provider"], key["weight"]) for key in made.json()["keys"]] == [
        ("openai-primary", "openai", 50),
        ("azure-eu", "azure", 30),
        ("anthropic-backup", "anthropic", 20),
    ]
    assert KEY not in made.text
    loaded = await SnapshotLoader(database, data_keys).load(acme.tenant_id)
    assert loaded is not None
    pool = {each.name: each for each in loaded.pools}["imported"]
    assert [quota.limits for quota in pool.quotas] == [{"rpm": 3000}, {"rpm": 2000}, {"rpm": 1000}]
    document["providers"] = [{"name": "x", "api_key": KEY}, {"name": "openai", "api_key": "$KEY"}]
    refused = await api("POST", "/pools/import", document | {"name": "second"}, expect=422)
    assert {each["pointer"] for each in refused.json()["errors"]} == {"/providers/1/api_key"}
    assert "second" not in (await api("GET", "/pools")).text


async def test_keys_of_an_imported_file_share_the_quota_that_they_name(
    api: Api, database: Connections, data_keys: DataKeys, acme: Planted
) -> None:
    def entry(name: str, secret: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "api_key": secret, "provider": "openai", "quota": "shared-org", **more}

    keys = [entry("a", KEY, rate_limit={"rpm": 9, "models": {"o3": {"rpm": 2}}}), entry("b", NEW_KEY)]
    await api("POST", "/pools/import", {"name": "one", "providers": keys}, expect=201)
    again = {"name": "two", "providers": [entry("c", KEY + "3")]}
    await api("POST", "/pools/import", again, expect=201)
    loaded = await SnapshotLoader(database, data_keys).load(acme.tenant_id)
    assert loaded is not None
    pools = {each.name: each for each in loaded.pools}
    assert len({key.quota_id for name in ("one", "two") for key in pools[name].keys}) == 1
    assert [dict(each.limits) for each in pools["two"].quotas] == [{"rpm": 9, "models": {"o3": {"rpm": 2}}}]
    other = {"name": "three", "providers": [entry("x", KEY + "4"), entry("d", KEY + "5", rate_limit=10)]}
    refused = await api("POST", "/pools/import", other, expect=422)
    assert [each["pointer"] for each in refused.json()["errors"]] == ["/providers/0/rate_limit"]
    assert "three" not in (await api("GET", "/pools")).text


async def test_another_tenants_things_do_not_exist(client: httpx.AsyncClient, acme: Planted, plant: Plant) -> None:
    other = Api(client, (await plant("other")).tenant_id)
    for method, path, body in (
        ("GET", f"/pools/{acme.pool_id}", None),
        ("PATCH", f"/pools/{acme.pool_id}", {"strategy": "round_robin"}),
        ("DELETE", f"/pools/{acme.pool_id}", None),
        ("GET", f"/pools/{acme.pool_id}/keys", None),
        ("POST", f"/pools/{acme.pool_id}/keys", key_body()),
        ("GET", f"/keys/{acme.key_id}", None),
        ("PATCH", f"/keys/{acme.key_id}", {"weight": 2}),
        ("DELETE", f"/keys/{acme.key_id}", None),
        ("GET", f"/keys/{acme.key_id}/versions", None),
        ("POST", f"/keys/{acme.key_id}/rotate", {"api_key": NEW_KEY}),
        ("GET", f"/quotas/{acme.quota_id}", None),
        ("PATCH", f"/quotas/{acme.quota_id}", {"limits": {"rpm": 1}}),
        ("DELETE", f"/quotas/{acme.quota_id}", None),
    ):
        foreign = await other(method, path, body, expect=404)
        unknown = await other(
            method,
            path.replace(str(acme.pool_id), str(uuid7()))
            .replace(str(acme.key_id), str(uuid7()))
            .replace(str(acme.quota_id), str(uuid7())),
            body,
        )
        assert foreign.json() | {"request_id": ""} == unknown.json() | {"request_id": ""}, (method, path)
    quota_of_another = key_body(quota_id=str(acme.quota_id))
    pool = (await other("GET", "/pools")).json()["items"][0]
    await other("POST", f"/pools/{pool['id']}/keys", quota_of_another, expect=404)


SCOPES = (
    ("pools:read", "POST", "/pools", 403),
    ("pools:read", "GET", "/pools", 200),
    ("keys:read", "POST", "/keys/{key}/rotate", 403),
    ("keys:write", "POST", "/keys/{key}/rotate", 403),
    ("keys:rotate", "DELETE", "/keys/{key}", 403),
    ("pools:write", "POST", "/pools/import", 403),
    ("inference", "GET", "/audit", 403),
)


async def test_scopes(client: httpx.AsyncClient, acme: Planted) -> None:
    for scopes, method, path, status in SCOPES:
        caller_ = Api(client, acme.tenant_id, scopes)
        await caller_(method, path.format(key=acme.key_id), {} if method == "POST" else None, expect=status)


WRONG: tuple[tuple[str, str, Any, str], ...] = (
    ("POST", "/pools", {"name": "has space"}, "/name"),
    ("POST", "/pools", {"name": "x", "strategy": "best"}, "/strategy"),
    ("POST", "/pools", {"name": "x", "settings": {"fallbacks": [{"pool": "x"}]}}, "/settings/fallbacks/0"),
    ("POST", "/pools", {"name": "x", "settings": {"fallbacks": [{}]}}, "/settings/fallbacks/0"),
    ("POST", "/pools", {"name": "x", "settings": {"fallbacks": [{"pool": "no"}]}}, "/settings/fallbacks/0/pool"),
    (
        "POST",
        "/pools",
        {"name": "x", "settings": {"fallbacks": [{"pool": "main"}, {"pool": "main"}]}},
        "/settings/fallbacks/1",
    ),
    (
        "POST",
        "/pools",
        {"name": "x", "settings": {"fallbacks": [{"models": {"m": "m"}}]}},
        "/settings/fallbacks/0/models",
    ),
    (
        "POST",
        "/pools",
        {"name": "x", "settings": {"fallbacks": [{"model": "m", "on": ["luck"]}]}},
        "/settings/fallbacks/0/on/0",
    ),
    ("POST", "/quotas", {"name": "x", "provider": "acme-llm"}, "/provider"),
    ("POST", "/pools/{pool}/keys", key_body(api_key="sk-..."), "/api_key"),
    ("POST", "/pools/{pool}/keys", key_body(provider="azure"), "/base_url"),
    ("POST", "/pools/{pool}/keys", key_body(base_url="http://169.254.169.254/"), "/base_url"),
    ("POST", "/pools/{pool}/keys", key_body(models=["ok", ""]), "/models/1"),
    ("POST", "/keys/{key}/rotate", {"api_key": "Bearer x"}, "/api_key"),
    ("POST", "/keys/{key}/rotate", {"base_url": "https://evil.example"}, "/base_url"),
    ("PUT", "/keys/{key}/rotation", {"settings": {"schedule": {"cron": "x"}}}, "/settings/schedule/cron"),
    ("PUT", "/keys/{key}/rotation", {"settings": {"schedule": {"interval_s": 86400}}}, "/source_id"),
    ("PUT", "/keys/{key}/rotation", {"settings": {"probes": 0}}, "/settings/probes"),
    ("POST", "/sources", {"name": "s", "driver": "openai", "config": {}}, "/config"),
    ("POST", "/sources", {"name": "s", "driver": "carrier-pigeon"}, "/driver"),
    (
        "POST",
        "/sources",
        {"name": "s", "driver": "webhook", "config": {"url": "http://169.254.169.254/"}, "credential": "c" * 32},
        "/config/url",
    ),
    ("PATCH", "/pools/{pool}", {"settings": {"retry": {"max_attempts": 99}}}, "/settings/retry/max_attempts"),
    ("PATCH", "/pools/{pool}", {"settings": {"failovr": True}}, "/settings"),
    ("PATCH", "/quotas/{quota}", {"limits": {"rpm": -1}}, "/limits/rpm"),
    ("PATCH", "/quotas/{quota}", {"limits": {"models": {"gpt-4o": {"rpm": 0}}}}, "/limits/models/*/rpm"),
    ("PATCH", "/quotas/{quota}", {"limits": {"models": {"": {"rpm": 1}}}}, "/limits/models"),
)


async def test_what_is_wrong_is_said(api: Api, acme: Planted) -> None:
    for method, path, body, pointer in WRONG:
        where = path.format(pool=acme.pool_id, key=acme.key_id, quota=acme.quota_id)
        problem = (await api(method, where, body, expect=422)).json()
        assert pointer in {each["pointer"] for each in problem["errors"]}, (where, problem)
        assert problem["hint"]


async def test_every_change_is_in_the_audit_trail(api: Api, acme: Planted, database: Connections) -> None:
    pool = (await api("POST", "/pools", {"name": "p"}, expect=201)).json()
    await api("PATCH", f"/pools/{pool['id']}", {"strategy": "round_robin"}, expect=200)
    key = (await api("POST", f"/pools/{pool['id']}/keys", key_body(), expect=201)).json()
    await api("POST", f"/keys/{key['id']}/rotate", {"api_key": NEW_KEY}, expect=200)
    await api("DELETE", f"/keys/{key['id']}", expect=204)
    await api("DELETE", f"/pools/{pool['id']}", expect=204)
    events = (await api("GET", "/audit", expect=200)).json()["items"]
    assert [event["action"] for event in events] == [
        "pool.create",
        "pool.change",
        "key.create",
        "key.rotate",
        "key.delete",
        "pool.delete",
    ]
    assert {event["actor"] for event in events} == {"client-1"}
    verdict = (await api("GET", "/audit/verify", expect=200)).json()
    assert (verdict["intact"], verdict["events"]) == (True, 6)
    assert verdict["last_hash"] == events[-1]["hash"]


async def test_a_repeated_post_does_its_work_once_also_at_once(api: Api) -> None:
    answers = await asyncio.gather(
        *(api("POST", "/pools", {"name": "once"}, expect=201, idempotency_key="k") for _ in range(3))
    )
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert json.dumps(answers[0].json()) == json.dumps(answers[1].json())
    await api("POST", "/pools", {"name": "x"}, expect=422, idempotency_key="k" * 300)


async def test_operators_look_after_key_encryption_keys(operator: Api, api: Api, acme: Planted) -> None:
    listed = (await operator("GET", "/custody", expect=200)).json()
    assert listed["items"] == [{"uri": listed["current"], "role": "wraps", "data_keys": 1, "status": "enabled"}]
    assert (listed["spare"], listed["shares"]) == (None, "memory")
    done = {"done": 0, "left": 0, "failed": {}, "next_cursor": None, "shredded": {}, "unchecked": 0}
    assert (await operator("POST", "/custody/rewrap", {}, expect=200)).json() == done
    assert (await operator("POST", "/custody/verify", {}, expect=200)).json() == done | {"done": 2}
    moved = await operator("POST", "/custody/reencrypt", {"tenant_id": str(acme.tenant_id)}, expect=200)
    assert moved.json() == done | {"done": 1}
    assert (await operator("GET", "/custody", expect=200)).json()["items"][0]["data_keys"] == 2
    await operator("POST", "/custody/verify", {"cursor": "nonsense:1"}, expect=422)
    await operator("POST", "/custody/reencrypt", {"tenant_id": str(uuid7())}, expect=404)
    for method, path in (("GET", "/custody"), ("GET", "/custody/shredded"), ("POST", "/custody/verify")):
        assert (await api(method, path, None if method == "GET" else {})).status_code == 403


async def test_the_name_of_a_renamed_key_is_free_again(api: Api) -> None:
    pool = (await api("POST", "/pools", {"name": "fresh"}, expect=201)).json()["id"]
    key = (await api("POST", f"/pools/{pool}/keys", key_body(), expect=201)).json()
    await api("PATCH", f"/keys/{key['id']}", {"name": "renamed"}, expect=200)
    second = (await api("POST", f"/pools/{pool}/keys", key_body(), expect=201)).json()
    assert second["quota_id"] != key["quota_id"]
    clash = await api("POST", f"/pools/{pool}/keys", key_body(), expect=409)
    assert clash.json()["detail"] == "The pool has a key with this name."


async def test_the_name_of_a_renamed_pool_is_free_again(api: Api) -> None:
    pool = (await api("POST", "/pools", {"name": "fresh"}, expect=201)).json()["id"]
    await api("POST", f"/pools/{pool}/keys", key_body(), expect=201)
    await api("PATCH", f"/pools/{pool}", {"name": "stale"}, expect=200)
    again = (await api("POST", "/pools", {"name": "fresh"}, expect=201)).json()["id"]
    await api("POST", f"/pools/{again}/keys", key_body(), expect=201)


async def test_a_dry_run_changes_nothing(api: Api, acme: Planted) -> None:
    path = f"/keys/{acme.key_id}"
    before = (await api("GET", f"{path}/versions", expect=200)).json()
    plan = (await api("POST", f"{path}/rotate/dry-run", {"api_key": NEW_KEY}, expect=200)).json()
    assert (plan["number"], plan["replaces"], plan["secret"], plan["probe"]) == (2, 1, "supplied", "refused")
    assert NEW_KEY not in json.dumps(plan)
    await api("POST", f"{path}/rotate/dry-run", {}, expect=409)
    await api("POST", f"{path}/rotate/dry-run", {"api_key": "Bearer x"}, expect=422)
    assert (await api("GET", f"{path}/versions", expect=200)).json() == before


async def test_a_schedule_for_every_key_of_a_pool(api: Api, acme: Planted) -> None:
    await api("POST", f"/pools/{acme.pool_id}/keys", key_body(), expect=201)
    config = {"name": "admin", "driver": "openai", "config": {"project_id": "p"}, "credential": "sk-admin-0123456789"}
    source = (await api("POST", "/sources", config, expect=201)).json()
    wanted = {"source_id": source["id"], "settings": {"schedule": {"interval_s": 86400, "jitter_s": 3600}}}
    set_for = (await api("PUT", f"/pools/{acme.pool_id}/rotation", wanted, expect=200)).json()["keys"]
    assert {key["name"] for key in set_for} == {"k1", "k2"}
    assert len({key["due_at"] for key in set_for}) == 2
    for key in set_for:
        assert (await api("GET", f"/keys/{key['id']}/rotation", expect=200)).json()["due_at"] == key["due_at"]
    await api("PUT", f"/pools/{acme.pool_id}/rotation", wanted | {"source_id": None}, expect=422)
    await api("PUT", f"/pools/{uuid7()}/rotation", wanted, expect=404)


async def test_a_page_of_the_trail_follows_an_event_that_is_there(api: Api) -> None:
    """An empty page would say that the trail ends, to whoever goes on from an event that a restore has lost."""
    for n in range(3):
        await api("POST", "/pools", {"name": f"p{n}"}, expect=201)
    first = (await api("GET", "/audit?limit=2", expect=200)).json()
    assert len((await api("GET", f"/audit?cursor={first['next_cursor']}", expect=200)).json()["items"]) >= 1
    refused = await api("GET", f"/audit?cursor={encode_cursor(uuid7())}", expect=422)
    assert refused.json()["errors"] == [{"pointer": "/cursor", "detail": "is not a cursor of this list"}]


async def test_an_export_is_checked_without_the_gateway_and_the_gateway_against_it(
    api: Api, acme: Planted, database: Connections, test_database: TestDatabase
) -> None:
    for name in ("p1", "p2"):
        await api("POST", "/pools", {"name": name}, expect=201)
    exported = await api("GET", "/audit/export", expect=200)
    assert exported.headers["content-type"].startswith("application/x-ndjson")
    lines = exported.text.splitlines()
    head = check_export(lines)
    assert (head["tenant_id"], head["seq"]) == (str(acme.tenant_id), 2)
    known = f"/audit/verify?known_seq={head['seq']}&known_hash={head['hash']}"
    await api("POST", "/pools", {"name": "p3"}, expect=201)
    assert (await api("GET", known, expect=200)).json()["intact"] is True
    for broken in (lines[1:], [lines[0], lines[2]], lines[:2], [lines[0].replace("p1", "p9"), *lines[1:]], ["x"], []):
        with pytest.raises(Fault):
            check_export(broken)
    await api("GET", "/audit/verify?known_seq=2", expect=422)

    # The database comes back from a backup that was made before: whole by itself, and shorter than what is known.
    owner = await asyncpg.connect(test_database.owner_url)
    await owner.execute("delete from audit_event where seq > 1")
    assert (await api("GET", "/audit/verify", expect=200)).json()["intact"] is True
    verdict = (await api("GET", known, expect=200)).json()
    assert (verdict["intact"], verdict["broken_at"]) == (False, 2)
    assert "cut off or put back" in verdict["reason"]
    # Then it lives on: the same number is another event.
    await api("POST", "/pools", {"name": "p4"}, expect=201)
    verdict = (await api("GET", known, expect=200)).json()
    assert (verdict["intact"], verdict["broken_at"]) == (False, 2)
    await owner.execute("update audit_event set actor = 'someone else' where seq = 1")
    assert (await api("GET", "/audit/verify", expect=200)).json()["broken_at"] == 1
    await owner.close()


async def test_rows_that_are_put_back_in_sql_contradict_the_trail(
    api: Api, acme: Planted, database: Connections, data_keys: DataKeys
) -> None:
    """An old version's whole row opens; the audit trail says that another one serves, or that it was revoked."""
    path = f"/pools/{acme.pool_id}/keys"
    key = (await api("POST", path, key_body(), expect=201)).json()["id"]
    await api("POST", f"/keys/{key}/rotate", {"api_key": NEW_KEY}, expect=200)
    assert await contradictions(database) == {}
    swap = "update key_version set state = $3 where key_id = $1 and number = $2"

    async def put(*states: tuple[int, str]) -> None:
        async with database.platform() as connection:
            for number, state in states:
                await connection.execute(swap, UUID(key), number, state)

    await put((2, "disabled"), (1, "current"))
    assert list((await contradictions(database)).values()) == [
        "version 1 is in service, and by audit event 2 it should be 2"
    ]
    [checked] = [step async for step in verify_everything(database, data_keys)][-1:]
    assert f"history:{key}" in checked.failed
    await put((1, "draining"), (2, "current"))
    assert await contradictions(database) == {}
    await api("POST", f"/keys/{key}/rollback", {}, expect=200)
    assert await contradictions(database) == {}
    await api("POST", f"/keys/{key}/versions/2/revoke", {}, expect=200)
    assert await contradictions(database) == {}
    await put((2, "disabled"))
    assert list((await contradictions(database)).values()) == ["version 2 is disabled, and audit event 4 revoked it"]
