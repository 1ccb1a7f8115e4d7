"""`llm-proxy client …` and `llm-proxy token`: OAuth clients, their secrets, and tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import rich_click as click

from auth.errors import Fault
from gateway.cli.connection import client_for, connected
from gateway.cli.output import console, print_json, print_list, print_one
from gateway.http_client import ManagementClient

PATH = "/api/v1/clients"
COLUMNS = ("client_id", "name", "scopes", "status", "created_at")


@click.group()
def client() -> None:
    """Create, list and change the OAuth clients of a tenant."""


def chosen(clients: Sequence[Mapping[str, Any]], wanted: str) -> str:
    """Return the id of the client that is meant, by its id or by a name that no other has; else `Fault`.

    Names are not unique, and one may even be another client's id.
    """
    if any(each["client_id"] == wanted for each in clients):
        return wanted
    named = [str(each["client_id"]) for each in clients if each["name"] == wanted]
    if len(named) == 1:
        return named[0]
    if named:
        raise Fault(f"{len(named)} clients are called {wanted}.", hint=f"Say which one: {', '.join(named[:20])}.")
    known = ", ".join(sorted({str(each["name"]) for each in clients})[:20]) or "none yet"
    raise Fault(f"There is no client called {wanted}.", hint=f"Known: {known}.")


def _find(api: ManagementClient, wanted: str) -> str:
    return chosen(list(api.items(PATH)), wanted)


@client.command("create")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, help="What it may do; repeat for several. Default: inference.")
@click.option("--lifetime", type=click.IntRange(60, 86_400), help="Seconds that its tokens live.")
@connected
def create(*, name: str, scopes: tuple[str, ...], lifetime: int | None, profile: Path | None, as_json: bool) -> None:
    """Create a client; its secret is shown this once."""
    body: dict[str, Any] = {"name": name}
    if scopes:
        body["scopes"] = list(scopes)
    if lifetime:
        body["token_lifetime_s"] = lifetime
    with client_for(profile) as api:
        print_one(api.request("POST", PATH, body).data, as_json=as_json)


@client.command("list")
@connected
def list_(*, profile: Path | None, as_json: bool) -> None:
    """List clients."""
    with client_for(profile) as api:
        print_list(api.items(PATH), COLUMNS, as_json=as_json)


@client.command("show")
@click.argument("client_name", metavar="CLIENT")
@connected
def show(*, client_name: str, profile: Path | None, as_json: bool) -> None:
    """Show one client, by client id or name."""
    with client_for(profile) as api:
        print_one(api.request("GET", f"{PATH}/{_find(api, client_name)}").data, as_json=as_json)


@client.command("update")
@click.argument("client_name", metavar="CLIENT")
@click.option("--name", help="A new name.")
@click.option("--scope", "scopes", multiple=True, help="The new scopes, all of them; repeat for several.")
@click.option("--disable/--enable", default=None, help="Refuse its tokens at once, or allow it again.")
@connected
def update(
    *,
    client_name: str,
    name: str | None,
    scopes: tuple[str, ...],
    disable: bool | None,
    profile: Path | None,
    as_json: bool,
) -> None:
    """Rename a client, change its scopes, disable or enable it."""
    body: dict[str, Any] = {}
    if name:
        body["name"] = name
    if scopes:
        body["scopes"] = list(scopes)
    if disable is not None:
        body["status"] = "disabled" if disable else "active"
    if not body:
        raise click.UsageError("Say what to change: --name, --scope, --disable or --enable.")
    with client_for(profile) as api:
        path = f"{PATH}/{_find(api, client_name)}"
        now = api.request("GET", path)
        print_one(api.request("PATCH", path, body, if_match=now.etag).data, as_json=as_json)


@client.command("delete")
@click.argument("client_name", metavar="CLIENT")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connected
def delete(*, client_name: str, yes: bool, profile: Path | None, as_json: bool) -> None:
    """Delete a client; its tokens stop working."""
    del as_json
    if not yes:
        click.confirm(f"Delete client {client_name}?", abort=True)
    with client_for(profile) as api:
        api.request("DELETE", f"{PATH}/{_find(api, client_name)}")
    console.print(f"deleted {client_name}")


@client.command("add-secret")
@click.argument("client_name", metavar="CLIENT")
@connected
def add_secret(*, client_name: str, profile: Path | None, as_json: bool) -> None:
    """Give a client a second secret, shown this once; remove the old one when nobody uses it any more."""
    with client_for(profile) as api:
        print_one(api.request("POST", f"{PATH}/{_find(api, client_name)}/secrets", {}).data, as_json=as_json)


@client.command("remove-secret")
@click.argument("client_name", metavar="CLIENT")
@click.argument("secret_id", type=click.UUID)
@connected
def remove_secret(*, client_name: str, secret_id: UUID, profile: Path | None, as_json: bool) -> None:
    """Remove one of a client's secrets, by the id that `show` lists."""
    del as_json
    with client_for(profile) as api:
        api.request("DELETE", f"{PATH}/{_find(api, client_name)}/secrets/{secret_id}")
    console.print("removed")


@click.command()
@click.option("--scope", help="Narrow the token: scopes separated by spaces.")
@connected
def token(*, scope: str | None, profile: Path | None, as_json: bool) -> None:
    """Get an access token and print it; `TOKEN=$(llm-proxy token)` works."""
    with client_for(profile) as api:
        answer = api.issue_token(scope)
    if as_json:
        print_json(answer)
    else:
        click.echo(answer["access_token"])
