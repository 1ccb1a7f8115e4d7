"""Postgres for the data path and the jobs: transactions that carry a row-level security context, and notifications.

Implements `auth.storage.Connections` on asyncpg alone, so that a data path process loads no ORM.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import asyncpg

from auth.errors import Unavailable

if TYPE_CHECKING:
    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

log = logging.getLogger(__name__)

CHANNEL: Final = "llm_proxy"
"""The NOTIFY channel of changes; payloads are `{"table": …, "tenant_id": …}`, sent by triggers at commit."""

AWAY = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InterfaceError,
    asyncpg.TooManyConnectionsError,
    TimeoutError,
)
"""What asyncpg raises when the server is away, starting, stopping or full."""


STANDBY = (asyncpg.ReadOnlySQLTransactionError, asyncpg.FeatureNotSupportedError)
"""What a server says that takes no writes; the second when it is asked for an unlogged table. In a failover an address
may lead to a standby for a moment, and a connection made then would stay there for as long as it lives."""


class DatabaseAway(Unavailable):
    """Postgres does not answer; what the data path holds in memory goes on serving."""

    code = "database_unavailable"


@dataclass(frozen=True, slots=True)
class Change:
    """One committed change of a table that processes hold in memory; `table` "*" means: assume that all changed."""

    table: str
    tenant_id: UUID | None


EVERYTHING: Final = Change("*", None)
"""Told after every (re)connect: notices sent while nobody listened are lost."""


SEES: Final = (
    "select set_config('app.tenant_id', {tenant}, true), set_config('app.scope', {scope}, true),"
    " case when current_setting('idle_in_transaction_session_timeout') = '0'"
    " then set_config('idle_in_transaction_session_timeout', '60s', true) end"
)
"""Both, always: a pooler between may hand on a server connection on which a session has left the other one set.

