"""`llm-proxy audit …`: read the tenant's audit trail, export it, and check its hash chain, also against an export."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import rich_click as click

from auth.errors import Fault
from gateway.cli.connection import client_for, connected
from gateway.cli.output import console, print_list, print_one

PATH = "/api/v1/audit"


@click.group()
def audit() -> None:
    """Read, export and check the audit trail of the tenant (operators: of the platform)."""


@audit.command("list")
@connected
def list_events(profile: Path | None, as_json: bool) -> None:
    """List the events, oldest first."""
    with client_for(profile) as client:
        print_list(client.items(PATH), ("seq", "at", "actor", "action", "subject", "detail"), as_json=as_json)


@audit.command("export")
@click.argument("target", type=click.File("w"), default="-")
@connected
def export(target: IO[str], profile: Path | None, as_json: bool) -> None:
    """Write every event as a JSON line, and the chain's head as the last; keep it away from the database."""
    del as_json
    with client_for(profile) as client:
        for line in client.lines(f"{PATH}/export"):
            target.write(line + "\n")


@audit.command("verify")
@click.argument("source", type=click.File("r"), required=False)
@click.option("--offline", is_flag=True, help="Check the file alone, without asking the gateway.")
@connected
def verify(source: IO[str] | None, offline: bool, profile: Path | None, as_json: bool) -> None:
    """Recompute the chain at the gateway, and with SOURCE, an earlier export, that nothing in it was cut off since."""
    known: dict[str, str | int] = {}
    if source is not None:
        head = check_export(source)
        console.print(f"the file is whole: {head['seq']} events of tenant {head['tenant_id']}")
        if head["seq"]:
            known = {"known_seq": head["seq"], "known_hash": head["hash"]}
    if offline:
        if source is None:
            raise Fault("--offline needs a file.", hint="Name the export: llm-proxy audit verify --offline audit.jsonl")
        return
    with client_for(profile) as client:
        verdict = client.request("GET", f"{PATH}/verify", params=known).data
    print_one(verdict, as_json=as_json)
    if not verdict["intact"]:
        raise Fault(
            f"The audit chain is broken at event {verdict['broken_at']}: {verdict['reason']}.",
            hint="Compare with an export; after a restore it ends where the backup was made.",
        )


def check_export(source: Iterable[str]) -> dict[str, Any]:
    """Recompute an export's chain and return its head; a `Fault` names the first line that does not fit."""
    from datetime import datetime
    from uuid import UUID

    from tenants.audit import ChainCheck
    from tenants.models import AuditEvent

    lines = list(_documents(source))
    if not lines or "head" not in lines[-1]:
        raise Fault("The export has no head: it was cut off.", hint="Export it again.")
    head: dict[str, Any] = lines.pop()["head"]
    check = ChainCheck(known=(head["seq"], bytes.fromhex(head["hash"])) if head["seq"] else None)
    for line in lines:
        given = line | {
            "tenant_id": UUID(head["tenant_id"]),
            "id": UUID(line["id"]),
            "at": datetime.fromisoformat(line["at"]),
            "previous_hash": bytes.fromhex(line["previous_hash"]),
            "hash": bytes.fromhex(line["hash"]),
        }
        check.add(AuditEvent(**given))
    broken = check.finish()
    if broken is None and check.count != head["seq"]:
        raise Fault("The export holds more events than its head says.", hint="Export it again.")
    if broken is not None:
        raise Fault(f"The export is broken at event {broken.seq}: {broken.reason}.", hint="Export it again.")
    return head


def _documents(source: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(source, start=1):
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Fault(f"Line {number} of the export is not JSON.", hint="Export it again.")
        yield found
