"""`llm-proxy tenant …`: what operators do with tenants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from gateway.cli.connection import OPERATOR_PROFILE, client_for, connected, find_id
from gateway.cli.output import console, print_list, print_one

PATH = "/api/v1/tenants"
COLUMNS = ("slug", "name", "status", "id", "created_at")


@click.group()
def tenant() -> None:
    """Create, list and change tenants (operators only; in development the profile is `operator.json`)."""


@tenant.command("create")
@click.argument("slug")
@click.option("--name", help="What people call it; the slug when not given.")
@click.option("--client-name", default="first client", show_default=True, help="Name of its first OAuth client.")
@connected
def create(*, slug: str, name: str | None, client_name: str, profile: Path | None, as_json: bool) -> None:
    """Create a tenant and its first client; the client's secret is shown this once."""
    body: dict[str, Any] = {"slug": slug, "client_name": client_name}
    if name:
        body["name"] = name
    with client_for(profile, OPERATOR_PROFILE) as client:
        made = client.request("POST", PATH, body).data
    print_one(made, as_json=as_json, leave_out=("client", "settings", "version"))
    if not as_json:
        first = made["client"]
        console.print("\nIts first client, shown this once:", style="bold")
        print_one({"client_id": first["client_id"], "client_secret": first["client_secret"]}, as_json=False)


@tenant.command("list")
@connected
def list_(*, profile: Path | None, as_json: bool) -> None:
    """List tenants."""
    with client_for(profile, OPERATOR_PROFILE) as client:
        print_list(client.items(PATH), COLUMNS, as_json=as_json)


@tenant.command("show")
@click.argument("tenant_name", metavar="TENANT")
@connected
def show(*, tenant_name: str, profile: Path | None, as_json: bool) -> None:
    """Show one tenant, by slug or id."""
    with client_for(profile, OPERATOR_PROFILE) as client:
        found = find_id(client, PATH, tenant_name, "slug")
        print_one(client.request("GET", f"{PATH}/{found}").data, as_json=as_json)


@tenant.command("update")
@click.argument("tenant_name", metavar="TENANT")
@click.option("--name", help="A new name.")
@click.option("--suspend/--resume", default=None, help="Stop its requests at once, or let them through again.")
@connected
def update(*, tenant_name: str, name: str | None, suspend: bool | None, profile: Path | None, as_json: bool) -> None:
    """Rename, suspend or resume a tenant."""
    body: dict[str, Any] = {}
    if name:
        body["name"] = name
    if suspend is not None:
        body["status"] = "suspended" if suspend else "active"
    if not body:
        raise click.UsageError("Say what to change: --name, --suspend or --resume.")
    with client_for(profile, OPERATOR_PROFILE) as client:
        found = find_id(client, PATH, tenant_name, "slug")
        now = client.request("GET", f"{PATH}/{found}")
        print_one(client.request("PATCH", f"{PATH}/{found}", body, if_match=now.etag).data, as_json=as_json)


@tenant.command("delete")
@click.argument("tenant_name", metavar="TENANT")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connected
def delete(*, tenant_name: str, yes: bool, profile: Path | None, as_json: bool) -> None:
    """Delete a tenant with all its keys, clients and data; its data keys are destroyed too."""
    del as_json
    if not yes:
        click.confirm(f"Delete {tenant_name} and everything it owns, for good?", abort=True)
    with client_for(profile, OPERATOR_PROFILE) as client:
        client.request("DELETE", f"{PATH}/{find_id(client, PATH, tenant_name, 'slug')}")
    console.print(f"deleted {tenant_name}")
