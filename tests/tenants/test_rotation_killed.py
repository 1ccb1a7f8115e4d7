"""kill -9 at every step of a rotation: a real process, a real Postgres, a real provider's admin API.

Whatever step it was: there is one live current version at once, and after another process has gone on, the rotation has
happened and the provider has no key that nobody knows of.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from auth.secret import Secret
from auth.storage import Connections, Sessions
from gateway.simulation.config import KeyConfig, ProviderConfig
from tenants.custody import seal_key, source_context
from tenants.datakeys import DataKeys
from tenants.keyring import LocalKeyring
from tenants.models import KeySource, KeyVersion, Pool, ProviderKey, Quota, Tenant
from tenants.rotation import LEASE_S
from tenants.snapshot import SnapshotLoader
from tenants.store import keys, pools, quotas
from tenants.store import tenants as tenants_store
from tests.conftest import TestDatabase
from tests.fakes.provider import RunningProvider, running_provider
from tests.tenants.conftest import KEK
from tests.tenants.rotation_child import Ended, Errand

START = datetime(2026, 1, 5, 12, tzinfo=UTC)
WHOLE_S = 5
SETTINGS = {
    "schedule": {"interval_s": 30 * 86400},
    "probes": 2,
    "probe_interval_s": 0,
    "drain_s": 1,
    "retain_s": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "openai": {"project_id": "p1"},
    "azure": {"directory_id": "d", "client_id": "c", "subscription_id": "s", "resource_group": "g"},
}


class Processes:
    """Starts processes that run the engine."""

    def __init__(self, database: TestDatabase) -> None:
        self._database = database
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.tenants.rotation_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, start: datetime, *, kill_at: int = 0) -> Ended:
        errand = Errand(self._database.url, KEK.hex(), start.timestamp(), WHOLE_S, kill_at)
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(asdict(errand)) + "\n")
        self._parent.stdin.flush()
        return Ended(**json.loads(self._parent.stdout.readline()))

    def close(self) -> None:
        self._parent.communicate()


@pytest.fixture
def processes(test_database: TestDatabase) -> Iterator[Processes]:
    running = Processes(test_database)
    yield running
    running.close()


@pytest.fixture(scope="module")
def provider() -> Iterator[RunningProvider]:
    with running_provider(ProviderConfig(keys=(KeyConfig(secret="sim-key-unused-0001", name="unused"),))) as running:
        yield running


class Scene:
    """A tenant with one key, due for its scheduled rotation now."""

    def __init__(
        self, sessions: Sessions, database: Connections, data_keys: DataKeys, provider: RunningProvider, driver: str
    ) -> None:
        self._sessions, self._database, self._data_keys = sessions, database, data_keys
        self._provider, self._driver = provider, driver
        self.tenant_id, self.key_id = uuid7(), uuid7()
        self.account = f"acc-{self.tenant_id.hex[-12:]}"

    async def set_up(self) -> None:
        pool_id, quota_id, source_id = uuid7(), uuid7(), uuid7()
        url = self._provider.base_url
        secret = Secret(f"sim-key-by-hand-{self.key_id.hex}")
        name = f"{self.account}-Key1" if self._driver == "azure" else f"by-hand-{self.account}"
        self._provider.provider.ledger.put(KeyConfig(secret=secret.reveal(), name=name, organisation=self.account))
        config = {**CONFIGS[self._driver], "base_url": url}
        if self._driver == "azure":
            config |= {"account": self.account, "login_url": url}
        else:
            config |= {"project_id": self.account}
        async with self._sessions.platform() as session:
            await tenants_store.add(session, Tenant(id=self.tenant_id, slug=self.account, name="x"))
        sealed = await seal_key(
            self._data_keys,
            self.tenant_id,
            secret,
            pool_id=pool_id,
            key_id=self.key_id,
            number=1,
            provider="simulated",
        )
        admin = await self._data_keys.seal(self.tenant_id, source_context(source_id, self._driver), b"sim-admin-key")
        async with self._sessions.tenant(self.tenant_id) as session:
            await pools.add(session, Pool(id=pool_id, tenant_id=self.tenant_id, name="main", strategy="weighted"))
            await quotas.add(session, Quota(id=quota_id, tenant_id=self.tenant_id, name="q", provider="simulated"))
            session.add(
                KeySource(
                    id=source_id,
                    tenant_id=self.tenant_id,
                    name="admin",
                    driver=self._driver,
                    config=config,
                    data_key_id=admin.data_key_id,
                    sealed=admin.blob,
                )
            )
            await session.flush()
            key = ProviderKey(
                id=self.key_id,
                tenant_id=self.tenant_id,
                pool_id=pool_id,
                quota_id=quota_id,
                name="k1",
                provider="simulated",
                base_url=url,
                source_id=source_id,
                rotation=SETTINGS,
                due_at=START,
            )
            version = KeyVersion(
                tenant_id=self.tenant_id,
                key_id=self.key_id,
                number=1,
                state="current",
                data_key_id=sealed.data_key_id,
                envelope=sealed.blob,
            )
            await keys.add(session, key, version)

    async def tear_down(self) -> None:
        async with self._database.platform() as connection:
            await connection.execute("delete from tenant where id = $1", self.tenant_id)

    async def states(self) -> list[str]:
        async with self._sessions.tenant(self.tenant_id) as session:
            return [version.state for version in await keys.versions(session, self.tenant_id, self.key_id)]

    async def assert_serving(self, when: str) -> None:
        """There is one current version, it opens, and the provider takes it."""
        assert (await self.states()).count("current") == 1, when
        loaded = await SnapshotLoader(self._database, self._data_keys).load(self.tenant_id)
        assert loaded is not None
        (served,) = loaded.pools[0].keys
        assert served.secret is not None, when
        held = self._provider.provider.ledger.find(served.secret.reveal())
        assert held is not None, when
        assert not held.revoked, when

    async def assert_rotated(self, when: str) -> None:
        """The old version is gone, the new one serves, and the provider has nothing else."""
        await self.assert_serving(when)
        states = await self.states()
        assert states[0] == "current", (when, states)
        assert set(states[1:]) <= {"revoked", "failed"}, (when, states)
        if self._driver != "azure":
            alive = [key for key in self._provider.provider.smith.keys.values() if key.scope == self.account]
            assert len(alive) == 1, (when, alive)


async def kill_everywhere(processes: Processes, make: Any) -> int:
    scene = await make()
    whole = processes.run(START)
    assert (whole.killed, whole.error) == (False, "")
    await scene.assert_rotated("nobody died")
    await scene.tear_down()
    for step in range(1, whole.steps + 1):
        scene = await make()
        when = f"killed at step {step} of {whole.steps}"
        ended = processes.run(START, kill_at=step)
        assert ended.killed, (when, ended)
        await scene.assert_serving(when)
        resumed = processes.run(START + timedelta(seconds=WHOLE_S + LEASE_S))
        assert not resumed.error, (when, resumed.error)
        await scene.assert_rotated(when)
        await scene.tear_down()
    return whole.steps


@pytest.mark.timeout(600)
@pytest.mark.parametrize("driver", ["openai", pytest.param("azure", marks=pytest.mark.slow)])
async def test_kill_nine_at_every_step(
    driver: str, processes: Processes, provider: RunningProvider, sessions: Sessions, database: Connections
) -> None:
    data_keys = DataKeys(database, LocalKeyring([KEK]))

    async def make() -> Scene:
        scene = Scene(sessions, database, data_keys, provider, driver)
        await scene.set_up()
        return scene

    steps = await kill_everywhere(processes, make)
    assert steps > 20, "the steps of a rotation are many"
