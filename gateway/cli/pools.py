"""`llm-proxy pool …`: pools of provider keys."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import rich_click as click

from auth.errors import Invalid
from gateway.balancing.strategies.registry import STRATEGY_NAMES
from gateway.cli.connection import client_for, connected, find_id
from gateway.cli.output import console, print_list, print_one

PATH = "/api/v1/pools"
COLUMNS = ("name", "strategy", "is_default", "id", "created_at")
STRATEGIES = ", ".join(sorted(STRATEGY_NAMES))


@click.group()
def pool() -> None:
    """Create, list, change and import pools of provider keys."""


@pool.command("create")
@click.argument("name")
@click.option("--strategy", help=f"How a key is chosen: {STRATEGIES}.")
@click.option("--default", "is_default", is_flag=True, help="Make it the tenant's default pool.")
@click.option("--no-failover", is_flag=True, help="Never try a second key.")
@connected
def create(
    *, name: str, strategy: str | None, is_default: bool, no_failover: bool, profile: Path | None, as_json: bool
) -> None:
    """Create an empty pool; add keys with `llm-proxy key add --pool NAME …`."""
    body: dict[str, Any] = {"name": name, "is_default": is_default}
    if strategy:
        body["strategy"] = strategy
    if no_failover:
        body["settings"] = {"failover": False}
    with client_for(profile) as client:
        print_one(client.request("POST", PATH, body).data, as_json=as_json)


@pool.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--name", help="The pool's name; else the file's `name`, else main.")
@connected
def import_(*, file: Any, name: str | None, profile: Path | None, as_json: bool) -> None:
    """Make a pool of a JSON file (`-`: standard input).

    The file holds `{"providers": [{"name", "api_key", "weight", "rate_limit"}, …], "strategy", "failover"}`.
    """
    try:
        document = json.loads(file.read())
    except ValueError as error:
        raise Invalid(f"The file is not JSON: {error}.", hint="Check it with python3 -m json.tool FILE.") from None
    if name and isinstance(document, dict):
        document["name"] = name
    with client_for(profile) as client:
        made = client.request("POST", f"{PATH}/import", document).data
    if as_json:
        print_one(made, as_json=True)
        return
    print_one(made, as_json=False, leave_out=("keys", "settings", "version"))
    print_list(made["keys"], ("name", "provider", "weight", "current.prefix"), as_json=False)


@pool.command("list")
@connected
def list_(*, profile: Path | None, as_json: bool) -> None:
    """List pools."""
    with client_for(profile) as client:
        print_list(client.items(PATH), COLUMNS, as_json=as_json)


@pool.command("show")
@click.argument("pool_name", metavar="POOL")
@connected
def show(*, pool_name: str, profile: Path | None, as_json: bool) -> None:
    """Show one pool, by name or id."""
    with client_for(profile) as client:
        found = find_id(client, PATH, pool_name, "name")
        print_one(client.request("GET", f"{PATH}/{found}").data, as_json=as_json)


@pool.command("update")
@click.argument("pool_name", metavar="POOL")
@click.option("--name", help="A new name.")
@click.option("--strategy", help=f"How a key is chosen: {STRATEGIES}.")
@click.option("--default", "is_default", is_flag=True, help="Make it the tenant's default pool.")
@click.option("--failover/--no-failover", default=None, help="Try another key when one fails.")
@click.option("--alias", "aliases", multiple=True, metavar="NAME=MODEL", help="Let NAME mean MODEL; NAME= removes it.")
@connected
def update(
    *,
    pool_name: str,
    name: str | None,
    strategy: str | None,
    is_default: bool,
    failover: bool | None,
    aliases: tuple[str, ...],
    profile: Path | None,
    as_json: bool,
) -> None:
    """Change a pool."""
    body: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    if name:
        body["name"] = name
    if strategy:
        body["strategy"] = strategy
    if is_default:
        body["is_default"] = True
    if failover is not None:
        settings["failover"] = failover
    for alias in aliases:
        word, equals, model = alias.partition("=")
        if not equals or not word:
            raise click.UsageError(f"--alias {alias} is not NAME=MODEL.")
        settings.setdefault("model_aliases", {})[word] = model or None
    if settings:
        body["settings"] = settings
    if not body:
        raise click.UsageError("Say what to change: --name, --strategy, --default, --failover or --alias.")
    with client_for(profile) as client:
        path = f"{PATH}/{find_id(client, PATH, pool_name, 'name')}"
        now = client.request("GET", path)
        print_one(client.request("PATCH", path, body, if_match=now.etag).data, as_json=as_json)


@pool.command("delete")
@click.argument("pool_name", metavar="POOL")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connected
def delete(*, pool_name: str, yes: bool, profile: Path | None, as_json: bool) -> None:
    """Delete a pool and its keys."""
    del as_json
    if not yes:
        click.confirm(f"Delete pool {pool_name} and its keys?", abort=True)
    with client_for(profile) as client:
        client.request("DELETE", f"{PATH}/{find_id(client, PATH, pool_name, 'name')}")
    console.print(f"deleted {pool_name}")


def read_secret(prompt: str) -> str:
    """Ask for a secret without showing it, or take one line of standard input: secrets are no arguments."""
    if sys.stdin.isatty():
        return str(click.prompt(prompt, hide_input=True)).strip()
    return sys.stdin.readline().strip()
