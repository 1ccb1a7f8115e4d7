"""A POST that is sent twice with one Idempotency-Key makes one thing, and no copy of its secret is kept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.auth.conftest import World

CLIENT = {"name": "app", "scopes": ["inference"]}
TOKEN = {"name": "customer", "expires_in_s": 3600, "scopes": ["inference"]}


@pytest.mark.parametrize(
    ("path", "body", "secret"),
    [("/api/v1/clients", CLIENT, "client_secret"), ("/api/v1/tokens", TOKEN, "access_token")],
)
async def test_a_repeat_gets_the_first_answer_without_its_secret(
    world: World, path: str, body: dict[str, Any], secret: str
) -> None:
    headers = {**await world.bearer(await world.client("acme")), "idempotency-key": "k1"}
    first = await world.http.post(path, json=body, headers=headers)
    again = await world.http.post(path, json=body, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()[secret]
    assert again.json() == {**first.json(), secret: None}
    assert again.headers["location"] == first.headers["location"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    listed = (await world.http.get(path, headers=headers)).json()["items"]
    assert len([each for each in listed if each["name"] == body["name"]]) == 1


async def test_a_secret_is_added_once(world: World) -> None:
    client = await world.client("acme")
    headers = {**await world.bearer(client), "idempotency-key": "k1"}
    path = f"/api/v1/clients/{client.client_id}/secrets"
    first, again = [await world.http.post(path, headers=headers) for _ in range(2)]
    assert first.json()["client_secret"]
    assert again.json() == {**first.json(), "client_secret": None}


async def test_a_key_is_good_for_one_request_of_one_client(world: World) -> None:
    mine, other = await world.client("acme"), await world.client("acme")
    key = {"idempotency-key": "k1"}
    headers = {**await world.bearer(mine), **key}
    assert (await world.http.post("/api/v1/clients", json=CLIENT, headers=headers)).status_code == 201
    changed = {**CLIENT, "name": "other"}
    assert (await world.http.post("/api/v1/clients", json=changed, headers=headers)).status_code == 409
    theirs = {**await world.bearer(other), **key}
    assert (await world.http.post("/api/v1/clients", json=CLIENT, headers=theirs)).status_code == 409


async def test_without_a_key_each_request_counts(world: World) -> None:
    headers = await world.bearer(await world.client("acme"))
    answers = [await world.http.post("/api/v1/clients", json=CLIENT, headers=headers) for _ in range(2)]
    assert len({answer.json()["client_id"] for answer in answers}) == 2


async def test_racing_repeats_make_one_client(world: World) -> None:
    headers = {**await world.bearer(await world.client("acme")), "idempotency-key": "race"}
    answers = await asyncio.gather(
        *(world.http.post("/api/v1/clients", json=CLIENT, headers=headers) for _ in range(4))
    )
    assert len({answer.json()["client_id"] for answer in answers}) == 1
    assert len([answer for answer in answers if answer.json()["client_secret"]]) == 1
