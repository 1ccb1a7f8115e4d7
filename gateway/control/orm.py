"""ORM transactions for the control plane, each with its row-level security context set."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from sqlalchemy import event, text
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from gateway.database import AWAY, SEES, STANDBY, DatabaseAway

_SEES = text(SEES.format(tenant=":tenant", scope=":scope"))


class OrmSessions:
    """Implements `auth.storage.Sessions` on one pooled engine; `aclose` when done.

    `url` is a libpq URL (`postgresql://…`); `statement_cache_size` 0 suits a PgBouncer in transaction mode.
    """

    def __init__(self, url: str, *, pool_size: int = 5, max_overflow: int = 5, statement_cache_size: int = 100) -> None:
        self._engine = make_engine(
            url, pool_size=pool_size, max_overflow=max_overflow, statement_cache_size=statement_cache_size
        )
        event.listen(self._engine.sync_engine, "handle_error", _leave_standby)
        self._open = async_sessionmaker(self._engine, expire_on_commit=False)

    @property
    def engine(self) -> AsyncEngine:
        """The engine behind the sessions, for tests that count queries."""
        return self._engine

    async def aclose(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    @contextlib.asynccontextmanager
    async def tenant(self, tenant_id: UUID) -> AsyncIterator[AsyncSession]:
        """Open a transaction in which only rows of `tenant_id` exist."""
        async with self._transaction(str(tenant_id), "") as session:
            yield session

    @contextlib.asynccontextmanager
    async def platform(self) -> AsyncIterator[AsyncSession]:
        """Open a transaction that sees every tenant: directory look-ups and operators' calls only."""
        async with self._transaction("", "platform") as session:
            yield session

    @contextlib.asynccontextmanager
    async def _transaction(self, tenant: str, scope: str) -> AsyncIterator[AsyncSession]:
        try:
            async with self._open() as session, session.begin():
                await session.execute(_SEES, {"tenant": tenant, "scope": scope})
                yield session
        except (OSError, PoolTimeout, OperationalError, InterfaceError) as error:
            raise _away(error) from error
        except DBAPIError as error:
            if error.connection_invalidated or isinstance(getattr(error.orig, "__cause__", None), AWAY):
                raise _away(error) from error
            raise


def make_engine(url: str, *, statement_cache_size: int = 100, **pool: Any) -> AsyncEngine:
    """Make an engine for a libpq URL; `pool` are SQLAlchemy's pool arguments."""
    return create_async_engine(
        asyncpg_url(url),
        pool_pre_ping=True,
        json_serializer=json.dumps,
        connect_args={
            "statement_cache_size": statement_cache_size,
            "prepared_statement_cache_size": statement_cache_size,
            # Without a cache SQLAlchemy would still name each statement, as another process behind a PgBouncer does.
            **({} if statement_cache_size else {"prepared_statement_name_func": str}),
            "timeout": 5,
            "server_settings": {"application_name": "llm-proxy control"},
        },
        **pool,
    )


def asyncpg_url(url: str) -> URL:
    """Translate a libpq URL into SQLAlchemy's; `sslmode` becomes asyncpg's `ssl`, which takes the same words."""
    parsed = make_url(url).set(drivername="postgresql+asyncpg")
    mode = parsed.query.get("sslmode")
    if mode is not None:
        parsed = parsed.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})
    return parsed


def _leave_standby(context: ExceptionContext) -> None:
    """Have the pool's connections made anew when they lead to a server that takes no writes."""
    if isinstance(context.original_exception.__cause__, STANDBY):
        context.is_disconnect = True


def _away(error: BaseException) -> DatabaseAway:
    return DatabaseAway(
        "The database does not answer.",
        hint="Try again in a few seconds; the operators are told.",
        debug=f"{type(error).__name__}: {error}",
    )
