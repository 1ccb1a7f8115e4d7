"""`llm-proxy key …`: provider keys. Key material comes from a prompt or standard input, never from an argument."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich_click as click

from auth.errors import Fault
from gateway.cli.connection import client_for, connected, find_id
from gateway.cli.output import console, print_list, print_one
from gateway.cli.pools import PATH as POOLS
from gateway.cli.pools import read_secret
from gateway.http_client import ManagementClient

PATH = "/api/v1/keys"
COLUMNS = ("pool", "name", "provider", "weight", "region", "enabled", "current.prefix", "current.state", "id")
LIMITS = ("rpm", "tpm", "itpm", "otpm", "rpd", "tpd", "concurrency")


def print_key(item: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a key, of its current secret what tells it from others."""
    if as_json or not (now := item.get("current")):
        print_one(item, as_json=as_json, leave_out=("version",))
        return
    said = f"version {now['number']}, {now['prefix']}…, fingerprint {now['fingerprint']}"
    print_one({**item, "current": said}, as_json=False, leave_out=("version",))


@click.group()
def key() -> None:
    """Add, list, change and rotate provider keys. A key is named POOL/KEY, or by its id."""


def _pool_keys(client: ManagementClient, pool_name: str) -> str:
    return f"{POOLS}/{find_id(client, POOLS, pool_name, 'name')}/keys"


def _find(client: ManagementClient, wanted: str) -> str:
    pool_name, slash, name = wanted.partition("/")
    if not slash:
        return f"{PATH}/{find_id(client, PATH, wanted)}" if _is_id(wanted) else _refuse(wanted)
    return f"{PATH}/{find_id(client, _pool_keys(client, pool_name), name, 'name')}"


def _is_id(word: str) -> bool:
    return len(word) == 36 and word.count("-") == 4


def _refuse(wanted: str) -> str:
    raise Fault(f"{wanted} does not name a key.", hint="Write POOL/KEY, for example main/openai-1, or the key's id.")


def _limits(words: tuple[str, ...]) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    for word in words:
        named, equals, number = word.partition("=")
        model, _, name = named.rpartition(":")
        if not equals or name not in LIMITS or not number.isdecimal():
            names = ", ".join(LIMITS)
            raise click.UsageError(f"--limit {word} is not [MODEL:]NAME=NUMBER with a name out of {names}.")
        of = limits.setdefault("models", {}).setdefault(model, {}) if model else limits
        of[name] = int(number)
    return limits


@key.command("add")
@click.argument("name")
@click.option("--pool", "pool_name", required=True, help="The pool that it joins, by name or id.")
@click.option("--provider", required=True, help="openai, anthropic, azure, gemini, mistral, groq, openrouter, …")
@click.option("--weight", type=click.IntRange(0, 10_000), default=1, show_default=True, help="0 makes it a standby.")
@click.option("--base-url", help="For azure, vllm, ollama and other endpoints of your own.")
@click.option("--region", help="Where it serves, for residency and latency.")
@click.option("--model", "models", multiple=True, help="Only these models (globs); repeat for several.")
@click.option(
    "--limit", "limits", multiple=True, metavar="[MODEL:]NAME=NUMBER", help="Such as rpm=3000 or gpt-4o-mini:rpm=30000."
)
@connected
def add(
    *,
    pool_name: str,
    name: str,
    provider: str,
    weight: int,
    base_url: str | None,
    region: str | None,
    models: tuple[str, ...],
    limits: tuple[str, ...],
    profile: Path | None,
    as_json: bool,
) -> None:
    """Add a provider key to a pool; the key itself is asked for, or read from standard input."""
    body: dict[str, Any] = {"name": name, "provider": provider, "weight": weight, "models": list(models)}
    if limits:
        body["limits"] = _limits(limits)
    if base_url:
        body["base_url"] = base_url
    if region:
        body["region"] = region
    body["api_key"] = read_secret("Provider key")
    with client_for(profile) as client:
        made = client.request("POST", _pool_keys(client, pool_name), body).data
    print_key(made, as_json=as_json)


