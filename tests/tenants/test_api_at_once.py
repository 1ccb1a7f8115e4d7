"""Changes at once in the management API: each is made or refused with a sentence, and none waits for good."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx

from auth.storage import Connections
from tests.tenants.conftest import Planted
from tests.tenants.test_api import KEY, Api, acme, api, client, key_body, now

__all__ = ["acme", "api", "client", "now"]


async def at_once(*calls: Any) -> Counter[int]:
    """Send all and count the statuses of the answers."""
    answers: list[httpx.Response] = await asyncio.gather(*calls)
    assert all(answer.status_code < 500 for answer in answers), [answer.text for answer in answers]
    return Counter(answer.status_code for answer in answers)


async def test_every_pool_is_made_the_default_at_once(api: Api, acme: Planted) -> None:
    made = [(await api("POST", "/pools", {"name": f"p{n}"}, expect=201)).json()["id"] for n in range(4)]
    pools = [str(acme.pool_id), *made]
    for _ in range(3):
        calls = [api("PATCH", f"/pools/{each}", {"is_default": True}) for each in pools for _ in range(3)]
        assert await at_once(*calls) == {200: len(calls)}
        found = (await api("GET", "/pools")).json()["items"]
        assert [each["is_default"] for each in found].count(True) == 1


async def test_pools_that_fall_back_to_each_other_are_renamed_at_once(api: Api) -> None:
    paths = [f"/pools/{(await api('POST', '/pools', {'name': name}, expect=201)).json()['id']}" for name in ("a", "b")]
    for path, other in zip(paths, ("b", "a"), strict=True):
        await api("PATCH", path, {"settings": {"fallbacks": [{"pool": other}]}}, expect=200)
    for turn in range(3):
        calls = [
            api("PATCH", path, {"name": f"{first}-{turn}-{n}"})
            for n in range(6)
            for path, first in zip(paths, "ab", strict=True)
        ]
        assert await at_once(*calls) == {200: len(calls)}
    a, b = [(await api("GET", path)).json() for path in paths]
    assert (a["settings"]["fallbacks"], b["settings"]["fallbacks"]) == ([{"pool": b["name"]}], [{"pool": a["name"]}])


async def test_a_pool_goes_while_another_comes_to_fall_back_to_it(api: Api) -> None:
    for turn in range(4):
        gone = (await api("POST", "/pools", {"name": f"gone-{turn}"}, expect=201)).json()["id"]
        kept = (await api("POST", "/pools", {"name": f"kept-{turn}"}, expect=201)).json()["id"]
        wanted = {"settings": {"fallbacks": [{"pool": f"gone-{turn}"}]}}
        await at_once(api("PATCH", f"/pools/{kept}", wanted), api("DELETE", f"/pools/{gone}"))
        names = {each["name"] for each in (await api("GET", "/pools?limit=200")).json()["items"]}
        fallbacks = (await api("GET", f"/pools/{kept}")).json()["settings"].get("fallbacks", [])
        assert {each["pool"] for each in fallbacks} <= names


async def test_a_source_is_deleted_once_and_takes_its_references_along(
    api: Api, acme: Planted, database: Connections
) -> None:
    body = {"name": "s", "driver": "openai", "config": {"project_id": "p1"}, "credential": "sk-admin-0123456789"}
    source = (await api("POST", "/sources", body, expect=201)).json()["id"]
    path = f"/keys/{acme.key_id}"
    await api("PUT", f"{path}/rotation", {"source_id": source}, expect=200)
    await api("POST", f"{path}/rotate", {"api_key": KEY, "provider_ref": "theirs"}, expect=200)
    await api("DELETE", f"/sources/{source}", expect=409)
    assert (await api("GET", f"{path}/versions")).json()["items"][0]["provider_ref"] == "theirs"
    await api("PUT", f"{path}/rotation", {}, expect=200)
    assert await at_once(*(api("DELETE", f"/sources/{source}") for _ in range(4))) == {204: 1, 404: 3}
    assert (await api("GET", f"{path}/versions")).json()["items"][0]["provider_ref"] is None
    async with database.tenant(acme.tenant_id) as connection:
        assert await connection.fetchval("select count(*) from audit_event where action = 'source.delete'") == 1


async def test_keys_own_quotas_go_while_other_keys_are_put_on_them(api: Api, acme: Planted) -> None:
    path = f"/pools/{acme.pool_id}/keys"
    for turn in range(3):
        owns = [(await api("POST", path, key_body(name=f"own-{turn}-{n}"), expect=201)).json() for n in range(4)]
        more = [
            api("POST", path, key_body(name=f"more-{turn}-{n}-{again}", api_key=f"{KEY}{n}", quota_id=own["quota_id"]))
            for n, own in enumerate(owns)
            for again in range(3)
        ]
        counted = await at_once(*(api("DELETE", f"/keys/{own['id']}") for own in owns), *more)
        assert counted[204] == len(owns)
        assert set(counted) <= {204, 201, 404, 409}
        used = {each["quota_id"] for each in (await api("GET", f"{path}?limit=200")).json()["items"]}
        quotas = (await api("GET", "/quotas?limit=200")).json()["items"]
        assert {each["id"] for each in quotas if "/" in each["name"]} == {
            each for each in used if each != str(acme.quota_id)
        }


async def test_a_pool_goes_while_keys_are_added_to_it(api: Api) -> None:
    for turn in range(3):
        pool = (await api("POST", "/pools", {"name": f"going-{turn}"}, expect=201)).json()["id"]
        path = f"/pools/{pool}/keys"
        first = (await api("POST", path, key_body(name="first"), expect=201)).json()
        bodies = [key_body(name=f"more-{n}", api_key=f"{KEY}{n}", quota_id=first["quota_id"]) for n in range(4)]
        counted = await at_once(api("DELETE", f"/pools/{pool}"), *(api("POST", path, body) for body in bodies))
        assert counted[204] == 1
        assert set(counted) <= {204, 201, 404, 409}
        quotas = {each["id"] for each in (await api("GET", "/quotas?limit=200")).json()["items"]}
        assert first["quota_id"] not in quotas
