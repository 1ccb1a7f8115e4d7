"""A tenant as the data path holds it: pools, quotas and decrypted keys, read with asyncpg alone."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol
from uuid import UUID

import asyncpg
import msgspec

from auth.sealing import Sealer
from auth.secret import Secret
from auth.storage import Connections
from tenants.custody import key_context
from tenants.errors import KekDisabled, KekUnavailable, SealBroken
from tenants.federation import FederatedSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FederatedSource:
    """Where the tokens of keys without a secret come from; `settings` were checked when the source was made."""

    source_id: UUID
    settings: FederatedSettings


@dataclass(frozen=True, slots=True)
class KeySnapshot:
    """One usable key; `version` is the number of the key version that `secret` belongs to.

    `secret` is None for a key that has none: tokens for it come from `source`.
    """

    key_id: UUID
    name: str
    version: int
    secret: Secret | None
    provider: str
    base_url: str | None
    region: str | None
    tier: int
    weight: int
    models: tuple[str, ...]
    model_map: Mapping[str, str]
    max_in_flight: int | None
    quota_id: UUID
    source: FederatedSource | None = None


@dataclass(frozen=True, slots=True)
class QuotaSnapshot:
    """A quota; `limits` maps rpm, tpm, itpm, otpm, rpd, tpd and concurrency to numbers, `models` to such mappings."""

    id: UUID
    name: str
    provider: str
    limits: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """A pool with its enabled keys and the quotas that they draw on."""

    pool_id: UUID
    name: str
    strategy: str
    is_default: bool
    settings: Mapping[str, Any]
    keys: tuple[KeySnapshot, ...]
    quotas: tuple[QuotaSnapshot, ...]


@dataclass(frozen=True, slots=True)
class DrainingVersion:
    """A version that new requests must not use any more; `since` tells one drain of it from another."""

    version_id: UUID
    key_id: UUID
    number: int
    since: datetime


@dataclass(frozen=True, slots=True)
class TenantSnapshot:
    """A tenant at `revision`, which grows with every change; `unopened` are ids of keys whose secret would not open.

    None of the `draining` versions is in `pools`, unless it came back in between.
    """

    tenant_id: UUID
    slug: str
    status: str
    revision: int
    settings: Mapping[str, Any]
    pools: tuple[PoolSnapshot, ...]
    unopened: tuple[UUID, ...] = field(default=())
    draining: tuple[DrainingVersion, ...] = field(default=())


_TENANTS = "select id, slug, status, config_revision, settings from tenant"
_MARK = "select count(*), sum(config_revision), max(config_revision) from tenant"
_POOLS = "select id, tenant_id, name, strategy, is_default, settings from pool"
_QUOTAS = "select id, tenant_id, name, provider, limits from quota"
_KEYS = """
select k.id, k.tenant_id, k.pool_id, k.quota_id, k.name, k.provider, k.base_url, k.region, k.tier, k.weight, k.models,
       k.model_map, k.max_in_flight, v.number, v.data_key_id, v.envelope, s.id as source_id, s.config as source_config
