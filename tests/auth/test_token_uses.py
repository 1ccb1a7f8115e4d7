"""Long-lived tokens show when they were last used, by the inference paths and by the management API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from auth.token_uses import MAX_NOTED, TokenUses
from gateway.database import DatabaseAway
from tests.auth.conftest import NOW, World
from tests.auth.test_proof_sharing import Away


async def last_used(world: World, headers: dict[str, str], token_id: str) -> str | None:
    answer = await world.http.get(f"/api/v1/tokens/{token_id}", headers=headers)
    found: str | None = answer.json()["last_used_at"]
    return found


async def test_a_use_shows(world: World) -> None:
    headers = await world.bearer(await world.client("acme"))
    made = (
        await world.http.post("/api/v1/tokens", json={"name": "t", "scopes": ["usage:read"]}, headers=headers)
    ).json()
    assert await last_used(world, headers, made["id"]) is None
    jti = world.verifier.verify(made["access_token"]).token_id
    uses, moment = TokenUses(world.database), datetime.fromtimestamp(NOW, UTC)
    for at in (NOW, NOW + 30, NOW + 90):
        uses.note(jti, at)
        uses.note("a-short-lived-one", at)
        await uses.flush()
        shown = await last_used(world, headers, made["id"])
        assert shown is not None
        expected = moment + timedelta(seconds=90 if at == NOW + 90 else 0)
        assert datetime.fromisoformat(shown) == expected, "to the minute"


async def test_the_management_api_notes_its_callers(world: World) -> None:
    headers = await world.bearer(await world.client("acme"))
    await world.http.get("/api/v1/clients", headers=headers)
    assert world.used[-1] == world.verifier.verify(headers["authorization"].split()[1]).token_id
    before = len(world.used)
    await world.http.get("/api/v1/clients", headers={"authorization": "Bearer x"})
    assert len(world.used) == before


async def test_an_outage_loses_no_use(world: World) -> None:
    uses = TokenUses(Away())
    uses.note("a", NOW)
    with pytest.raises(DatabaseAway):
        await uses.flush()
    await uses.close()
    assert uses._noted == {"a": NOW}
    for number in range(MAX_NOTED + 10):
        uses.note(str(number), NOW)
    assert len(uses._noted) == MAX_NOTED
