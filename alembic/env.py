"""Runs migrations over one asyncpg connection, one runner at a time, never waiting long for a lock."""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import create_async_engine

ADVISORY_LOCK = 0x6C6C6D70726F7879  # "llmproxy": two racing upgrades run one after the other
LOCK_TIMEOUT = "5s"  # a migration that cannot get its lock gives up instead of queueing everyone behind itself
STATEMENT_TIMEOUT = "15min"


def _migrate(connection: Connection) -> None:
    context.configure(connection=connection, transaction_per_migration=True)
    if context.config.attributes.get("upgrade") and _is_newer():
        return
    with context.begin_transaction():
        context.run_migrations()


def _is_newer() -> bool:
    """Tell whether a newer release has migrated: migrations expand first, so that this one goes on working."""
    known = {script.revision for script in context.script.walk_revisions()}
    return not known.issuperset(context.get_context().get_current_heads())


async def _run(url: str) -> None:
    engine = create_async_engine(url, poolclass=pool.NullPool)
    try:
        async with engine.connect() as connection:
            await connection.execute(text("select pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
            await connection.execute(text(f"set lock_timeout = '{LOCK_TIMEOUT}'"))
            await connection.execute(text(f"set statement_timeout = '{STATEMENT_TIMEOUT}'"))
            await connection.commit()
            await connection.run_sync(_migrate)
            await connection.commit()
    finally:
        await engine.dispose()


if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(_run(context.config.attributes["url"]))
