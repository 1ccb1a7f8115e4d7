"""A request's report: found by its id within its tenant, and what it proves of residency."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uuid_utils.compat import uuid7

from gateway.database import Postgres
from gateway.metering.reports import Residency, read_report, residency_of
from gateway.metering.store import PostgresUsageStore
from tests.metering.rows import TENANT, usage_row
from tests.tenants.conftest import Plant, clock, data_keys, keyring, plant

__all__ = ["clock", "data_keys", "keyring", "plant"]

CASES: list[tuple[int, str | None, str | None, str | None, Residency]] = [
    (1, "eu-1", None, None, Residency(None, ["eu-1"], True)),
    (0, None, None, "eu-1", Residency(["eu-1"], [], True)),
    (1, "eu-1", None, "ch-1,eu-1", Residency(["ch-1", "eu-1"], ["eu-1"], True)),
    (2, "eu-1", "eu-2,eu-1", "eu-1,eu-2", Residency(["eu-1", "eu-2"], ["eu-2", "eu-1"], True)),
    (2, "eu-1", "us-1,eu-1", "eu-1", Residency(["eu-1"], ["us-1", "eu-1"], False)),
    (2, "eu-1", "-,eu-1", "eu-1", Residency(["eu-1"], [None, "eu-1"], False)),
    (1, None, None, "eu-1", Residency(["eu-1"], [None], False)),
]


@pytest.mark.parametrize(("attempts", "region", "regions", "allowed", "found"), CASES)
def test_residency_is_read_from_the_row(
    attempts: int, region: str | None, regions: str | None, allowed: str | None, found: Residency
) -> None:
    assert residency_of(attempts, region, regions, allowed) == found


async def test_a_request_is_found_by_its_id_in_its_tenant(database: Postgres) -> None:
    identifier = uuid7()
    row = usage_row(id=identifier, request_id=f"req_{identifier.hex}", at=datetime.now(UTC), attempts=2,
                    region="eu-1", regions="eu-2,eu-1", residency="eu-1,eu-2", cached_input_tokens=7,
                    usage_reported=False)  # fmt: skip
    store = PostgresUsageStore(database)
    await store.write([row])
    await store.close()
    found = await read_report(database, TENANT, row.request_id)
    assert found is not None
    assert (found.model, found.attempts, found.residency.kept) == ("gpt-4o", 2, True)
    assert (found.cached_input_tokens, found.usage_reported) == (7, False), "what its cost stands on"
    assert await read_report(database, UUID(int=9), row.request_id) is None
    assert await read_report(database, TENANT, identifier.hex) == found


async def test_it_names_the_key_version_that_served(database: Postgres, plant: Plant) -> None:
    acme, identifier = await plant("acme"), uuid7()
    row = usage_row(id=identifier, request_id=f"req_{identifier.hex}", at=datetime.now(UTC), tenant_id=acme.tenant_id,
                    pool_id=acme.pool_id, key_id=acme.key_id, key_version=3)  # fmt: skip
    store = PostgresUsageStore(database)
    await store.write([row])
    await store.close()
    found = await read_report(database, acme.tenant_id, row.request_id)
    assert found is not None
    assert (found.pool, found.key, found.key_id, found.key_version) == ("main", "k1", acme.key_id, 3)
    assert await read_report(database, (await plant("other")).tenant_id, row.request_id) is None


@given(st.text() | st.from_regex(r"(req_)?[0-9a-f]{32}", fullmatch=True))
def test_no_id_breaks_it(text: str) -> None:
    class NoConnections:
        def tenant(self, tenant_id: UUID) -> object:
            raise LookupError

    coroutine = read_report(NoConnections(), TENANT, text)  # type: ignore[arg-type]
    with pytest.raises((StopIteration, LookupError)) as ended:
        coroutine.send(None)
    assert len(text) >= 32 or ended.value.args in ((), (None,))