@key.command("list")
@click.option("--pool", "pool_name", help="Only the keys of this pool, by name or id.")
@connected
def list_(*, pool_name: str | None, profile: Path | None, as_json: bool) -> None:
    """List keys; a key is told by its first characters."""
    with client_for(profile) as client:
        wanted = None if pool_name is None else find_id(client, POOLS, pool_name, "name")
        found = [
            {"pool": pool["name"], **item}
            for pool in client.items(POOLS)
            if wanted in (None, pool["id"])
            for item in client.items(f"{POOLS}/{pool['id']}/keys")
        ]
        print_list(found, COLUMNS, as_json=as_json)


@key.command("show")
@click.argument("key_name", metavar="KEY")
@connected
def show(*, key_name: str, profile: Path | None, as_json: bool) -> None:
    """Show one key, without its secret."""
    with client_for(profile) as client:
        print_key(client.request("GET", _find(client, key_name)).data, as_json=as_json)


@key.command("update")
@click.argument("key_name", metavar="KEY")
@click.option("--name", help="A new name.")
@click.option("--weight", type=click.IntRange(0, 10_000), help="0 makes it a standby.")
@click.option("--region", help="Where it serves.")
@click.option("--disable/--enable", default=None, help="Take it out of service, or back in.")
@connected
def update(
    *,
    key_name: str,
    name: str | None,
    weight: int | None,
    region: str | None,
    disable: bool | None,
    profile: Path | None,
    as_json: bool,
) -> None:
    """Change a key's name, weight or region, disable or enable it."""
    given = {"name": name, "weight": weight, "region": region, "enabled": None if disable is None else not disable}
    body = {name: value for name, value in given.items() if value is not None}
    if not body:
        raise click.UsageError("Say what to change: --name, --weight, --region, --disable or --enable.")
    with client_for(profile) as client:
        path = _find(client, key_name)
        now = client.request("GET", path)
        print_key(client.request("PATCH", path, body, if_match=now.etag).data, as_json=as_json)


@key.command("rotate")
@click.argument("key_name", metavar="KEY")
@connected
def rotate(*, key_name: str, profile: Path | None, as_json: bool) -> None:
    """Replace a key's secret by one that is asked for; requests in flight finish with the old one."""
    with client_for(profile) as client:
        path = _find(client, key_name)
        print_key(client.request("POST", f"{path}/rotate", {"api_key": read_secret("New key")}).data, as_json=as_json)


@key.command("versions")
@click.argument("key_name", metavar="KEY")
@connected
def versions(*, key_name: str, profile: Path | None, as_json: bool) -> None:
    """List the secrets that a key has had: which one serves, which drain, which are revoked, and why one failed."""
    with client_for(profile) as client:
        found = client.request("GET", f"{_find(client, key_name)}/versions").data
        print_list(found["items"], ("number", "state", "prefix", "state_changed_at", "error"), as_json=as_json)


@key.command("rollback")
@click.argument("key_name", metavar="KEY")
@connected
def rollback(*, key_name: str, profile: Path | None, as_json: bool) -> None:
    """Put the previous secret back into service, while it drains or is kept disabled."""
    with client_for(profile) as client:
        print_key(client.request("POST", f"{_find(client, key_name)}/rollback", {}).data, as_json=as_json)


@key.command("revoke")
@click.argument("key_name", metavar="KEY")
@click.argument("version", type=click.IntRange(1))
@click.option("--force", is_flag=True, help="Also when it is the key's only living secret.")
@connected
def revoke(*, key_name: str, version: int, force: bool, profile: Path | None, as_json: bool) -> None:
    """Take a secret out of use everywhere, at once and for good: when it may be known."""
    with client_for(profile) as client:
        path = f"{_find(client, key_name)}/versions/{version}/revoke"
        print_key(client.request("POST", path, {"force": force}).data, as_json=as_json)


@key.command("delete")
@click.argument("key_name", metavar="KEY")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connected
def delete(*, key_name: str, yes: bool, profile: Path | None, as_json: bool) -> None:
    """Delete a key and every version of its secret."""
    del as_json
    if not yes:
        click.confirm(f"Delete key {key_name}?", abort=True)
    with client_for(profile) as client:
        client.request("DELETE", _find(client, key_name))
    console.print(f"deleted {key_name}")
