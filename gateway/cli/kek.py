"""`llm-proxy kek …`: key-encryption keys in use, rewrapping under the current one, shredding, and what still opens."""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import rich_click as click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from auth.errors import Fault
from gateway.cli.operate import NotConfigured, database_errors
from gateway.cli.output import console, errors, print_list
from gateway.settings import settings_from_environment

if TYPE_CHECKING:
    from gateway.control.orm import OrmSessions
    from gateway.database import Postgres
    from gateway.settings import Settings
    from tenants.datakeys import DataKeys
    from tenants.rewrap import Progress as Steps
    from tenants.shares.protocol import ShareStore
    from tenants.sources.protocol import HttpCalls

T = TypeVar("T")

_FAILED_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Custody:
    """What the commands work with; `http` reaches a KMS."""

    settings: Settings
    postgres: Postgres
    data_keys: DataKeys
    shares: ShareStore | None
    http: HttpCalls

    @property
    def sessions(self) -> OrmSessions:
        """ORM sessions for what leaves an audit event."""
        from gateway.control.orm import OrmSessions

        url = self.settings.database_url
        if url is None:
            raise NotConfigured("DATABASE_URL is not set.", hint="Run `llm-proxy config check`.")
        return OrmSessions(url.reveal(), pool_size=1)


@click.group()
def kek() -> None:
    """Look after key-encryption keys; safe while the gateway serves. Needs DATABASE_URL and LLM_PROXY_KEK."""


@kek.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Show how many data keys each KEK wraps; one may be retired at zero only."""
    from tenants.kek_uses import kek_uses, status_of

    async def work(custody: Custody) -> list[dict[str, object]]:
        wrapper, spare = custody.data_keys.wrapper, custody.data_keys.spare.wrapper
        return [
            {
                "kek": use.kek_uri,
                "role": use.role,
                "data_keys": use.data_keys,
                "status": await status_of(use, wrapper, spare),
            }
            for use in await kek_uses(custody.postgres)
        ]

    print_list(_with_custody(work), ("kek", "role", "data_keys", "status"), as_json=as_json)


@kek.command("rotate")
def rotate() -> None:
    """Wrap every data key under the current KEK; run it again until nothing failed, then retire the old KEK.

    Spare wraps are brought up to date too.
    """
    from tenants.rewrap import rewrap_data_keys

    _watch(
        "rewrapping data keys",
        lambda custody: rewrap_data_keys(custody.postgres, custody.data_keys.wrapper, spare=custody.data_keys.spare),
        action="kek.rewrap",
    )


_rewrap = copy(rotate)
_rewrap.name, _rewrap.hidden = "rewrap", True  # as the API calls it
kek.add_command(_rewrap)


@kek.command("recover")
@click.argument("opener", metavar="KEK")
def recover(opener: str) -> None:
    """Wrap every data key under the current KEK out of its spare wrap, when the KEK before is lost.

    KEK opens the spare wraps: rsa:PATH of the private key, or another provider as LLM_PROXY_KEK_SPARE names it.
    """
    from gateway.custody import make_spare
    from tenants.rewrap import recover_data_keys

    def steps(custody: Custody) -> AsyncIterator[Steps]:
        wrapper = make_spare(custody.settings, custody.http, opener).wrapper
        if wrapper is None:
            raise Fault("No KEK is named.", hint="Name the one that opens the spare wraps: rsa:break-glass.pem.")
        data_keys = custody.data_keys
        return recover_data_keys(custody.postgres, data_keys.wrapper, wrapper, spare=data_keys.spare)

    _watch("recovering data keys", steps, action="kek.recover")


@kek.command("verify")
@click.option("--spare", metavar="KEK", help="Open the spare wraps with this key too: rsa:PATH of the private key.")
def verify(spare: str | None) -> None:
    """Open everything that is stored sealed: after a restore, and before a KEK is thrown away."""
    from gateway.custody import make_spare
    from tenants.verification import verify_everything

    def steps(custody: Custody) -> AsyncIterator[Steps]:
        opener = None if spare is None else make_spare(custody.settings, custody.http, spare).wrapper
        return verify_everything(custody.postgres, custody.data_keys, spare=opener)

    _watch("opening envelopes", steps, action="kek.verify")


@kek.command("reencrypt")
@click.argument("tenant_id", type=click.UUID)
@click.option("--new", "anew", is_flag=True, help="Make another data key also when an earlier run was not finished.")
def reencrypt_command(tenant_id: UUID, anew: bool) -> None:
    """Give a tenant a new data key and move all that it has sealed to it: when the old one may be known.

    A run that was interrupted is gone on with.
    """
    from tenants.reencryption import is_unfinished, reencrypt
    from tenants.rewrap import new_data_key

    async def make(custody: Custody) -> None:
        data_keys = custody.data_keys
        if not anew and await is_unfinished(custody.postgres, tenant_id):
            errors.print("going on with a run that was not finished", style="dim")
            return
        await new_data_key(custody.postgres, data_keys.wrapper, tenant_id, spare=data_keys.spare)

    _with_custody(make)
    _watch(
        "re-encrypting keys",
        lambda custody: reencrypt(custody.postgres, custody.data_keys, tenant_id),
        action="kek.reencrypt",
        subject=f"tenant:{tenant_id}",
    )


@kek.command("shred")
def shred() -> None:
    """Destroy the shares of deleted tenants that are still noted; the gateway does it by itself every half minute."""
    from tenants.shredding import shred_noted

    async def steps(custody: Custody) -> AsyncIterator[Steps]:
        if custody.shares is None:
            raise NotConfigured("LLM_PROXY_KEK_SHARES is not set.", hint="Name the store of the tenants' shares.")
        sessions = custody.sessions
        try:
            async for step in shred_noted(sessions, custody.shares, lambda: datetime.now(UTC)):
                yield step
        finally:
            await sessions.aclose()

    _watch("destroying shares", steps)


@kek.command("shredded")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def shredded(as_json: bool) -> None:
    """Show what became of deleted tenants' secrets; with a store of shares its own word counts."""
    from tenants.shredding import shreddings

    async def work(custody: Custody) -> list[dict[str, object]]:
        return [
            {
                "tenant": str(each.tenant_id),
                "slug": each.slug,
                "deleted": None if each.requested_at is None else each.requested_at.isoformat(),
                "shredded": None if each.done_at is None else each.done_at.isoformat(),
                "covers_backups": each.covers_backups,
                "restored": each.back,
            }
            for each in await shreddings(custody.postgres, custody.shares)
        ]

    columns = ("tenant", "slug", "deleted", "shredded", "covers_backups", "restored")
    print_list(_with_custody(work), columns, as_json=as_json)


