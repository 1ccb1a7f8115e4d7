"""Failed authentications reach the audit trail: of the tenant that they concern, counted, and no flood of them."""

from __future__ import annotations

import dataclasses

from auth.failed_logins import MAX_PAIRS
from auth.principal import PLATFORM_TENANT_ID
from tests.auth.conftest import TestClient, World

GRANT = {"grant_type": "client_credentials"}


async def fail(world: World, client: TestClient) -> None:
    answer = await world.post("/oauth2/token", GRANT, headers=client.basic)
    assert answer.status_code == 401


async def test_failures_are_told_to_the_tenant_as_one_event(world: World) -> None:
    client, other = await world.client("acme"), await world.client("rival")
    wrong = dataclasses.replace(client, secret=other.secret)
    for _ in range(3):
        await fail(world, wrong)
    before = len(world.trail.events)
    assert await world.services.server.failures.flush() == 1
    (event,) = world.trail.events[before:]
    assert (event.tenant_id, event.action) == (client.tenant_id, "client.authentication_failed")
    assert (event.subject, event.detail) == (f"client:{client.client_id}", {"count": 3})
    assert other.secret not in repr(event)
    assert await world.services.server.failures.flush() == 0


async def test_unknown_clients_are_summed_up_for_the_operators(world: World) -> None:
    known = await world.client("acme")
    for name in ("lpc_nobody", "lpc_no_one", "x\x00y"):
        world.services.server.failures.note(name, "203.0.113.9", "")
    await fail(world, dataclasses.replace(known, client_id="lpc_nobody"))
    assert await world.services.server.failures.flush() == 1
    event = world.trail.events[-1]
    assert (event.tenant_id, event.subject, event.detail["count"]) == (PLATFORM_TENANT_ID, "client:unknown", 4)
    assert "203.0.113.9" in event.detail["addresses"]


async def test_a_flood_is_bounded(world: World) -> None:
    failures = world.services.server.failures
    for number in range(MAX_PAIRS * 4):
        failures.note(f"lpc_{number}", f"198.51.100.{number}", "")
    await failures.flush()
    detail = world.trail.events[-1].detail
    assert detail["count"] == MAX_PAIRS * 4
    assert len(detail["addresses"]) == 20


async def test_success_is_no_failure(world: World) -> None:
    await world.token(await world.client("acme"))
    assert await world.services.server.failures.flush() == 0
