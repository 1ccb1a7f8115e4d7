"""The documented backup, taken and restored by the role that the documentation makes: an owner and no superuser."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import subprocess
from pathlib import Path

import asyncpg
from uuid_utils.compat import uuid7

from auth.secret import Secret
from gateway.embedded.binaries import find_binaries
from gateway.embedded.postgres import Address
from gateway.schema import current_revision, head_revision, migrate

DOCS = Path(__file__).parents[2] / "docs"


def documented(page: str, title: str) -> list[str]:
    """Return the shell blocks of a section that call what comes with Postgres, without the gateway's own commands."""
    section = re.search(rf"^### {title}.*?(?=^### |\Z)", (DOCS / page).read_text(), re.M | re.S)
    assert section is not None
    blocks = re.findall(r"^```sh\n(.*?)^```$", section[0], re.M | re.S)
    return [re.sub(r"^llm-proxy .*\n", "", block, flags=re.M) for block in blocks]


async def test_the_owner_dumps_every_tenants_rows_and_restores_them(
    migrated_server: tuple[Address, Secret], tmp_path: Path
) -> None:
    server, _ = migrated_server
    name, owner, password = f"b_{secrets.token_hex(4)}", f"owner_{secrets.token_hex(4)}", Secret(secrets.token_hex(8))
    admin = await asyncpg.connect(server.url())
    await admin.execute(f"create role {owner} login password '{password.reveal()}'")
    await admin.execute(f"create database {name} owner {owner}")
    url = server.url(name, owner, password)
    try:
        await asyncio.to_thread(migrate, url)
        inside = await asyncpg.connect(server.url(name))
        tenants = [uuid7(), uuid7()]
        for tenant_id in tenants:
            await inside.execute(
                "insert into tenant (id, slug, name) values ($1::uuid, 't' || right($1::text, 6), 'T')", tenant_id
            )
            await inside.execute(
                "insert into pool (id, tenant_id, name, strategy) values ($1, $2, 'main', 'weighted')",
                uuid7(),
                tenant_id,
            )
        await inside.close()

        _, dump, restore, _ = documented("custody.md", "Back up and restore")
        environment = os.environ | {
            "PATH": f"{find_binaries().directory}:{os.environ['PATH']}",
            "LLM_PROXY_MIGRATION_URL": url,
        }
        for script in (dump, restore):
            done = await asyncio.to_thread(
                subprocess.run,
                ["bash", "-euc", script],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, f"{script}\n{done.stderr}"

        inside = await asyncpg.connect(server.url(name))
        found = await inside.fetch("select tenant_id from pool")
        fenced = await inside.fetchval(
            "select relrowsecurity and relforcerowsecurity from pg_class where oid = 'pool'::regclass"
        )
        await inside.close()
        assert {row["tenant_id"] for row in found} == set(tenants)
        assert fenced
        assert await current_revision(url) == head_revision()
    finally:
        await admin.execute(f"drop database {name} with (force)")
        await admin.execute(f"drop role {owner}")
        await admin.close()