The third: what a process has locked that is stopped in mid-transaction, or whose machine is gone, the server lets go of
after a minute. By itself it would wait for hours."""
_SEES: Final = SEES.format(tenant="$1", scope="$2")
_LEAVE_EVERY_S: Final = 5.0
"""Connections to a server that takes no writes are given up no more often: it may be the only one there is."""


class Postgres:
    """A pool of connections in which every transaction sees one tenant, or the whole platform.

    `url` is a libpq URL of a role that is neither superuser nor BYPASSRLS. `direct_url` reaches the server past a
    PgBouncer in transaction mode, for LISTEN and advisory locks, which do not survive one; behind such a bouncer
    `statement_cache_size` must be 0. JSON columns arrive as text, asyncpg's way.
    Raises `DatabaseAway` when the server is away; times in seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        direct_url: str | None = None,
        min_size: int = 0,
        max_size: int = 8,
        statement_cache_size: int = 100,
        command_timeout_s: float = 10.0,
        acquire_timeout_s: float = 5.0,
        application_name: str = "llm-proxy",
    ) -> None:
        self._url = url
        self._direct_url = direct_url or url
        self._min_size = min_size
        self._max_size = max_size
        self._statement_cache_size = statement_cache_size
        self._command_timeout_s = command_timeout_s
        self._acquire_timeout_s = acquire_timeout_s
        self._server_settings = {"application_name": application_name}
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._opening = asyncio.Lock()
        self._left_at = -inf

    async def close(self) -> None:
        """Give every connection back and close it; in-flight statements get five seconds."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(5):
                await pool.close()
        except TimeoutError:
            pool.terminate()

    @contextlib.asynccontextmanager
    async def tenant(self, tenant_id: UUID) -> AsyncIterator[Connection]:
        """Open a transaction in which only rows of `tenant_id` exist."""
        async with self._transaction(str(tenant_id), "") as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def platform(self) -> AsyncIterator[Connection]:
        """Open a transaction that sees every tenant: snapshots, leases, usage batches and jobs only."""
        async with self._transaction("", "platform") as connection:
            yield connection

    async def ping(self, timeout_s: float = 2.0) -> bool:
        """Tell whether the server answers within `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s), self._transaction("", "") as connection:
                await connection.fetchval("select 1")
        except (DatabaseAway, TimeoutError):
            return False
        return True

    async def connect_directly(self) -> asyncpg.Connection[asyncpg.Record]:
        """Open one connection outside the pool, for session state: LISTEN and advisory locks. The caller closes it."""
        try:
            connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
                self._direct_url,
                timeout=self._acquire_timeout_s,
                command_timeout=self._command_timeout_s,
                server_settings=self._server_settings,
            )
        except AWAY as error:
            raise away(error) from error
        return connection

    async def listen(
        self,
        heard: Callable[[Change], None],
        *,
        also: Mapping[str, Callable[[str], None]] | None = None,
        retry_s: float = 1.0,
        heartbeat_s: float = 15.0,
    ) -> None:
        """Call `heard` for every committed change, for ever; run it as a task and cancel it.

        After each (re)connect `heard(EVERYTHING)` is called first. A connection that died silently is noticed by a
        query every `heartbeat_s`. `also`: what gets the payloads of other channels, by channel.
        """
        connected_before = False
        while True:
            try:
                connection = await self.connect_directly()
            except Exception as error:  # noqa: BLE001 - a loop's boundary: a server that refuses may take us later
                if connected_before or not isinstance(error, DatabaseAway):
                    reason = error.debug if isinstance(error, DatabaseAway) else f"{type(error).__name__}: {error}"
                    log.warning("notifications: the database is away, trying again", extra={"reason": reason})
                    connected_before = False
                await asyncio.sleep(retry_s)
                continue
            connected_before = True
            try:
                await self._hear(connection, heard, also or {}, heartbeat_s)
            except Exception as error:  # noqa: BLE001 - likewise
                log.warning("notifications: connection lost, reconnecting", extra={"reason": type(error).__name__})
                await asyncio.sleep(retry_s)
            finally:
                connection.terminate()

    async def _hear(
        self,
        connection: asyncpg.Connection[asyncpg.Record],
        heard: Callable[[Change], None],
        also: Mapping[str, Callable[[str], None]],
        heartbeat_s: float,
    ) -> None:
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _: ended.set())

        def on_notice(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            heard(parse_change(str(payload)))

        def on_other(_connection: object, _pid: int, channel: str, payload: object) -> None:
            also[channel](str(payload))

        await connection.add_listener(CHANNEL, on_notice)
        for channel in also:
            await connection.add_listener(channel, on_other)
        heard(EVERYTHING)
        while not ended.is_set():
            try:
                async with asyncio.timeout(heartbeat_s):
                    await ended.wait()
            except TimeoutError:
                await connection.fetchval("select 1", timeout=heartbeat_s)
        raise asyncpg.ConnectionDoesNotExistError("the server closed the connection")

    @contextlib.asynccontextmanager
    async def _transaction(self, tenant: str, scope: str) -> AsyncIterator[Connection]:
        pool = self._pool or await self._open()
        try:
            connection = await pool.acquire(timeout=self._acquire_timeout_s)
        except AWAY as error:
            raise away(error) from error
        try:
            transaction = connection.transaction()
            try:
                await transaction.start()
                await connection.execute(_SEES, tenant, scope)
            except AWAY as error:
                raise away(error) from error
            try:
                yield connection
            except AWAY as error:
                await _roll_back(transaction)
                if isinstance(error, Unavailable) or not _is_ours(error, connection):
                    raise
                raise away(error) from error
            except STANDBY as error:
                await _roll_back(transaction)
                await self._leave(pool)
                raise away(error) from error
            except Exception:
                await _roll_back(transaction)
                raise
            try:
                await transaction.commit()
            except AWAY as error:
                raise away(error) from error
        except BaseException as error:
            if not isinstance(error, Exception):
                # Cancelled: a polite rollback may take as long as what was given up; the server does it at the hang-up.
                connection.terminate()
            raise
        finally:
            with contextlib.suppress(*AWAY):
                await pool.release(connection, timeout=self._acquire_timeout_s)

    async def _leave(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        """Have every connection of the pool made anew before its next use."""
        now = asyncio.get_running_loop().time()
        if now - self._left_at >= _LEAVE_EVERY_S:
            self._left_at = now
            await pool.expire_connections()

    async def _open(self) -> asyncpg.Pool[asyncpg.Record]:
        async with self._opening:
            if self._pool is None:
                pool = asyncpg.create_pool(
                    self._url,
                    min_size=self._min_size,
                    max_size=self._max_size,
                    statement_cache_size=self._statement_cache_size,
                    command_timeout=self._command_timeout_s,
                    timeout=self._acquire_timeout_s,
                    server_settings=self._server_settings,
                )
                try:
                    await pool
                except AWAY as error:
                    pool.terminate()
                    raise away(error) from error
                self._pool = pool
            return self._pool


def parse_change(payload: str) -> Change:
    """Read a notice; one that is not understood counts as a change of everything, which is always safe."""
    try:
        data = json.loads(payload)
        tenant = data.get("tenant_id")
        return Change(str(data["table"]), UUID(tenant) if tenant else None)
    except (ValueError, KeyError, TypeError, AttributeError):
        return EVERYTHING


async def _roll_back(transaction: Any) -> None:
    with contextlib.suppress(*AWAY):
        await transaction.rollback()


def _is_ours(error: BaseException, connection: Connection) -> bool:
    """Tell a lost connection from an OSError or timeout that the caller's own code raised inside the block."""
    return isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError) or connection.is_closed()


def away(error: BaseException) -> DatabaseAway:
    """Tell that the server is away, after one of `AWAY`."""
    return DatabaseAway(
        "The database does not answer.",
        hint="Try again in a few seconds; the operators are told.",
        debug=f"{type(error).__name__}: {error}",
    )
