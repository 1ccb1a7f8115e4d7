"""What the packages ask of a database: a transaction that can see one tenant, or the platform's own view.

Two faces of one Postgres: `Sessions` (SQLAlchemy, control plane) and `Connections` (asyncpg, data path). Both open a
transaction whose row-level security context is set; it commits when the block ends cleanly and rolls back otherwise.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

if TYPE_CHECKING:
    import asyncpg
    from sqlalchemy.ext.asyncio import AsyncSession


class Sessions(Protocol):
    """ORM transactions for the control plane."""

    def tenant(self, tenant_id: UUID) -> AbstractAsyncContextManager[AsyncSession]:
        """Open a transaction in which only rows of `tenant_id` exist."""

    def platform(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Open a transaction that sees every tenant: directory look-ups and operators' calls only."""


class Connections(Protocol):
    """asyncpg transactions for the data path and the jobs."""

    def tenant(self, tenant_id: UUID) -> AbstractAsyncContextManager[asyncpg.pool.PoolConnectionProxy[asyncpg.Record]]:
        """Open a transaction in which only rows of `tenant_id` exist."""

    def platform(self) -> AbstractAsyncContextManager[asyncpg.pool.PoolConnectionProxy[asyncpg.Record]]:
        """Open a transaction that sees every tenant: snapshots, leases, usage batches and jobs only."""
