"""`llm-proxy usage export`: what a tenant's requests used, as CSV that `llm-proxy simulate` replays."""

from __future__ import annotations

import asyncio
import csv
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import rich_click as click

from auth.errors import Fault
from gateway.cli.operate import NotConfigured, database_errors
from gateway.settings import settings_from_environment

if TYPE_CHECKING:
    from gateway.database import Postgres

_COLUMNS = (
    "at",
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "model",
    "client_id",
    "status",
    "cost_usd",
    "usage_reported",
    "provider",
    "operation",
    "request_id",
)
_ROWS = """
select at, input_tokens, output_tokens, cached_input_tokens, coalesce(served_model, model), client_id, status,
       cost_usd_nanos / 1e9, case when usage_reported then 'true' else 'false' end, provider, operation, request_id, id
from usage_event
where tenant_id = $1 and at >= $2 and at < $3 and ($4 or input_tokens > 0) and (at, id) > ($2, $5)
order by at, id
limit $6
"""
_PAGE = 10_000


@click.group()
def usage() -> None:
    """Read what requests used, straight from the database. Needs DATABASE_URL."""


@usage.command("export")
@click.option("--tenant", required=True, metavar="SLUG", help="Whose requests.")
@click.option(
    "--since", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="From when on, UTC; default: a day ago."
)
@click.option("--until", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="Until when, UTC; default: now.")
@click.option("--all", "with_empty", is_flag=True, help="Requests without tokens, such as refused ones, too.")
def export(tenant: str, since: datetime | None, until: datetime | None, *, with_empty: bool) -> None:
    """Write one line a request to standard output, the oldest first.

    `llm-proxy usage export --tenant acme > acme.csv` makes a trace for `llm-proxy simulate --trace acme.csv`: the time
    when each request came, its tokens, its model, and its client as the one between whom fairness is measured. A cost
    that is empty was not known; tokens and costs of rows whose `usage_reported` is false are estimates.
    """
    settings = settings_from_environment()
    if settings.database_url is None:
        raise NotConfigured("No database is configured.", hint="Set DATABASE_URL.")
    end = until.replace(tzinfo=UTC) if until else datetime.now(UTC)
    start = since.replace(tzinfo=UTC) if since else end - timedelta(days=1)
    with database_errors():
        count = asyncio.run(_export(settings.database_url.reveal(), tenant, start, end, with_empty=with_empty))
    click.echo(f"{count:,} requests", err=True)


async def _export(url: str, slug: str, start: datetime, end: datetime, *, with_empty: bool) -> int:
    from gateway.database import Postgres

    postgres = Postgres(url, max_size=1)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    count = 0
    try:
        writer.writerow(_COLUMNS)
        async for row in _rows(postgres, slug, start, end, with_empty=with_empty):
            writer.writerow((f"{row[0].astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}", *row[1:]))
            count += 1
    finally:
        await postgres.close()
    return count


async def _rows(
    postgres: Postgres, slug: str, start: datetime, end: datetime, *, with_empty: bool
) -> AsyncIterator[tuple[Any, ...]]:
    async with postgres.platform() as connection:
        tenant_id = await connection.fetchval("select id from tenant where slug = $1", slug)
    if tenant_id is None:
        raise Fault(f"There is no tenant {slug!r}.", hint="List them: llm-proxy tenant list")
    async for row in rows_of(postgres, tenant_id, start, end, with_empty=with_empty):
        yield row


async def rows_of(
    postgres: Postgres, tenant_id: UUID, start: datetime, end: datetime, *, with_empty: bool, page: int = _PAGE
) -> AsyncIterator[tuple[Any, ...]]:
    """Give `_COLUMNS` of each request, read `page` at a time: a month of a busy tenant does not fit in memory.

    Whoever takes them may be slow, a pager say: no transaction waits for that, which the server would end.
    """
    after = UUID(int=0)
    more = True
    while more:
        async with postgres.tenant(tenant_id) as connection:
            rows = await connection.fetch(_ROWS, tenant_id, start, end, with_empty, after, page)
        for row in rows:
            yield tuple(row)[:-1]
        more = len(rows) == page
        if more:
            start, after = rows[-1]["at"], rows[-1]["id"]
