"""Why requests went where they went, kept for a while: a protocol, its in-memory twin, Postgres, and the buffer before.

Explanations are for people who ask later; losing some is no harm. So everything is bounded: what a process buffers, how
many it stores in a second, how long they are kept. While the store is away the newest are kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import asyncpg
import msgspec

from auth.storage import Connections

logger = logging.getLogger(__name__)

KEPT_DAYS = 7
MAX_PER_S = 20.0
"""Of one process; a request that is explained beyond it has its header, and is not stored."""
_MAX_BUFFERED = 1_000
_INTERVAL_S = 1.0
_WRITE_TIMEOUT_S = 10.0


class StoredExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """One request's explanation: a document for each pool that was tried, in order."""

    tenant_id: UUID
    request_id: str
    at: datetime
    pools: list[dict[str, Any]]


class ExplanationStore(Protocol):
    """Keeps explanations by tenant and request."""

    async def write(self, batch: Sequence[StoredExplanation]) -> None:
        """Store them; those that are stored already are passed over."""

    async def read(self, tenant_id: UUID, request_id: str) -> StoredExplanation | None:
        """Return one, None if there is none."""

    async def purge(self, before: datetime) -> None:
        """Forget those of all tenants that are older."""


class InMemoryExplanationStore:
    """The twin. `broken` set to an exception makes every call fail with it."""

    def __init__(self) -> None:
        self.rows: dict[tuple[UUID, str], StoredExplanation] = {}
        self.broken: Exception | None = None

    async def write(self, batch: Sequence[StoredExplanation]) -> None:
        """See `ExplanationStore.write`."""
        if self.broken is not None:
            raise self.broken
        for each in batch:
            self.rows.setdefault((each.tenant_id, each.request_id), each)

    async def read(self, tenant_id: UUID, request_id: str) -> StoredExplanation | None:
        """See `ExplanationStore.read`."""
        return self.rows.get((tenant_id, request_id))

    async def purge(self, before: datetime) -> None:
        """See `ExplanationStore.purge`."""
        self.rows = {key: row for key, row in self.rows.items() if row.at >= before}


class PostgresExplanationStore:
    """Table `request_explanation`."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def write(self, batch: Sequence[StoredExplanation]) -> None:
        """See `ExplanationStore.write`."""
        rows = [(each.tenant_id, each.request_id, each.at, _json(each.pools)) for each in batch]
        async with self._connections.platform() as connection:
            await connection.executemany(
                "insert into request_explanation (tenant_id, request_id, at, pools) values ($1, $2, $3, $4) "
                "on conflict do nothing",
                rows,
            )

    async def read(self, tenant_id: UUID, request_id: str) -> StoredExplanation | None:
        """See `ExplanationStore.read`."""
        async with self._connections.tenant(tenant_id) as connection:
            row = await connection.fetchrow(
                "select at, pools from request_explanation where tenant_id = $1 and request_id = $2",
                tenant_id,
                request_id,
            )
        if row is None:
            return None
        pools = msgspec.json.decode(row["pools"], type=list[dict[str, Any]])
        return StoredExplanation(tenant_id=tenant_id, request_id=request_id, at=row["at"], pools=pools)

    async def purge(self, before: datetime) -> None:
        """See `ExplanationStore.purge`."""
        async with self._connections.platform() as connection:
            await connection.execute("delete from request_explanation where at < $1", before)


def _json(value: object) -> str:
    # jsonb takes no NUL, and names of keys and models are others' to choose.
    return msgspec.json.encode(value).decode().replace("\\u0000", "")


class ExplanationRecorder:
    """Takes explanations off the request path; `clock` is monotonic seconds. `dropped` counts what was not stored."""

    def __init__(self, store: ExplanationStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._rows: deque[StoredExplanation] = deque(maxlen=_MAX_BUFFERED)
        self._allowed = MAX_PER_S
        self._allowed_at = clock()
        self._task: asyncio.Task[None] | None = None
        self.stored = self.dropped = 0

    def record(self, row: StoredExplanation) -> None:
        """Take one; beyond the bounds it, or the oldest one, is dropped."""
        now = self._clock()
        self._allowed = min(MAX_PER_S, self._allowed + (now - self._allowed_at) * MAX_PER_S)
        self._allowed_at = now
        if self._allowed < 1.0:
            self.dropped += 1
            return
        self._allowed -= 1.0
        self.dropped += len(self._rows) == _MAX_BUFFERED
        self._rows.append(row)

    def start(self) -> None:
        """Start the writing task on the running loop."""
        self._task = asyncio.create_task(self._run(), name="explanations")

    async def close(self) -> None:
        """Stop the task and write what is buffered, if the store takes it."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self.flush()

    async def flush(self) -> None:
        """Write what is buffered; what the store does not take for now stays."""
        batch = list(self._rows)
        if not batch:
            return
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                await self._store.write(batch)
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
            logger.error("explanations refused by the store", extra={"rows": len(batch), "error": repr(error)})
            self.dropped += len(batch)
        except Exception as error:  # noqa: BLE001 - a loop's boundary: the store is away, the newest are kept
            logger.debug("explanations kept: the store is away", extra={"error": type(error).__name__})
            return
        else:
            self.stored += len(batch)
        written = {id(each) for each in batch}
        self._rows = deque((each for each in self._rows if id(each) not in written), maxlen=_MAX_BUFFERED)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            await self.flush()
