"""The database schema: bring it up to date, tell whether it is, make the role that the processes connect as."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncpg

from auth.errors import Invalid
from auth.secret import Secret

if TYPE_CHECKING:
    from alembic.config import Config

APP_ROLE: Final = "llm_proxy_app"
"""The group role that may read and write rows and nothing else; made by the first migration."""

_ONE_AT_A_TIME = threading.Lock()


_REVISION = re.compile(r'^(revision|down_revision)(?:: [^=]+)? = (?:"(\w+)"|None)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class RoleCheck:
    """What the role of a connection may do that the gateway's role must not."""

    name: str
    superuser: bool
    bypasses_rls: bool
    owns_tables: bool

    @property
    def safe(self) -> bool:
        """Tell whether row-level security binds this role."""
        return not (self.superuser or self.bypasses_rls or self.owns_tables)


def migrate(url: str, revision: str = "head") -> None:
    """Bring the schema of `url` (a role that owns it) to `revision`; waits for a migration that is already running.

    One that a newer release has migrated is left as it is: the former release works on it, and is rolled back to.
    Blocking, and safe to call with or without a running event loop: the migration runs in a thread of its own.
    """
    _in_thread(lambda: _upgrade(url, revision))


def downgrade(url: str, revision: str) -> None:
    """Take the schema of `url` back to `revision` ("base": empty); rows are lost."""
    _in_thread(lambda: _downgrade(url, revision))


def head_revision() -> str:
    """Return the revision that this code needs."""
    follows = _revisions()
    heads = follows.keys() - set(follows.values())
    if len(heads) != 1:
        raise Invalid("The migrations were not packaged with the program.", hint="Install llm-proxy again.")
    return heads.pop()


async def _connect(url: str) -> asyncpg.Connection[asyncpg.Record]:
    """Open a connection for a few statements; without names, which are somebody else's behind a PgBouncer."""
    return await asyncpg.connect(url, timeout=10, statement_cache_size=0)


async def current_revision(url: str) -> str | None:
    """Return the revision that the database is at, None when it was never migrated."""
    connection = await _connect(url)
    try:
        found = await connection.fetchval("select to_regclass('public.alembic_version') is not null")
        if not found:
            return None
        revision: str | None = await connection.fetchval("select version_num from alembic_version")
        return revision
    finally:
        await connection.close()


def known_revisions() -> frozenset[str]:
    """Return every revision of this code: a database at another one was migrated by a newer release."""
    return frozenset(_revisions())


def _revisions() -> dict[str, str | None]:
    """Return each revision with the one that it follows.

    Read from the files' text: Alembic would bring SQLAlchemy with it, 15 MB in every process that only serves.
    """
    follows: dict[str, str | None] = {}
    for file in (_scripts() / "versions").glob("*.py"):
        named = dict(_REVISION.findall(file.read_text()))
        if "revision" in named:
            follows[named["revision"]] = named.get("down_revision") or None
    return follows


async def check_role(url: str) -> RoleCheck:
    """Look at what the role of `url` is allowed to do."""
    connection = await _connect(url)
    try:
        row = await connection.fetchrow(
            "select rolname, rolsuper, rolbypassrls, exists (select from pg_tables where schemaname = 'public' and "
            "tablename = 'tenant' and pg_has_role(current_user, tableowner, 'member')) as owns "
            "from pg_roles where rolname = current_user"
        )
    finally:
        await connection.close()
    if row is None:
        raise Invalid("The database role cannot see itself in pg_roles.", hint="Use a plain LOGIN role.")
    return RoleCheck(row["rolname"], row["rolsuper"], row["rolbypassrls"], row["owns"])


async def identity(url: str) -> tuple[str, object]:
    """Return what tells a database from any other: its name and since when its server runs."""
    connection = await _connect(url)
    try:
        row = await connection.fetchrow("select current_database() as name, pg_postmaster_start_time() as since")
    finally:
        await connection.close()
    if row is None:
        raise Invalid("The database does not say which one it is.", hint="Check the URL.")
    return row["name"], row["since"]


async def is_pooled(url: str) -> bool:
    """Tell whether a pooler in transaction mode is in between: then two sessions are one to the server."""
    one = await _connect(url)
    try:
        two = await _connect(url)
        try:
            ask = "select pg_backend_pid()"
            return bool(await one.fetchval(ask) == await two.fetchval(ask))
        finally:
            await two.close()
    finally:
        await one.close()


async def ensure_login(owner_url: str, name: str, password: Secret) -> None:
    """Create or update the LOGIN role `name` in the gateway's group role; `owner_url` may create roles.

    The server is sent the SCRAM verifier alone: a password in a statement would end up in its log.
    """
    connection = await _connect(owner_url)
    try:
        # Utility statements take no parameters: the server quotes both words itself.
        make = await connection.fetchval(
            "select format(case when exists (select from pg_roles where rolname = $1) then "
            "'alter role %I login nosuperuser nobypassrls password %L' else "
            "'create role %I login nosuperuser nobypassrls password %L' end, $1::text, $2::text)",
            name,
            scram_verifier(password, os.urandom(16)),
        )
        await connection.execute(make)
        await connection.execute(
            await connection.fetchval("select format('grant %I to %I', $1::text, $2::text)", APP_ROLE, name)
        )
    finally:
        await connection.close()


def scram_verifier(password: Secret, salt: bytes, iterations: int = 4096) -> str:
    """Return what PostgreSQL stores of an ASCII password (RFC 5803); `Invalid` for other characters."""
    word = password.reveal()
    if not word.isascii() or not word.isprintable():
        raise Invalid("The password has characters beyond ASCII.", hint="Use openssl rand -base64 24.")
    salted = hashlib.pbkdf2_hmac("sha256", word.encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    texts = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${iterations}:{texts[0]}${texts[1]}:{texts[2]}"


def _upgrade(url: str, revision: str) -> None:
    from alembic import command

    configuration = _configuration(url)
    configuration.attributes["upgrade"] = True
    command.upgrade(configuration, revision)


def _downgrade(url: str, revision: str) -> None:
    from alembic import command

    command.downgrade(_configuration(url), revision)


def _configuration(url: str) -> Config:
    from alembic.config import Config

    configuration = Config()
    configuration.set_main_option("script_location", str(_scripts()).replace("%", "%%"))
    configuration.attributes["url"] = _sqlalchemy_url(url)
    return configuration


def _sqlalchemy_url(url: str) -> str:
    from gateway.control.orm import asyncpg_url

    return asyncpg_url(url).render_as_string(hide_password=False)


def _scripts() -> Path:
    here = Path(__file__).resolve().parent
    for candidate in (here / "_alembic", here.parent / "alembic"):
        if (candidate / "env.py").is_file():
            return candidate
    raise Invalid("The migrations were not packaged with the program.", hint="Install llm-proxy again.")


def _in_thread(work: Callable[[], None]) -> None:
    # alembic/env.py runs an event loop of its own, which a thread that already runs one does not allow; and Alembic's
    # context is global to the process, so that only one migration can run in it at a time.
    with _ONE_AT_A_TIME, ThreadPoolExecutor(max_workers=1, thread_name_prefix="migrate") as executor:
        executor.submit(work).result()
