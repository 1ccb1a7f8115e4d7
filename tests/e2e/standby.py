"""A streaming standby of an embedded Postgres: it holds what the primary has sent, and can be promoted in its place."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import asyncpg

from auth.secret import Secret
from gateway.embedded.binaries import CLEAN_ENVIRONMENT, Account, find_binaries
from gateway.embedded.place import settle, write_private
from gateway.embedded.postgres import SUPERUSER, Address, EmbeddedPostgres

REPLICATED = {"wal_level": "replica", "max_wal_senders": "4", "synchronous_commit": "on"}
"""What a primary needs beside its other settings; without `synchronous_commit` no commit waits for a standby."""
_NAME = "standby"


class Standby:
    """Streams from `primary`, which runs with `REPLICATED`, into `directory`."""

    def __init__(self, primary: Address, primary_data: Path, directory: Path) -> None:
        self._primary = primary
        self._primary_data = primary_data
        self._directory = directory
        self.server = EmbeddedPostgres(directory, settings={"fsync": "off", **REPLICATED})
        self.address = Address(0, Secret(""), None)

    async def start(self) -> None:
        """Copy the primary and stream from it; back when it is a standby that answers."""
        await asyncio.to_thread(self._copy)
        self.address = await asyncio.to_thread(self.server.start)
        assert await self._value(self.address, "select pg_is_in_recovery()")

    def _copy(self) -> None:
        owner = self._primary_data.stat()
        account = Account("", owner.st_uid, owner.st_gid) if os.geteuid() == 0 else None
        root = settle(self._directory, account)
        write_private(root / "password", self._primary.password.reveal() + "\n")
        copied = subprocess.run(
            [
                *(find_binaries().program("pg_basebackup"), "-D", str(root / "data"), "-R", "-c", "fast", "-d"),
                f"host=127.0.0.1 port={self._primary.port} user={SUPERUSER} application_name={_NAME}",
            ],
            env={**CLEAN_ENVIRONMENT, "PGPASSWORD": self._primary.password.reveal()},
            capture_output=True,
            text=True,
            check=False,
        )
        assert copied.returncode == 0, copied.stderr
        if account is not None:  # the server runs as this account and wants its files to be its own
            for path in (root / "data", *(root / "data").rglob("*")):
                shutil.chown(path, account.uid, account.gid)

    async def wait_for_it(self) -> None:
        """From now on no transaction of the primary is committed before the standby has it, too."""
        await self._execute(
            self._primary, f"alter system set synchronous_standby_names = '{_NAME}'", "select pg_reload_conf()"
        )
        async with asyncio.timeout(30):
            while await self._value(self._primary, "select sync_state from pg_stat_replication") != "sync":
                await asyncio.sleep(0.05)

    async def has_caught_up(self) -> None:
        """Wait until it has everything that the primary has written until now."""
        written = await self._value(self._primary, "select pg_current_wal_lsn()::text")
        async with asyncio.timeout(30):
            while not await self._value(self.address, f"select pg_last_wal_replay_lsn() >= '{written}'"):
                await asyncio.sleep(0.05)

    async def cut(self) -> None:
        """The network between the two is gone: the primary goes on, and its standby hears nothing more."""
        await self._execute(self.address, "alter system set primary_conninfo = ''", "select pg_reload_conf()")
        async with asyncio.timeout(30):
            while await self._value(self._primary, "select count(*) from pg_stat_replication"):
                await asyncio.sleep(0.05)

    async def promote(self) -> None:
        """Make it a primary of its own, on a timeline of its own."""
        assert await self._value(self.address, "select pg_promote(true, 30)")

    async def timeline(self) -> int:
        """Return which history it writes as a primary: 1 at first, and each promotion begins another."""
        return int(str(await self._value(self.address, "select pg_walfile_name(pg_current_wal_lsn())"))[:8], 16)

    async def _value(self, server: Address, query: str) -> object:
        connection = await asyncpg.connect(server.url())
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    async def _execute(self, server: Address, *statements: str) -> None:
        connection = await asyncpg.connect(server.url())
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()