def _watch(
    title: str,
    steps: Callable[[Custody], AsyncIterator[Steps]],
    *,
    action: str | None = None,
    subject: str = "installation",
) -> None:
    """Show a job's progress to its end; `action` notes in the platform's audit trail what was done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors) as shown:
        task = shown.add_task(title, total=None)

        async def work(custody: Custody) -> Steps | None:
            last = None
            async for last in steps(custody):
                shown.update(task, completed=last.done, total=last.total)
            if action is not None and last is not None:
                detail = {"done": last.done, "failed": len(last.failed)}
                await _note(custody, action, subject, detail)
            return last

        last = _with_custody(work)
    if last is None:
        console.print("nothing to do")
        return
    console.print(f"{last.done} of {last.total} done")
    if last.unchecked:
        console.print(f"{last.unchecked} spare wraps were not opened: --spare names the key that opens them")
    for reason in last.shredded.values():
        console.print(f"{reason}; its rows are back from a backup: delete it again", markup=False, soft_wrap=True)
    if last.failed:
        for identity, reason in list(last.failed.items())[:_FAILED_SHOWN]:
            errors.print(f"  - {identity}: {reason}", markup=False, soft_wrap=True)
        raise Fault(f"{len(last.failed)} failed.", hint="Mend what the reasons say and run it again: it goes on.")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"uid {os.getuid()}"


async def _note(custody: Custody, action: str, subject: str, detail: Mapping[str, int]) -> None:
    from auth.principal import PLATFORM_TENANT_ID
    from tenants import audit

    sessions = custody.sessions
    actor = audit.Actor(f"{_user()} (llm-proxy kek)")
    try:
        async with sessions.platform() as session:
            now = datetime.now(UTC)
            await audit.record(session, PLATFORM_TENANT_ID, actor, action, subject, at=now, detail=detail)
    finally:
        await sessions.aclose()


def _with_custody(work: Callable[[Custody], Awaitable[T]]) -> T:
    async def run() -> T:
        from gateway.custody import make_data_keys, make_shares
        from gateway.database import Postgres
        from gateway.guarded_calls import GuardedCalls
        from gateway.upstream.connect import DirectConnector
        from gateway.upstream.guard import EgressPolicy
        from gateway.upstream.pool import ConnectionPool

        settings = settings_from_environment()
        if settings.database_url is None:
            raise NotConfigured("DATABASE_URL is not set.", hint="Run `llm-proxy config check`.")
        private = EgressPolicy(allow_private=True, allow_metadata=True)
        async with AsyncExitStack() as stack:
            upstream = ConnectionPool(DirectConnector(private))
            stack.push_async_callback(upstream.close)
            postgres = Postgres(settings.database_url.reveal(), max_size=2)
            stack.push_async_callback(postgres.close)
            calls = GuardedCalls(upstream, private, repeatable=True)
            data_keys = make_data_keys(settings, postgres, calls)
            return await work(Custody(settings, postgres, data_keys, make_shares(settings, calls), calls))

    with database_errors():
        return asyncio.run(run())
