"""Every tenant's runtime in memory; the database is asked behind the requests, never on their way.

Changes come as notices (LISTEN) and, should one be lost, through a poll of revisions. When the database is away the
last state keeps serving. A tenant that is not known yet is loaded once however many requests ask for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Protocol
from uuid import UUID

from auth.errors import Unavailable
from gateway.proxy.faults import NotLoaded
from gateway.proxy.runtime import TenantRuntime, Workshop, build_tenant
from gateway.unhurried import unhurried
from tenants.snapshot import TenantSnapshot

logger = logging.getLogger(__name__)

IGNORED_TABLES = frozenset({"oauth_client", "client_secret", "signing_key", "token_revocation", "audit_event"})
"""Tables whose changes do not alter a runtime."""
UNKNOWN_FOR_S = 5.0
"""How long a tenant that does not exist is remembered as such."""
RETRY_S = 1.0
LOOK_EVERY_S = 0.25
"""At most so often a tenant's revision is read because of refusals."""
LOOK_S = 0.5
"""How long a refusal may be held back for that."""
_GIVE_UP_AFTER = 3


class Loader(Protocol):
    """Reads snapshots; fulfilled by `tenants.snapshot.SnapshotLoader`."""

    async def load(self, tenant_id: UUID) -> TenantSnapshot | None:
        """Load one tenant, None if it does not exist."""

    async def load_all(self) -> list[TenantSnapshot]:
        """Load every tenant."""

    async def revisions(self) -> dict[UUID, int]:
        """Return the revision of every tenant."""

    async def mark(self) -> object:
        """Return what equals an earlier mark only if no tenant has come, gone or got another revision since."""

    async def revision(self, tenant_id: UUID) -> int | None:
        """Return the revision of one tenant, None if it does not exist."""


class InMemoryLoader:
    """The twin: a dictionary of snapshots. `broken` set to an exception makes every call fail with it."""

    def __init__(self, *snapshots: TenantSnapshot) -> None:
        self.snapshots = {snapshot.tenant_id: snapshot for snapshot in snapshots}
        self.broken: Exception | None = None
        self.loads = 0

    async def load(self, tenant_id: UUID) -> TenantSnapshot | None:
        """See `Loader.load`."""
        self.loads += 1
        await asyncio.sleep(0)
        if self.broken is not None:
            raise self.broken
        return self.snapshots.get(tenant_id)

    async def load_all(self) -> list[TenantSnapshot]:
        """See `Loader.load_all`."""
        await asyncio.sleep(0)
        if self.broken is not None:
            raise self.broken
        return list(self.snapshots.values())

    async def revisions(self) -> dict[UUID, int]:
        """See `Loader.revisions`."""
        await asyncio.sleep(0)
        if self.broken is not None:
            raise self.broken
        return {tenant_id: snapshot.revision for tenant_id, snapshot in self.snapshots.items()}

    async def mark(self) -> object:
        """See `Loader.mark`."""
        return await self.revisions()

    async def revision(self, tenant_id: UUID) -> int | None:
        """See `Loader.revision`."""
        return (await self.revisions()).get(tenant_id)


@dataclass(slots=True)
class _Look:
    """One look at a tenant's revision; whoever comes after it has begun needs another one."""

    begun_at: float | None = None
    task: asyncio.Task[None] | None = None