from provider_key k join key_version v on v.tenant_id = k.tenant_id and v.key_id = k.id and v.state = 'current'
left join key_source s on s.tenant_id = k.tenant_id and s.id = k.source_id and s.driver = 'federated'
where k.enabled and (v.envelope is not null or s.id is not null)
"""
_DRAINING = "select id, tenant_id, key_id, number, state_changed_at from key_version where state = 'draining'"


AT_ONCE: Final = 16
"""Tenants whose data keys are unwrapped at a time: one after the other, a start would last as long as a slow KMS."""


class SnapshotLoader:
    """Reads and decrypts; a key that does not open is left out, logged and counted, and the rest is served.

    `warm` readies the sealer for opening every tenant's keys.
    """

    def __init__(
        self, connections: Connections, sealer: Sealer, *, warm: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        self._connections = connections
        self._sealer = sealer
        self._warm = warm
        self.unopened_total = 0
        self._unopened: dict[UUID, int] = {}

    @property
    def unopened_now(self) -> int:
        """How many keys are left out of what was loaded last: unlike the total, it tells of a start too."""
        return sum(self._unopened.values())

    async def load(self, tenant_id: UUID) -> TenantSnapshot | None:
        """Load one tenant, None if it does not exist; `KekUnavailable` when its keys cannot be opened for now."""
        async with self._connections.tenant(tenant_id) as connection:
            rows = await read_rows(connection, tenant_id)
        if not rows.tenants:
            self._unopened.pop(tenant_id, None)
            return None
        return await self._assemble(rows, rows.tenants[0])

    async def load_all(self) -> list[TenantSnapshot]:
        """Load every tenant; one whose keys cannot be opened for now is left out: `load` it later.

        `KekUnavailable` when not one stored key opens because providers are away: a process that has just started must
        not take the place of one that still has them in memory.
        """
        async with self._connections.platform() as connection:
            rows = await read_rows(connection)
        if self._warm is not None:
            await self._warm()
        snapshots, away = await self._assemble_each(rows)
        if away is not None and not any(key.secret for each in snapshots for pool in each.pools for key in pool.keys):
            raise away
        return snapshots

    async def assemble_all(self, rows: SnapshotRows) -> list[TenantSnapshot]:
        """Make the snapshots of rows that were read before, without those whose keys cannot be opened for now."""
        snapshots, _ = await self._assemble_each(rows)
        return snapshots

    async def _assemble_each(self, rows: SnapshotRows) -> tuple[list[TenantSnapshot], KekUnavailable | None]:
        gate = asyncio.Semaphore(AT_ONCE)
        away: list[KekUnavailable] = []

        async def one(tenant: Row) -> TenantSnapshot | None:
            async with gate:
                try:
                    return await self._assemble(rows, tenant)
                except KekUnavailable as error:
                    away.append(error)
                    return None

        made = await asyncio.gather(*map(one, rows.tenants))
        if away:
            _log.error("%d tenants are not loaded: %s (%s)", len(away), away[0].public, away[0].debug)
        return [each for each in made if each is not None], away[0] if away else None

    async def revisions(self) -> dict[UUID, int]:
        """Return the revision of every tenant: what the poll behind LISTEN compares."""
        async with self._connections.platform() as connection:
            found = {row["id"]: row["config_revision"] for row in await connection.fetch(_TENANTS)}
        for gone in self._unopened.keys() - found.keys():
            del self._unopened[gone]
        return found

    async def mark(self) -> object:
        """Return what equals an earlier mark only if no tenant has come, gone or got another revision since.

        Revisions come from one sequence and only rise: among as many tenants as before, any change raises their sum.
        """
        async with self._connections.platform() as connection:
            row = await connection.fetchrow(_MARK)
        return None if row is None else tuple(row)

    async def revision(self, tenant_id: UUID) -> int | None:
        """Return the revision of one tenant, None if it does not exist."""
        async with self._connections.tenant(tenant_id) as connection:
            found: int | None = await connection.fetchval("select config_revision from tenant where id = $1", tenant_id)
            return found

    async def _assemble(self, rows: SnapshotRows, tenant: Row) -> TenantSnapshot:
        tenant_id = tenant["id"]
        quotas = {row["id"]: _quota(row) for row in rows.quotas[tenant_id]}
        keys: dict[UUID, list[KeySnapshot]] = defaultdict(list)
        unopened = []
        for row in rows.keys[tenant_id]:
            secret = None if row["envelope"] is None else await self._open(row)
            source = _source(row) if row["envelope"] is None else None
            if secret is None and source is None:
                unopened.append(row["id"])
            else:
                keys[row["pool_id"]].append(_key(row, secret, source))
        pools = tuple(_pool(row, keys[row["id"]], quotas) for row in rows.pools[tenant_id])
        self._unopened.pop(tenant_id, None)
        if unopened:
            self._unopened[tenant_id] = len(unopened)
        return TenantSnapshot(
            tenant_id=tenant_id,
            slug=tenant["slug"],
            status=tenant["status"],
            revision=tenant["config_revision"],
            settings=_json(tenant["settings"]),
            pools=pools,
            unopened=tuple(unopened),
            draining=tuple(_draining(row) for row in rows.draining.get(tenant_id, ())),
        )

    async def _open(self, row: Row) -> Secret | None:
        context = key_context(row["pool_id"], row["id"], row["number"], row["provider"])
        try:
            plain = await self._sealer.open(row["tenant_id"], row["data_key_id"], context, bytes(row["envelope"]))
            return Secret(plain.decode())
        except (SealBroken, KekDisabled, UnicodeDecodeError) as error:
            self.unopened_total += 1
            _log.error(
                "key %s version %d of tenant %s does not open and is left out: %s",
                row["id"],
                row["number"],
                row["tenant_id"],
                type(error).__name__ if isinstance(error, UnicodeDecodeError) else error,
            )
            return None


class Row(Protocol):
    """One row by column name: a record of asyncpg, or a dictionary that was one."""

    def __getitem__(self, column: str, /) -> Any:
        """Give the value of a column."""


@dataclass(frozen=True, slots=True)
class SnapshotRows:
    """What snapshots are made of, as the database has it: tenants, and by tenant pools, quotas and current keys.

    `draining` is of use to a process that can write to the database only, and may be left out.
    """

    tenants: Sequence[Row]
    pools: Mapping[UUID, Sequence[Row]]
    quotas: Mapping[UUID, Sequence[Row]]
    keys: Mapping[UUID, Sequence[Row]]
    draining: Mapping[UUID, Sequence[Row]] = field(default_factory=dict)


async def read_rows(
    connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record], tenant_id: UUID | None = None
) -> SnapshotRows:
    """Read the rows of one tenant, None: of all; the secrets in them stay sealed."""
    # Five statements of one transaction may see five states; the revision is read first, so that a change in between
    # makes the poll load again, never the other way round; and drains before keys, so that a version which is told to
    # drain here is not among the keys.
    arguments = [] if tenant_id is None else [tenant_id]

    def only(column: str, word: str) -> str:
        return "" if tenant_id is None else f" {word} {column} = $1"

    tenants = await connection.fetch(_TENANTS + only("id", "where") + " order by id", *arguments)
    pools = await connection.fetch(_POOLS + only("tenant_id", "where") + " order by name", *arguments)
    quotas = await connection.fetch(_QUOTAS + only("tenant_id", "where"), *arguments)
    draining = await connection.fetch(_DRAINING + only("tenant_id", "and"), *arguments)
    keys = await connection.fetch(_KEYS + only("k.tenant_id", "and") + " order by k.id", *arguments)
    return SnapshotRows(tenants, by_tenant(pools), by_tenant(quotas), by_tenant(keys), by_tenant(draining))


def by_tenant(rows: Iterable[Row]) -> Mapping[UUID, Sequence[Row]]:
    """Group rows by their tenant, in the order that they have."""
    grouped: dict[UUID, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["tenant_id"]].append(row)
    return grouped


def _pool(row: Row, keys: list[KeySnapshot], quotas: Mapping[UUID, QuotaSnapshot]) -> PoolSnapshot:
    drawn_on = dict.fromkeys(key.quota_id for key in keys)
    return PoolSnapshot(
        pool_id=row["id"],
        name=row["name"],
        strategy=row["strategy"],
        is_default=row["is_default"],
        settings=_json(row["settings"]),
        keys=tuple(keys),
        quotas=tuple(quotas[quota_id] for quota_id in drawn_on if quota_id in quotas),
    )


def _quota(row: Row) -> QuotaSnapshot:
    return QuotaSnapshot(row["id"], row["name"], row["provider"], _json(row["limits"]))


def _source(row: Row) -> FederatedSource | None:
    try:
        return FederatedSource(row["source_id"], msgspec.convert(_json(row["source_config"]), FederatedSettings))
    except msgspec.ValidationError as error:
        _log.error("key %s of tenant %s is left out: its source cannot be read: %s", row["id"], row["tenant_id"], error)
        return None


def _key(row: Row, secret: Secret | None, source: FederatedSource | None) -> KeySnapshot:
    return KeySnapshot(
        key_id=row["id"],
        name=row["name"],
        version=row["number"],
        secret=secret,
        provider=row["provider"],
        base_url=row["base_url"],
        region=row["region"],
        tier=row["tier"],
        weight=row["weight"],
        models=tuple(_json(row["models"])),
        model_map=_json(row["model_map"]),
        max_in_flight=row["max_in_flight"],
        quota_id=row["quota_id"],
        source=source,
    )


def _draining(row: Row) -> DrainingVersion:
    return DrainingVersion(row["id"], row["key_id"], row["number"], row["state_changed_at"])


def _json(value: Any) -> Any:
    """Decode jsonb, which asyncpg hands over as text unless its pool was given a codec."""
    return msgspec.json.decode(value) if isinstance(value, str | bytes) else value
