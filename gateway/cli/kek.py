"""`llm-proxy kek …`: key-encryption keys in use, rewrapping under the current one, and what still opens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import rich_click as click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from auth.errors import Fault
from gateway.cli.operate import NotConfigured, database_errors
from gateway.cli.output import console, errors, print_list
from gateway.settings import settings_from_environment

if TYPE_CHECKING:
    from gateway.database import Postgres
    from tenants.datakeys import DataKeys
    from tenants.rewrap import Progress as Steps

T = TypeVar("T")


@click.group()
def kek() -> None:
    """Look after key-encryption keys; safe while the gateway serves. Needs DATABASE_URL and LLM_PROXY_KEK."""


@kek.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Show how many data keys each KEK wraps; one may be retired at zero only."""
    from tenants.rewrap import kek_references

    async def work(postgres: Postgres, data_keys: DataKeys) -> list[dict[str, object]]:
        counts = await kek_references(postgres)
        return [
            {"kek": uri, "data_keys": count, "status": await data_keys.wrapper.status(uri)}
            for uri, count in counts.items()
        ]

    print_list(_with_custody(work), ("kek", "data_keys", "status"), as_json=as_json)


@kek.command("rewrap")
def rewrap() -> None:
    """Wrap every data key under the current KEK; run it again until nothing failed, then retire the old KEK."""
    from tenants.rewrap import rewrap_data_keys

    _watch("rewrapping data keys", lambda postgres, data_keys: rewrap_data_keys(postgres, data_keys.wrapper))


kek.add_command(rewrap, "rotate")


@kek.command("verify")
def verify() -> None:
    """Open everything that is stored sealed: after a restore, and before a KEK is thrown away."""
    from tenants.reencryption import verify_envelopes

    _watch("opening envelopes", verify_envelopes)


@kek.command("reencrypt")
@click.argument("tenant_id", type=click.UUID)
def reencrypt_command(tenant_id: UUID) -> None:
    """Give a tenant a new data key and move all that it has sealed to it: when the old one may be known."""
    from tenants.reencryption import reencrypt
    from tenants.rewrap import new_data_key

    async def make(postgres: Postgres, data_keys: DataKeys) -> UUID:
        return await new_data_key(postgres, data_keys.wrapper, tenant_id)

    _with_custody(make)
    _watch("re-encrypting keys", lambda postgres, data_keys: reencrypt(postgres, data_keys, tenant_id))


def _watch(title: str, steps: Callable[[Postgres, DataKeys], AsyncIterator[Steps]]) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors) as shown:
        task = shown.add_task(title, total=None)

        async def work(postgres: Postgres, data_keys: DataKeys) -> Steps | None:
            last = None
            async for last in steps(postgres, data_keys):
                shown.update(task, completed=last.done, total=last.total)
            return last

        last = _with_custody(work)
    if last is None:
        return
    console.print(f"{last.done} of {last.total} done")
    if last.failed:
        for identity, reason in list(last.failed.items())[:20]:
            errors.print(f"  - {identity}: {reason}", markup=False, soft_wrap=True)
        raise Fault(f"{len(last.failed)} failed.", hint="Mend what the reasons say and run it again: it goes on.")


def _with_custody(work: Callable[[Postgres, DataKeys], Awaitable[T]]) -> T:
    async def run() -> T:
        from gateway.custody import make_keks
        from gateway.database import Postgres
        from gateway.guarded_calls import GuardedCalls
        from gateway.upstream.connect import DirectConnector
        from gateway.upstream.guard import EgressPolicy
        from gateway.upstream.pool import ConnectionPool
        from tenants.datakeys import DataKeys

        settings = settings_from_environment()
        if settings.database_url is None:
            raise NotConfigured("DATABASE_URL is not set.", hint="Run `llm-proxy config check`.")
        private = EgressPolicy(allow_private=True)
        async with AsyncExitStack() as stack:
            upstream = ConnectionPool(DirectConnector(private))
            stack.push_async_callback(upstream.close)
            postgres = Postgres(settings.database_url.reveal(), max_size=2)
            stack.push_async_callback(postgres.close)
            data_keys = DataKeys(postgres, make_keks(settings, GuardedCalls(upstream, private)))
            return await work(postgres, data_keys)

    with database_errors():
        return asyncio.run(run())
