"""`llm-proxy usage export` writes what `llm-proxy simulate` replays."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from click.testing import CliRunner

from auth.errors import Fault
from gateway.cli.program import program
from gateway.cli.usage import rows_of
from gateway.database import Postgres
from gateway.metering.store import PostgresUsageStore
from gateway.simulation.trace import read_trace
from tests.conftest import TestDatabase
from tests.metering.rows import usage_row

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)
WAITING = (
    "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'"
)


async def fill(database: TestDatabase, tenant_id: UUID) -> None:
    postgres = Postgres(database.url, max_size=1)
    async with postgres.platform() as connection:
        for slug, each in (("acme", tenant_id), ("other", uuid4())):
            await connection.execute("insert into tenant (id, slug, name) values ($1, $2, $2)", each, slug)
    store = PostgresUsageStore(postgres)
    await store.write(
        [
            usage_row(
                tenant_id=tenant_id if n != 3 else uuid4(),
                at=BEGAN + timedelta(seconds=2.5 * n),
                client_id=f"client-{n % 2}",
                input_tokens=0 if n == 4 else 100 + n,
                output_tokens=7,
                cached_input_tokens=50,
                model="gpt-4o",
            )
            for n in (1, 0, 2, 3, 4)
        ]
    )
    await store.close()
    await postgres.close()


def test_an_export_is_a_trace(test_database: TestDatabase, tmp_path: Path) -> None:
    asyncio.run(fill(test_database, uuid4()))
    env = {"DATABASE_URL": test_database.url}
    words = ["usage", "export", "--tenant", "acme", "--since", "2026-03-01", "--until", "2026-03-02"]
    result = CliRunner().invoke(program, words, env=env)
    assert result.exit_code == 0, (result.output, result.exception)
    file = tmp_path / "acme.csv"
    file.write_text(result.stdout, encoding="utf-8")
    arrivals = read_trace(file)
    assert [(each.t, each.input_tokens, each.cached_tokens, each.tenant) for each in arrivals] == [
        (0.0, 100, 50, "client-0"),
        (2.5, 101, 50, "client-1"),
        (5.0, 102, 50, "client-0"),
    ]
    heads = result.stdout.splitlines()[0].split(",")
    told = dict(zip(heads, result.stdout.splitlines()[1].split(","), strict=True))
    assert (told["provider"], told["operation"], told["usage_reported"]) == ("openai", "chat/completions", "true")
    assert told["request_id"].startswith("req_")
    replayed = CliRunner().invoke(program, ["simulate", "--trace", str(file), "--strategies", "predictive", "--json"])
    assert replayed.exit_code == 0, replayed.output
    later = CliRunner().invoke(program, [*words[:-4], "--since", "2026-03-01T12:00:02"], env=env)
    assert len(later.stdout.splitlines()) == 3
    with pytest.raises(Fault, match="no tenant"):
        CliRunner().invoke(program, ["usage", "export", "--tenant", "x"], env=env, catch_exceptions=False)


async def test_no_transaction_waits_for_whoever_takes_an_export(test_database: TestDatabase) -> None:
    """The server ends one that is idle for a minute: a pager would never get the end."""
    tenant_id = uuid4()
    postgres = Postgres(test_database.url, max_size=1)
    store = PostgresUsageStore(postgres)
    rows = [
        usage_row(tenant_id=tenant_id, at=BEGAN + timedelta(seconds=n // 3), request_id=f"req_{n}") for n in range(10)
    ]
    await store.write(rows)
    owner = await asyncpg.connect(test_database.owner_url)
    found: list[str] = []
    try:
        end = BEGAN + timedelta(days=1)
        async for row in rows_of(postgres, tenant_id, BEGAN, end, with_empty=True, page=2):
            found.append(row[-1])
            assert await owner.fetchval(WAITING) == 0
    finally:
        await owner.close()
        await store.close()
        await postgres.close()
    assert found == [row.request_id for row in sorted(rows, key=lambda row: (row.at, row.id))]