class Directory:
    """Tenant id → runtime. `start` loads everything and keeps it fresh until `close`.

    `changed` may be called from anywhere on the loop, for each notice. `is_ready` turns true with the first full load.
    """

    def __init__(self, loader: Loader, workshop: Workshop, *, poll_s: float = 5.0, retry_s: float = RETRY_S) -> None:
        self._loader = loader
        self._workshop = workshop
        self._poll_s = poll_s
        self._retry_s = retry_s
        self._tenants: dict[UUID, TenantRuntime] = {}
        self._loading: dict[UUID, asyncio.Task[TenantRuntime | None]] = {}
        self._unknown: dict[UUID, float] = {}
        self._looks: dict[UUID, _Look] = {}
        self._with_tokens: dict[UUID, TenantSnapshot] = {}
        self._draining: set[UUID] = set()
        self._checked: set[UUID] = set()
        self._mark: object = None
        self._away_until = -inf
        self._dirty: set[UUID] = set()
        self._all_dirty = False
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.is_ready = False
        self.is_adopted = False
        """Whether it serves what `adopt` was given, the loader having answered nothing yet."""
        self.failures = 0

    def __iter__(self) -> Iterator[TenantRuntime]:
        return iter(list(self._tenants.values()))

    def draining(self) -> list[TenantRuntime]:
        """Give those with versions of keys that only serve what began with them."""
        return [self._tenants[tenant_id] for tenant_id in self._draining]

    def to_probe(self) -> list[TenantRuntime]:
        """Give those with keys that are out of service, or that want the others checked as well."""
        troubled = self._workshop.troubled
        for tenant_id in list(troubled):
            tenant = self._tenants.get(tenant_id)
            if tenant is None or not any(pool.balancer.out_of_service() for pool in tenant.pools.values()):
                troubled.discard(tenant_id)
        return [self._tenants[tenant_id] for tenant_id in troubled | self._checked]

    def get(self, tenant_id: UUID) -> TenantRuntime | None:
        """Return the runtime if it is in memory: the way of all but a tenant's first request."""
        return self._tenants.get(tenant_id)

    async def find(self, tenant_id: UUID) -> TenantRuntime | None:
        """Return the runtime, loading it if need be; None if there is no such tenant. Raises NotLoaded (503)."""
        found = self._tenants.get(tenant_id)
        if found is not None:
            return found
        if self._unknown.get(tenant_id, 0.0) > self._workshop.clock():
            return None
        task = self._loading.get(tenant_id)
        if task is None:
            task = asyncio.create_task(self._load(tenant_id))
            self._loading[tenant_id] = task
            task.add_done_callback(lambda _: self._loading.pop(tenant_id, None))
        try:
            # Shielded: a caller that leaves must not take the load from the others.
            return await asyncio.shield(task)
        except (Unavailable, TimeoutError, OSError) as error:
            raise NotLoaded(
                "The tenant's configuration cannot be read for now.",
                hint="Try again in a few seconds.",
                debug=repr(error),
                retry_after_s=RETRY_S,
            ) from error

    async def look_again(self, tenant_id: UUID) -> None:
        """Bring one tenant up to the state at the time of this call, before a request is refused for what it lacks.

        Changes arrive by notice, a moment after their writer was answered; who creates a pool and uses it at once must
        not meet the state from before. Never takes longer than `LOOK_S`, nor raises; does nothing while the database is
        away. Many callers share a look, but only one that began after they came.
        """
        now = self._workshop.clock()
        if now < self._away_until:
            return
        look = self._looks.get(tenant_id)
        if look is None or look.begun_at is not None:
            delay_s = 0.0 if look is None or look.begun_at is None else look.begun_at + LOOK_EVERY_S - now
            look = self._looks[tenant_id] = _Look()
            look.task = asyncio.create_task(self._look(look, tenant_id, delay_s))
        assert look.task is not None
        try:
            async with asyncio.timeout(LOOK_S):
                await asyncio.shield(look.task)
        except TimeoutError:
            self._away_until = self._workshop.clock() + RETRY_S

    async def _look(self, look: _Look, tenant_id: UUID, delay_s: float) -> None:
        if delay_s > 0.0:
            await asyncio.sleep(delay_s)
        look.begun_at = self._workshop.clock()
        try:
            revision = await self._loader.revision(tenant_id)
            known = self._tenants.get(tenant_id)
            if known is None or known.revision != revision:
                await self._load(tenant_id)
                if tenant_id in self._with_tokens and self._workshop.tokens is not None:
                    await self._workshop.tokens.settled(tenant_id)
        except Exception as error:  # noqa: BLE001 - a look's boundary: the refusal stands, the poll goes on trying
            self.failures += 1
            self._away_until = self._workshop.clock() + RETRY_S
            logger.warning("configuration not looked up, serving what is known", extra={"error": repr(error)})

    async def start(self) -> None:
        """Begin loading in the background; returns once everything is loaded or the first attempt has failed."""
        first = asyncio.Event()
        self._task = asyncio.create_task(self._run(first), name="directory")
        await first.wait()

    def adopt(self, snapshots: Iterable[TenantSnapshot]) -> None:
        """Serve `snapshots` that were kept from before, until the loader answers; no effect once it has."""
        if self.is_ready:
            return
        for snapshot in snapshots:
            self._put(snapshot)
        self.is_ready = self.is_adopted = self._all_dirty = True

    async def close(self) -> None:
        """Stop refreshing; what is loaded stays."""
        tasks = [
            task
            for task in (self._task, *self._loading.values(), *(look.task for look in self._looks.values()))
            if task is not None
        ]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    def changed(self, table: str, tenant_id: UUID | None) -> None:
        """Take one notice of a committed change; `tenant_id` None means that anything may have changed."""
        if table in IGNORED_TABLES:
            return
        if tenant_id is None:
            self._all_dirty = True
            self._unknown.clear()
        else:
            self._dirty.add(tenant_id)
            self._unknown.pop(tenant_id, None)
        self._wake.set()

    async def refresh(self) -> None:
        """Load whatever changed since the last load. Raises what the loader raises; nothing is lost by it."""
        if not self.is_ready:
            for snapshot in await self._loader.load_all():
                self._put(snapshot)
            self.is_ready = True
        if self._all_dirty:
            self._all_dirty = False
            try:
                # Taken before the revisions: what changes in between is found by the next look.
                mark = await self._loader.mark()
                if mark != self._mark or self.is_adopted:
                    await self._compare()
            except BaseException:
                self._all_dirty = True
                raise
            self._mark, self.is_adopted = mark, False
        failed = 0
        for tenant_id in list(self._dirty):
            self._dirty.discard(tenant_id)
            try:
                await self._load(tenant_id)
            except BaseException as error:
                self._dirty.add(tenant_id)
                failed += 1
                # One tenant whose keys do not open must not hold the others back; several in a row: all are away.
                if failed >= _GIVE_UP_AFTER or not isinstance(error, Exception):
                    raise
                logger.warning("a tenant's configuration cannot be read", extra={"tenant_id": str(tenant_id)})

    async def _compare(self) -> None:
        """Find out which tenants have changed or are gone."""
        revisions = await self._loader.revisions()
        for tenant_id in self._tenants.keys() - revisions.keys():
            self._drop(tenant_id)
        async for tenant_id, revision in unhurried(revisions.items()):
            known = self._tenants.get(tenant_id)
            if known is None or known.revision < revision:
                self._dirty.add(tenant_id)

    async def _run(self, first: asyncio.Event) -> None:
        away = False
        while True:
            self._wake.clear()
            delay_s = self._poll_s
            try:
                await self.refresh()
                if away:
                    logger.info("configuration refreshed again")
                away = False
            except Exception as error:  # noqa: BLE001 - a loop's boundary: the last state serves until the next try
                self.failures += 1
                delay_s = self._retry_s
                self._away_until = self._workshop.clock() + RETRY_S
                # One warning an outage: a try a second would bury everything else.
                level = logging.DEBUG if away else logging.WARNING
                away = True
                logger.log(level, "configuration not refreshed, serving what is known", extra={"error": repr(error)})
            first.set()
            try:
                async with asyncio.timeout(delay_s):
                    # After a failure notices do not shorten the wait: the loader is away.
                    await (self._wake.wait() if delay_s == self._poll_s else asyncio.Event().wait())
            except TimeoutError:
                self._all_dirty = True

    async def _load(self, tenant_id: UUID) -> TenantRuntime | None:
        snapshot = await self._loader.load(tenant_id)
        if snapshot is None:
            self._drop(tenant_id)
            self._looks.pop(tenant_id, None)
            if len(self._unknown) > 10_000:
                self._unknown.clear()
            self._unknown[tenant_id] = self._workshop.clock() + UNKNOWN_FOR_S
            return None
        return self._put(snapshot)

    def _put(self, snapshot: TenantSnapshot) -> TenantRuntime:
        before = self._tenants.get(snapshot.tenant_id)
        if before is not None and before.revision > snapshot.revision:
            return before  # two loads crossed: the later state stays
        self._unknown.pop(snapshot.tenant_id, None)
        if self._workshop.tokens is not None and self._workshop.tokens.want(snapshot):
            self._with_tokens[snapshot.tenant_id] = snapshot
        else:
            self._with_tokens.pop(snapshot.tenant_id, None)
        runtime = self._tenants[snapshot.tenant_id] = build_tenant(snapshot, before, self._workshop)
        checked = any(pool.settings.health_check_s is not None for pool in runtime.pools.values())
        for ids, is_one in ((self._draining, bool(runtime.draining)), (self._checked, checked)):
            if is_one:
                ids.add(snapshot.tenant_id)
            else:
                ids.discard(snapshot.tenant_id)
        return runtime

    def _drop(self, tenant_id: UUID) -> None:
        self._tenants.pop(tenant_id, None)
        self._draining.discard(tenant_id)
        self._checked.discard(tenant_id)
        self._forget_tokens(tenant_id)

    def token_changed(self, tenant_id: UUID) -> None:
        """Rebuild a tenant some of whose keys got a new token, or lost theirs."""
        snapshot = self._with_tokens.get(tenant_id)
        before = self._tenants.get(tenant_id)
        if snapshot is not None and before is not None:
            self._tenants[tenant_id] = build_tenant(snapshot, before, self._workshop)

    def _forget_tokens(self, tenant_id: UUID) -> None:
        if self._with_tokens.pop(tenant_id, None) is not None and self._workshop.tokens is not None:
            self._workshop.tokens.forget(tenant_id)
