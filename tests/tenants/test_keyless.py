"""Keys without a secret in the database and in the engine: what is stored, what a data path gets, who is told."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlmodel import col, select
from uuid_utils.compat import uuid7

from auth.secret import Secret
from auth.storage import Connections, Sessions
from tenants.api.new_key import NewKey, store_key_of_source
from tenants.datakeys import DataKeys
from tenants.models import AuditEvent, KeySource, KeyVersion
from tenants.rotation import RotationEngine
from tenants.snapshot import SnapshotLoader
from tenants.sources.federated import Identity
from tenants.sources.protocol import HttpAnswer, ProbeResult, SourceAway
from tenants.sources.registry import make_driver
from tenants.store import keys, pools
from tests.tenants.conftest import Plant, Planted

START = datetime(2026, 1, 5, 12, tzinfo=UTC)
CONFIG = {"provider": "openai", "identity_provider_id": "i", "service_account_id": "s"}


@dataclass
class Provider:
    """Its token endpoint and its opinion of tokens."""

    trusts: bool = True
    takes: ProbeResult = "works"
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        del method, url, headers, body
        if not self.trusts:
            raise SourceAway("no answer")
        return HttpAnswer(200, {}, json.dumps({"access_token": "token-1", "expires_in": 900}).encode())

    async def probe(
        self,
        provider: str,
        base_url: str | None,
        secret: Secret,
        *,
        region: str | None = None,
        federation: str | None = None,
    ) -> ProbeResult:
        del provider, base_url, region
        self.asked.append((secret.reveal(), federation))
        return self.takes

    async def sign(self, claims: Mapping[str, Any], *, algorithm: str | None = None) -> str:
        del claims, algorithm
        return "assertion"


class Bench:
    """A key of a federated source beside the planted one, and an engine."""

    def __init__(self, sessions: Sessions, database: Connections, data_keys: DataKeys, planted: Planted) -> None:
        self.sessions, self.database, self.data_keys, self.planted = sessions, database, data_keys, planted
        self.now, self.provider, self.alerts = START, Provider(), list[str]()
        self.source_id, self.key_id = uuid7(), uuid7()
        self.engine = RotationEngine(
            sessions,
            data_keys,
            lambda source, credential: make_driver(
                source.driver,
                source.config,
                credential,
                http=self.provider,
                now_unix=self.now.timestamp,
                identity=Identity("https://gw.example", source.tenant_id, source.id, self.provider),
            ),
            self.provider,
            now=lambda: self.now,
            rng=random.Random(1),
            alert=lambda event, subject: self.alerts.append(event),
        )

    async def set_up(self) -> None:
        tenant_id = self.planted.tenant_id
        async with self.sessions.tenant(tenant_id) as session:
            source = KeySource(
                id=self.source_id, tenant_id=tenant_id, name="trusting", driver="federated", config=CONFIG
            )
            session.add(source)
            await session.flush()
            pool = await pools.get(session, tenant_id, self.planted.pool_id)
            new = NewKey("keyless", "openai", None, quota_id=self.planted.quota_id, id=self.key_id)
            await store_key_of_source(session, pool, new, source, at=self.now)

    async def run(self, seconds: int) -> None:
        for _ in range(seconds // 10):
            await self.engine.run_once()
            self.now += timedelta(seconds=10)

    async def version(self) -> KeyVersion:
        async with self.sessions.tenant(self.planted.tenant_id) as session:
            (found,) = await keys.versions(session, self.planted.tenant_id, self.key_id)
        return found

    async def events(self) -> list[str]:
        async with self.sessions.tenant(self.planted.tenant_id) as session:
            rows = await session.execute(select(AuditEvent).order_by(col(AuditEvent.seq)))
            return [event.action for event in rows.scalars()]


@pytest.fixture
async def bench(sessions: Sessions, database: Connections, data_keys: DataKeys, plant: Plant) -> Bench:
    made = Bench(sessions, database, data_keys, await plant("acme"))
    await made.set_up()
    return made


async def test_nothing_secret_is_stored_and_the_data_path_gets_the_source(bench: Bench) -> None:
    stored = await bench.version()
    assert (stored.state, stored.envelope, stored.data_key_id) == ("current", None, None)
    loaded = await SnapshotLoader(bench.database, bench.data_keys).load(bench.planted.tenant_id)
    assert loaded is not None
    by_name = {key.name: key for key in loaded.pools[0].keys}
    assert by_name["keyless"].secret is None
    assert by_name["keyless"].source is not None
    assert by_name["keyless"].source.source_id == bench.source_id
    assert by_name["keyless"].source.settings.identity_provider_id == "i"
    assert (by_name["k1"].secret, by_name["k1"].source) == (bench.planted.secret, None)


async def test_trust_is_tried_now_and_then(bench: Bench) -> None:
    await bench.run(600)
    assert 3 < len(bench.provider.asked) < 10
    assert set(bench.provider.asked) == {("token-1", "openai")}
    assert (await bench.version()).state == "current"
    assert bench.alerts == []


@pytest.mark.parametrize("trouble", ["no token", "a token that is refused"])
async def test_a_person_is_told_once_of_lost_trust_and_of_its_return(bench: Bench, trouble: str) -> None:
    await bench.run(10)
    bench.provider.trusts = trouble != "no token"
    bench.provider.takes = "works" if trouble == "no token" else "refused"
    await bench.run(600)
    assert bench.alerts == ["federation.failed"]
    assert (await bench.version()).error
    bench.provider.trusts, bench.provider.takes = True, "works"
    await bench.run(60)
    assert (await bench.version()).error is None
    assert await bench.events() == ["federation.fail", "federation.recover"]
    assert (await bench.version()).state == "current", "its processes decide by themselves what still serves"
