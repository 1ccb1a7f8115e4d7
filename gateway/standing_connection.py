"""One connection to Postgres, kept open in the platform's scope, for statements that come several times a second.

A statement here is one round trip and a transaction by itself, where one from the pool takes six (begin, scope, the
statement, commit, reset). It goes past a PgBouncer in transaction mode: the scope is the session's.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from gateway.database import AWAY, STANDBY, away

if TYPE_CHECKING:
    from gateway.database import Postgres

_LOST: Final = (*AWAY, *STANDBY, asyncpg.InternalClientError)
"""The last: the server's farewell has arrived, the end of the connection not yet."""
_IDLE_S: Final = 60.0
"""A connection that rested for longer is made anew: what stands between may have forgotten it without a word."""


class StandingConnection:
    """Runs one statement at a time; connects when it is first needed, and anew after it was lost.

    Raises `DatabaseAway` when the server is away, asyncpg's error when it refuses the statement. Cancelling a statement
    ends the connection.
    """

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._used_at = 0.0
        self._turn = asyncio.Lock()

    async def fetch(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run `statement`; give the rows that it returns."""
        async with self._turn:
            try:
                return await (await self._connect()).fetch(statement, *arguments)
            except _LOST as error:
                self._hang_up()
                raise away(error) from error
            except asyncpg.PostgresError:
                raise  # the server has answered: the connection is in order
            except BaseException:
                # Half-way: what the connection would answer next is not ours any more.
                self._hang_up()
                raise

    async def _connect(self) -> asyncpg.Connection[asyncpg.Record]:
        now = asyncio.get_running_loop().time()
        connection = self._connection
        if connection is not None and (connection.is_closed() or now - self._used_at > _IDLE_S):
            self._hang_up()
            connection = None
        self._used_at = now
        if connection is None:
            connection = await self._postgres.connect_directly()
            try:
                await connection.execute("select set_config('app.scope', 'platform', false)")
            except BaseException:
                connection.terminate()  # it would see no rows
                raise
            self._connection = connection
        return connection

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def close(self) -> None:
        """Close the connection; a later statement would open another one."""
        async with self._turn:
            self._hang_up()
