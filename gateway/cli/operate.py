"""`llm-proxy migrate`, `bootstrap` and `config …`: what operators do before and between runs."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rich_click as click
from rich.table import Table
from rich.text import Text

from auth.errors import Fault
from auth.secret import Secret
from gateway.cli.output import console, errors, print_one
from gateway.settings import settings_from_environment, unread_in_environment
from gateway.variables import VARIABLES


class NotConfigured(Fault):
    """A command needs a variable that is not set."""

    code = "not_configured"


@click.command()
@click.option("--revision", default="head", show_default=True, help="Where to migrate to.")
@click.option(
    "--login",
    metavar="NAME",
    help="Also create (or update) the LOGIN role that the gateway connects as; its password is asked for, or read from "
    "standard input.",
)
def migrate(revision: str, login: str | None) -> None:
    """Bring the database schema up to date, as the role that owns it (LLM_PROXY_MIGRATION_URL, else DATABASE_URL).

    Safe to run from several places at once: one does the work, the others wait.
    """
    from gateway.cli.pools import read_secret
    from gateway.schema import current_revision, ensure_login, head_revision, known_revisions
    from gateway.schema import migrate as run_migrations

    url = settings_from_environment().owner_url
    if url is None:
        raise NotConfigured("No database is configured.", hint="Set LLM_PROXY_MIGRATION_URL or DATABASE_URL.")
    if revision != "head" and revision not in known_revisions():
        raise Fault(f"There is no revision {revision}.", hint=f"This release's newest is {head_revision()}.")
    with errors.status("migrating"), database_errors():
        before = asyncio.run(current_revision(url.reveal()))
        run_migrations(url.reveal(), revision)
        after = asyncio.run(current_revision(url.reveal()))
    console.print(_told(before, after, head_revision() if revision == "head" else revision, known_revisions()))
    if login:
        password = Secret(read_secret(f"Password for {login}"))
        if len(password.reveal()) < 12:
            raise Fault("The password is too short.", hint="Give at least 12 characters: openssl rand -base64 24")
        with database_errors():
            asyncio.run(ensure_login(url.reveal(), login, password))
        console.print(f"role {login}: may log in, bound by row-level security")


def _told(before: str | None, after: str | None, wanted: str, known: frozenset[str]) -> str:
    """Say what a migration did."""
    if before != after:
        return f"schema: {before or 'empty'} -> {after}"
    if after is not None and after not in known:
        return f"schema: {after}, of a newer release than this one: left as it is"
    return f"schema: {after}, up to date" if after == wanted else f"schema: {after}, beyond {wanted}: not taken back"


class database_errors:  # noqa: N801 - reads as a statement: `with database_errors():`
    """Turn what a database driver raises into a sentence; a context manager."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, value: BaseException | None, tb: object) -> None:
        import asyncpg
        from sqlalchemy.exc import DBAPIError

        if isinstance(value, asyncpg.PostgresError | asyncpg.InterfaceError | OSError | DBAPIError):
            cause = getattr(value, "orig", None) or value
            raise Fault(
                f"The database refused: {type(cause).__name__}.",
                hint="Check the URL, the network and that the role may do this (migrate needs the schema's owner).",
                debug=str(cause).splitlines()[0][:300] if str(cause) else "",
            ) from value


@click.command()
@click.option("--name", default="operator", show_default=True, help="The client's name.")
@click.option(
    "--save",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a profile file (mode 0600) for the managing commands instead of printing the secret.",
)
@click.option("--may-act", is_flag=True, help="Let it act inside tenants, as `llm-proxy apply` does (tenants:act).")
@click.option(
    "--may-manage",
    is_flag=True,
    help="Let it manage the clients of operators: list, disable and delete them (clients:read, clients:write).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bootstrap(name: str, save: Path | None, may_act: bool, may_manage: bool, as_json: bool) -> None:
    """Create an operator's OAuth client, straight in the database; its secret is shown this once.

    Operators create tenants (`llm-proxy tenant create`). Needs DATABASE_URL, LLM_PROXY_PEPPERS and LLM_PROXY_ISSUER.
    """
    from gateway.operators import create_operator

    settings = settings_from_environment()
    if settings.database_url is None or settings.peppers is None:
        raise NotConfigured("DATABASE_URL and LLM_PROXY_PEPPERS are needed.", hint="Run `llm-proxy config check`.")
    with database_errors():
        now = datetime.now(UTC)
        made = asyncio.run(create_operator(settings, name, now=now, may_act=may_act, may_manage=may_manage))
    profile = {
        "base_url": settings.issuer or "http://127.0.0.1:8080",
        "client_id": made.client_id,
        "client_secret": made.client_secret.reveal(),
    }
    if save is not None:
        write_profile(save, profile)
        console.print(f"wrote {save}: use it with --profile {save}")
        return
    print_one(profile, as_json=as_json)


def write_profile(path: Path, profile: dict[str, str]) -> None:
    """Write a profile file that only its owner can read; never over an existing one."""
    import json

    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Fault(f"{path} exists already.", hint="Name another file, or remove it first.") from None
    with os.fdopen(handle, "w") as file:
        json.dump(profile, file, indent=2)
        file.write("\n")


@click.group()
def config() -> None:
    """Check and describe the configuration."""


@config.command("check")
def check() -> None:
    """Say whether `serve` would start with this environment, and what to mend if not."""
    from gateway.preflight import preflight

    # Before anything is refused: what is missing may be there, misspelt.
    for sentence in unread_in_environment():
        errors.print(Text(sentence, style="yellow"), soft_wrap=True)
    settings = settings_from_environment()
    with errors.status("checking the database"):
        asyncio.run(preflight(settings))
    console.print("ready to serve", style="green")


@config.command("show")
def show() -> None:
    """Show every setting with its value; secrets only as set or not set."""
    settings = settings_from_environment()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("variable", "value"):
        table.add_column(column, overflow="fold")
    for variable in VARIABLES:
        value = getattr(settings, variable.field)
        table.add_row(variable.name, ("set" if value else "not set") if variable.secret else written(value))
    console.print(table)


def written(value: Any) -> str:
    """Give a value as one would write it into the environment."""
    if value is None or value == ():
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(str(each) for each in value)
    return f"{value:f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


@config.command("reference")
def reference() -> None:
    """Print docs/configuration.md."""
    from gateway.configuration_page import configuration_page

    click.echo(configuration_page(), nl=False)
