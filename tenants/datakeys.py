"""Each tenant's data keys, unwrapped and cached: the `auth.sealing.Sealer` that everything sealed goes through.

A plain data key is used for `FRESH_S`, then its row is read and unwrapped again. While the database or the KEK's
provider is away it stays usable until `STALE_S`, and in memory no longer; when the provider says *disabled* it is
dropped at once.
Concurrent callers share one unwrap. No database connection is held while a KMS is asked.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from auth.errors import Unavailable
from auth.sealing import Sealed
from auth.storage import Connections
from tenants.envelope import KEY_BYTES, Context, RandomBytes, open_sealed, seal
from tenants.errors import KekDisabled, KekUnavailable, SealBroken, TenantShredded
from tenants.keyring import KeyWrapper, Wrapped
from tenants.shares.layer import wrap_context
from tenants.shares.protocol import Shredded
from tenants.spare import NO_SPARE, SpareKek, wrap_spare

FRESH_S: Final = 300.0
STALE_S: Final = 3600.0
RETRY_S: Final = 5.0
"""How long a stale key is served before its provider is asked again."""
UNWRAP_TIMEOUT_S: Final = 5.0
PATIENCE_S: Final = 1.0
"""How long a caller waits for a slow provider when a stale key would do; the answer is still taken when it comes."""
CAPACITY: Final = 20_000
_WARMERS: Final = 16
_IN_USE: Final = """
select d.id, d.tenant_id, d.kek_uri, d.wrapped from data_key d
where exists (
    select from key_version v where v.tenant_id = d.tenant_id and v.data_key_id = d.id and v.state = 'current'
)
limit $1
"""

AWAY: Final = (Unavailable, OSError, TimeoutError, asyncpg.InterfaceError)

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Cached:
    tenant_id: UUID
    key: bytes
    wrapped: Wrapped
    unwrapped_at: float
    retry_at: float


@dataclass(frozen=True, slots=True)
class _Row:
    id: UUID
    wrapped: Wrapped


class DataKeys:
    """Seals and opens for every tenant; a tenant's first data key is made when something is first sealed.

    `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        connections: Connections,
        wrapper: KeyWrapper,
        *,
        spare: SpareKek = NO_SPARE,
        clock: Callable[[], float] = time.monotonic,
        random_bytes: RandomBytes = os.urandom,
        fresh_s: float = FRESH_S,
        stale_s: float = STALE_S,
        timeout_s: float = UNWRAP_TIMEOUT_S,
        patience_s: float = PATIENCE_S,
        capacity: int = CAPACITY,
    ) -> None:
        self._connections = connections
        self._wrapper = wrapper
        self._spare = spare
        self._clock = clock
        self._random_bytes = random_bytes
        self._fresh_s = fresh_s
        self._stale_s = stale_s
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._capacity = capacity
        self._cache: OrderedDict[UUID, _Cached] = OrderedDict()
        self._drops = 0
        self._known: dict[UUID, tuple[UUID, str]] = {}
        """Data keys that were asked for, with their tenants and KEKs: what is served from may outlive the cache."""
        self._off: set[str] = set()
        self._silent_until: dict[str, float] = {}
        self._flights: dict[tuple[UUID, UUID], asyncio.Task[bytes]] = {}

    @property
    def wrapper(self) -> KeyWrapper:
        """The KEK provider, for status and rewrap."""
        return self._wrapper

    @property
    def spare(self) -> SpareKek:
        """What makes the spare wraps, for status and rewrap."""
        return self._spare

    async def seal(self, tenant_id: UUID, context: tuple[str, ...], plaintext: bytes) -> Sealed:
        """Seal under the tenant's active data key; `KekUnavailable` or `KekDisabled` when there is none to be had.

        `TenantShredded` for a tenant that came back with a backup.
        """
        try:
            row = await self._active(tenant_id) or await self._create(tenant_id)
            key = await self._key(tenant_id, row.id, row)
        except Shredded as error:
            raise TenantShredded(
                "The tenant was deleted and its secrets destroyed; a backup brought its rows back.",
                hint="Delete the tenant again, and create a new one.",
            ) from error
        bound = Context(row.id, tenant_id, context)
        return Sealed(row.id, seal(key, bound, plaintext, random_bytes=self._random_bytes))

    async def seal_under(
        self, tenant_id: UUID, data_key_id: UUID, context: tuple[str, ...], plaintext: bytes
    ) -> Sealed:
        """Seal under a data key that is known: for jobs over many rows, which need not look it up for each."""
        key = await self._key(tenant_id, data_key_id)
        bound = Context(data_key_id, tenant_id, context)
        return Sealed(data_key_id, seal(key, bound, plaintext, random_bytes=self._random_bytes))

    async def open(self, tenant_id: UUID, data_key_id: UUID, context: tuple[str, ...], blob: bytes) -> bytes:
        """Open what `seal` gave; `SealBroken` when the data key is not the tenant's or anything else differs."""
        return open_sealed(await self._key(tenant_id, data_key_id), Context(data_key_id, tenant_id, context), blob)

    async def adopt(self, tenant_id: UUID, data_key_id: UUID, wrapped: Wrapped) -> None:
        """Unwrap a data key whose row is known from elsewhere than the database; raises what `open` does."""
        await self._key(tenant_id, data_key_id, _Row(data_key_id, wrapped))

    async def warm(self) -> int:
        """Unwrap the data keys of all provider keys in use, and return how many.

        For who is about to open everything: read one by one, each would cost a round trip to the database, and to a KMS
        one after the other. What fails is left to who needs it; a provider that does not answer ends the attempt.
        """
        async with self._connections.platform() as connection:
            rows = await connection.fetch(_IN_USE, self._capacity)
        wanted = iter(rows)
        done = 0

        async def work() -> None:
            nonlocal done
            for row in wanted:
                wrapped = Wrapped(row["kek_uri"], bytes(row["wrapped"]))
                try:
                    await self._key(row["tenant_id"], row["id"], _Row(row["id"], wrapped))
                    done += 1
                except (KekDisabled, SealBroken):
                    continue  # whoever opens something with it meets the same, and says what it was
                except KekUnavailable:
                    return

        await asyncio.gather(*(work() for _ in range(_WARMERS)))
        return done

    def forget(self, tenant_id: UUID | None = None) -> None:
        """Drop one tenant's plain data keys from memory, or everyone's: after a deletion, a rewrap, a restore.

        What is being unwrapped at this moment is still handed to its callers, and not kept.
        """
        self._drops += 1
        for key_id in [i for i, (owner, _) in self._known.items() if tenant_id is None or owner == tenant_id]:
            self._cache.pop(key_id, None)
            del self._known[key_id]

    def drop_stale(self) -> int:
        """Drop plain data keys that are too old to be used whatever happens, and return how many.

        Those that nobody asks for any more would lie in memory for good. To be called every few seconds.
        """
        now = self._clock()
        old = [key_id for key_id, entry in self._cache.items() if now - entry.unwrapped_at >= self._stale_s]
        for key_id in old:
            del self._cache[key_id]
        return len(old)

    async def drop_disabled(self) -> frozenset[UUID]:
        """Ask for the status of every KEK in use, drop what disabled ones wrapped, and return the tenants concerned.

        Those of a KEK that is enabled again are among them. To be called every few seconds; the caller also loads the
        snapshots of these tenants anew. A provider that does not answer changes nothing: the stale bound covers it.
        """
        hit: set[UUID] = set()
        for uri in {kek_uri for _, kek_uri in self._known.values()}:
            try:
                async with asyncio.timeout(self._timeout_s):
                    disabled = await self._wrapper.status(uri) == "disabled"
            except KekDisabled:
                disabled = True
            except (KekUnavailable, TimeoutError):
                continue
            if disabled == (uri in self._off):
                continue
            if disabled:
                self._off.add(uri)
                self._drop_wrapped_by(uri)
            else:
                self._off.discard(uri)
            hit |= {tenant_id for tenant_id, kek_uri in self._known.values() if kek_uri == uri}
        return frozenset(hit)

    def _drop_wrapped_by(self, kek_uri: str) -> None:
        self._drops += 1
        concerned = [key_id for key_id, entry in self._cache.items() if entry.wrapped.kek_uri == kek_uri]
        for key_id in concerned:
            del self._cache[key_id]
        if concerned:
            _log.error("key-encryption key %s is disabled: dropped %d data keys", kek_uri, len(concerned))

    async def _key(self, tenant_id: UUID, data_key_id: UUID, row: _Row | None = None) -> bytes:
        entry = self._cache.get(data_key_id)
        now = self._clock()
        if entry is not None:
            if entry.tenant_id != tenant_id:
                raise SealBroken("the data key belongs to another tenant")
            if now - entry.unwrapped_at < self._fresh_s or now < entry.retry_at:
                self._cache.move_to_end(data_key_id)
                return entry.key
        flight_id = (tenant_id, data_key_id)
        flight = self._flights.get(flight_id)
        if flight is None:
            flight = asyncio.create_task(self._refresh(tenant_id, data_key_id, row), name=f"data key {data_key_id}")
            self._flights[flight_id] = flight
            flight.add_done_callback(lambda task: self._landed(flight_id, task))
        if entry is None or now - entry.unwrapped_at >= self._stale_s:
            return await asyncio.shield(flight)
        try:
            async with asyncio.timeout(self._patience_s):
                return await asyncio.shield(flight)
        except TimeoutError:
            if self._cache.get(data_key_id) is not entry:
                return await asyncio.shield(flight)
            return entry.key

    def _landed(self, flight_id: tuple[UUID, UUID], task: asyncio.Task[bytes]) -> None:
        self._flights.pop(flight_id, None)
        if not task.cancelled():
            task.exception()  # every waiter may have been cancelled: asyncio would log an unretrieved exception

    async def _refresh(self, tenant_id: UUID, data_key_id: UUID, row: _Row | None) -> bytes:
        entry = self._cache.get(data_key_id)
        drops = self._drops
        try:
            row = row or await self._read(tenant_id, data_key_id)
            if row is None:
                raise SealBroken("the data key does not exist for this tenant")
            self._known[data_key_id] = tenant_id, row.wrapped.kek_uri
            key = await self._unwrap(tenant_id, data_key_id, row.wrapped)
        except KekDisabled:
            if row is not None:
                self._drop_wrapped_by(row.wrapped.kek_uri)
            self._cache.pop(data_key_id, None)
            raise
        except SealBroken:
            self._cache.pop(data_key_id, None)
            self._known.pop(data_key_id, None)
            raise
        except AWAY as error:
            now = self._clock()
            dropped = self._cache.get(data_key_id) is not entry
            if entry is None or dropped or now - entry.unwrapped_at >= self._stale_s:
                self._cache.pop(data_key_id, None)
                if isinstance(error, Unavailable):
                    raise
                raise KekUnavailable("Stored secrets cannot be read right now.", debug=repr(error)) from error
            entry.retry_at = now + RETRY_S
            _log.warning("serving a data key %.0f s after its last check: %r", now - entry.unwrapped_at, error)
            return entry.key
        if drops == self._drops:
            self._keep(tenant_id, data_key_id, key, row.wrapped)
        return key

    async def _unwrap(self, tenant_id: UUID, data_key_id: UUID, wrapped: Wrapped) -> bytes:
        # A provider that hangs is left alone for a while: a start with a thousand tenants must not wait for each.
        if self._clock() < self._silent_until.get(wrapped.kek_uri, 0.0):
            raise KekUnavailable("The key-encryption key's provider does not answer.", debug="it did not a moment ago")
        try:
            async with asyncio.timeout(self._timeout_s):
                key = await self._wrapper.unwrap(wrap_context(tenant_id, data_key_id), wrapped)
        except TimeoutError:
            self._silent_until[wrapped.kek_uri] = self._clock() + RETRY_S
            raise KekUnavailable(
                "The key-encryption key's provider does not answer.", debug=f"no answer in {self._timeout_s} s"
            ) from None
        self._silent_until.pop(wrapped.kek_uri, None)
        if len(key) != KEY_BYTES:
            raise SealBroken("the unwrapped data key has the wrong length")
        return key

    def _keep(self, tenant_id: UUID, data_key_id: UUID, key: bytes, wrapped: Wrapped) -> None:
        self._cache[data_key_id] = _Cached(tenant_id, key, wrapped, self._clock(), 0.0)
        self._cache.move_to_end(data_key_id)
        while len(self._cache) > self._capacity:
            self._cache.popitem(last=False)

    async def _active(self, tenant_id: UUID) -> _Row | None:
        async with self._connections.tenant(tenant_id) as connection:
            record = await connection.fetchrow(
                "select id, kek_uri, wrapped from data_key where tenant_id = $1 and state = 'active'", tenant_id
            )
        return _row(record)

    async def _read(self, tenant_id: UUID, data_key_id: UUID) -> _Row | None:
        async with self._connections.tenant(tenant_id) as connection:
            record = await connection.fetchrow(
                "select id, kek_uri, wrapped from data_key where tenant_id = $1 and id = $2", tenant_id, data_key_id
            )
        return _row(record)

    async def _create(self, tenant_id: UUID) -> _Row:
        key_id = uuid7()
        key = self._random_bytes(KEY_BYTES)
        try:
            async with asyncio.timeout(self._timeout_s):
                wrapped = await self._wrapper.wrap(wrap_context(tenant_id, key_id), key)
        except TimeoutError:
            raise KekUnavailable("The key-encryption key's provider does not answer.") from None
        spare = await wrap_spare(self._spare, tenant_id, key_id, key)
        async with self._connections.tenant(tenant_id) as connection:
            # Two processes may both find none: the index lets one in, the other uses what it finds.
            await connection.execute(
                "insert into data_key (id, tenant_id, version, kek_uri, wrapped, spare_uri, spare_wrapped) "
                "values ($1, $2, 1, $3, $4, $5, $6) on conflict do nothing",
                key_id,
                tenant_id,
                wrapped.kek_uri,
                wrapped.blob,
                None if spare is None else spare.kek_uri,
                None if spare is None else spare.blob,
            )
        row = await self._active(tenant_id)
        if row is None:
            raise LookupError("a data key was inserted and no active one is to be seen")
        return row


def _row(record: asyncpg.Record | None) -> _Row | None:
    return None if record is None else _Row(record["id"], Wrapped(record["kek_uri"], bytes(record["wrapped"])))
