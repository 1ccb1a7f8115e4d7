"""A process that runs the rotation engine and kills itself (SIGKILL) at the step it was told: after this nothing runs.

Reads one `Errand` a line from standard input, forks a child for each, and writes what became of it. A step is a moment
before or after something that lasts: a call to the provider, or the commit of a transaction that changed rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from auth.secret import Secret
from gateway.control.key_probe import KeyProbe
from gateway.control.orm import OrmSessions
from gateway.database import Postgres
from gateway.guarded_calls import GuardedCalls
from gateway.upstream.connect import DirectConnector
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.pool import ConnectionPool
from tenants.datakeys import DataKeys
from tenants.keyring import LocalKeyring
from tenants.models import KeySource
from tenants.rotation import RotationEngine
from tenants.sources.protocol import Driver, HttpAnswer, HttpCalls, ProbeResult
from tenants.sources.registry import make_driver


@dataclass(frozen=True)
class Errand:
    """Run the engine for `seconds` of its own clock from `start` (Unix); die at step `kill_at`, 0: live to the end."""

    database_url: str
    kek: str
    start: float
    seconds: int
    kill_at: int = 0


@dataclass(frozen=True)
class Ended:
    """`killed`: by its own hand. `steps`: how many it took, when it lived."""

    killed: bool
    steps: int
    error: str = ""


class Steps:
    """Counts, and dies in time."""

    def __init__(self, kill_at: int) -> None:
        self.taken = 0
        self._kill_at = kill_at

    def take(self) -> None:
        self.taken += 1
        if self.taken == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


class MortalSessions:
    """Transactions before and after whose commit the process may die."""

    def __init__(self, inner: OrmSessions, steps: Steps) -> None:
        self._inner = inner
        self._steps = steps

    @contextlib.asynccontextmanager
    async def tenant(self, tenant_id: UUID) -> AsyncIterator[AsyncSession]:
        async with self._mortal(self._inner.tenant(tenant_id)) as session:
            yield session

    @contextlib.asynccontextmanager
    async def platform(self) -> AsyncIterator[AsyncSession]:
        async with self._mortal(self._inner.platform()) as session:
            yield session

    @contextlib.asynccontextmanager
    async def _mortal(
        self, transaction: contextlib.AbstractAsyncContextManager[AsyncSession]
    ) -> AsyncIterator[AsyncSession]:
        written = False

        def note(session: Session, _: object) -> None:
            nonlocal written
            written = written or bool(session.new or session.dirty or session.deleted)

        async with transaction as session:
            event.listen(session.sync_session, "before_flush", lambda s, c, _: note(s, c))
            yield session
            written = written or bool(session.new or session.dirty or session.deleted)
            if written:
                self._steps.take()
        if written:
            self._steps.take()


class MortalCalls:
    """HTTP calls before and after which the process may die."""

    def __init__(self, inner: HttpCalls, steps: Steps) -> None:
        self._inner = inner
        self._steps = steps

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        self._steps.take()
        answer = await self._inner.call(method, url, headers=headers, body=body)
        self._steps.take()
        return answer


class MortalProbe:
    """Probes after which the process may die."""

    def __init__(self, inner: KeyProbe, steps: Steps) -> None:
        self._inner = inner
        self._steps = steps

    async def probe(
        self,
        provider: str,
        base_url: str | None,
        secret: Secret,
        *,
        region: str | None = None,
        federation: str | None = None,
    ) -> ProbeResult:
        result = await self._inner.probe(provider, base_url, secret, region=region, federation=federation)
        self._steps.take()
        return result


async def rotate(errand: Errand) -> int:
    """Run the engine, second by second; returns the number of steps."""
    steps = Steps(errand.kill_at)
    policy = EgressPolicy(allow_private=True)
    upstream = ConnectionPool(DirectConnector(policy))
    sessions = OrmSessions(errand.database_url, pool_size=2)
    postgres = Postgres(errand.database_url, max_size=2)
    now = datetime.fromtimestamp(errand.start, UTC)
    end = now + timedelta(seconds=errand.seconds)
    calls = MortalCalls(GuardedCalls(upstream, policy), steps)

    def driver_of(source: KeySource, credential: Secret | None) -> Driver:
        return make_driver(source.driver, source.config, credential, http=calls, now_unix=lambda: now.timestamp())

    engine = RotationEngine(
        MortalSessions(sessions, steps),
        DataKeys(postgres, LocalKeyring([bytes.fromhex(errand.kek)])),
        driver_of,
        MortalProbe(KeyProbe(upstream, policy), steps),
        now=lambda: now,
        rng=random.Random(7),
    )
    while now < end:
        while await engine.run_once():
            pass
        now += timedelta(seconds=1)
    await upstream.close()
    await postgres.close()
    await sessions.aclose()
    return steps.taken


def carry_out(errand: Errand) -> Ended:
    """Do it in a process of its own."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            answer = str(asyncio.run(rotate(errand)))
        except BaseException as error:  # noqa: BLE001 - told to whoever waits
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    told = b""
    while chunk := os.read(reading, 4096):
        told += chunk
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    text = told.decode()
    return Ended(killed, int(text) if text.isdigit() else 0, "" if text.isdigit() else text)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(asdict(carry_out(Errand(**json.loads(line))))), flush=True)
