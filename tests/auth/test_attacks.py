"""Attacks on the whole server: guesses by time, leaks into logs, garbage, suspended tenants, other tenants' rows."""

from __future__ import annotations

import base64
import dataclasses
import logging
import random
import time
from typing import Any

import pytest
from sqlalchemy import event

from auth.form import Call
from auth.keyset import Signer
from gateway.control.orm import OrmSessions
from tests.auth.conftest import ISSUER, World

FORM = ("content-type", "application/x-www-form-urlencoded")
GRANT = {"grant_type": "client_credentials"}


def basic(client_id: str, secret: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{client_id}:{secret}".encode()).decode()}


async def test_an_unknown_client_and_a_wrong_secret_cost_the_same_queries(world: World) -> None:
    client, other = await world.client("acme"), await world.client("acme")
    assert isinstance(world.sessions, OrmSessions)
    statements: list[str] = []

    def note(_: Any, __: Any, statement: str, *rest: Any) -> None:
        statements.append(statement)

    event.listen(world.sessions.engine.sync_engine, "before_cursor_execute", note)
    costs = []
    for headers in (basic("lpc_" + "0" * 22, other.secret), basic(client.client_id, other.secret)):
        statements.clear()
        assert (await world.post("/oauth2/token", GRANT, headers=headers)).status_code == 401
        costs.append(list(statements))
    assert costs[0] == costs[1]
    assert len(costs[0]) == 2  # the tenant context and one look-up


async def test_the_time_of_a_failure_tells_nothing(world: World) -> None:
    """An attacker who compares answers' times guesses no better than a coin whether a client exists.

    Both kinds come in random order, so that the machine's load falls on both alike. The figure is the probability that
    an answer about a known client took longer than one about an unknown client; by chance it lies within 0.5 ± 0.2 in
    all but one of ten thousand runs.
    """
    client, other = await world.client("acme"), await world.client("acme")
    server = world.services.server
    server._config = dataclasses.replace(server._config, failure_step_s=0.02)
    kinds = {
        "known": basic(client.client_id, other.secret)["authorization"],
        "unknown": basic("lpc_" + "0" * 22, other.secret)["authorization"],
    }
    order = [kind for kind in kinds for _ in range(70)]
    random.Random(7).shuffle(order)
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for kind in order:
        headers = (FORM, ("authorization", kinds[kind]))
        call = Call("POST", "/oauth2/token", b"", headers, b"grant_type=client_credentials", address="192.0.2.1")
        began = time.perf_counter()
        answer = await server.token(call)
        times[kind].append(time.perf_counter() - began)
        assert answer.status in {401, 429}
        world.clock.now += 6
    longer = sum(a > b for a in times["known"] for b in times["unknown"])
    assert 0.3 < longer / (70 * 70) < 0.7


async def test_nothing_secret_reaches_a_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = await world.client("acme")
    for headers in (client.basic, basic(client.client_id, client.secret[:-1] + "_"), basic("lpc_x", client.secret)):
        await world.post("/oauth2/token", GRANT, headers=headers)
    await world.post("/oauth2/token", {**GRANT, "client_id": client.client_id, "client_secret": client.secret})
    token = await world.token(client)
    made = await world.http.post("/api/v1/clients", json={"name": "x"}, headers={"authorization": f"Bearer {token}"})
    await world.post("/oauth2/introspect", {"token": token}, headers=client.basic)
    await world.post("/oauth2/revoke", {"token": token}, headers=client.basic)
    logged = "\n".join(f"{each.getMessage()} {vars(each)}" for each in caplog.records)
    for secret in (client.secret, token, made.json()["client_secret"], client.basic["authorization"]):
        assert secret not in logged
    assert client.secret not in repr(world.trail.events)


async def test_a_suspended_tenants_clients_get_nothing(world: World) -> None:
    client = await world.client("acme")
    async with world.database.platform() as connection:
        await connection.execute("update tenant set status = 'suspended' where id = $1", client.tenant_id)
    answer = await world.post("/oauth2/token", GRANT, headers=client.basic)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


async def test_a_mac_copied_to_another_clients_row_opens_nothing(world: World) -> None:
    """Whoever can write to the database cannot give a victim's client the attacker's secret."""
    victim, attacker = await world.client("acme"), await world.client("rival")
    async with world.database.platform() as connection:
        await connection.execute(
            "update client_secret set mac = (select s.mac from client_secret s"
            " join oauth_client c on c.id = s.client_pk where c.client_id = $1)"
            " where client_pk = (select id from oauth_client where client_id = $2)",
            attacker.client_id,
            victim.client_id,
        )
    answer = await world.post("/oauth2/token", GRANT, headers=basic(victim.client_id, attacker.secret))
    assert answer.status_code == 401


async def test_a_tenants_transaction_sees_no_other_tenants_clients_and_tokens(world: World) -> None:
    rival = await world.client("rival")
    headers = await world.bearer(rival)
    assert (await world.http.post("/api/v1/tokens", json={"name": "x"}, headers=headers)).status_code == 201
    async with world.database.tenant(world.tenants["acme"]) as connection:
        for table in ("oauth_client", "client_secret", "api_token", "token_revocation", "signing_key", "seen_proof"):
            rows = await connection.fetch(f"select tenant_id from {table}")
            assert {row["tenant_id"] for row in rows} <= {world.tenants["acme"]}


def garbage(rng: random.Random, words: list[str]) -> Call:
    """A request made of plausible parts in an implausible order."""

    def value() -> str:
        kind = rng.randrange(5)
        if kind == 0:
            return rng.choice(words)
        if kind == 1:
            return "".join(chr(rng.randrange(1, 0x2000)) for _ in range(rng.randrange(30)))
        if kind == 2:
            return rng.choice(words)[: rng.randrange(60)] + rng.choice('\x00\r\n"\\%&=+ ')
        if kind == 3:
            return "[" * rng.randrange(3000)
        return rng.choice(('[{"type":"llm_proxy"}]', "{}", "null", "1e999", "-1", "urn:x", "https://[", ISSUER + "#"))

    names = [
        "grant_type",
        "client_id",
        "client_secret",
        "client_assertion",
        "client_assertion_type",
        "scope",
        "resource",
        "audience",
        "token",
        "authorization_details",
        "subject_token",
        "subject_token_type",
        "actor_token",
        "actor_token_type",
        "requested_subject",
    ]
    fields = [(rng.choice(names), value()) for _ in range(rng.choice((0, 0, 1, 1, 2, 5)))]
    if rng.random() < 0.7:
        fields.append(("grant_type", rng.choice(words[:2])))
    body = "&".join(f"{name}={each}" for name, each in fields).encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        body = bytes(each ^ (rng.random() < 0.02) * rng.randrange(256) for each in body)
    headers = [FORM]
    if rng.random() < 0.7:
        good, bad = words[2], rng.choice(("Basic " + value(), value(), "Basic =", "Bearer x"))
        headers.append(("authorization", good if rng.random() < 0.7 else bad))
    if rng.random() < 0.15:
        headers.append(("dpop", value()))
    return Call(
        "POST",
        "/oauth2/token",
        b"" if rng.random() < 0.8 else value().encode()[:200],
        tuple(headers),
        body,
        address=f"192.0.2.{rng.randrange(9)}",
    )


@pytest.mark.parametrize("seed", range(4))
async def test_garbage_is_answered_never_a_failure(world: World, seed: int) -> None:
    rng, signer, client = random.Random(seed), Signer.generate(), await world.client("acme")
    token = await world.token(client)
    words = [
        "client_credentials",
        "urn:ietf:params:oauth:grant-type:token-exchange",
        client.basic["authorization"],
        token,
        signer.sign({"sub": client.client_id, "iss": [], "exp": "x"}, typ="JWT"),
        "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "urn:ietf:params:oauth:token-type:access_token",
        client.client_id,
        client.secret,
    ]
    server, seen = world.services.server, set[int]()
    for number in range(150):
        call = garbage(rng, words)
        answer = await (server.token, server.introspect, server.revoke)[number % 3](call)
        seen.add(answer.status)
        assert answer.status in {200, 400, 401, 413, 429}, (answer, call)
        world.clock.now += 1
    assert {200, 400, 401} <= seen
