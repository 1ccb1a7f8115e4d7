"""Reads what exists: secrets where the declaration says they are, tenants and what they own through the API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from auth.errors import Invalid
from auth.scopes import CLIENTS_READ, KEYS_READ, POOLS_READ
from auth.secret import Secret
from gateway.apply.document import Document, SecretRef
from gateway.apply.plan import INVENTORY, State
from gateway.apply.resource import ORDER, Address, Found, client_attributes
from gateway.http_client import ManagementClient

READING: Final = frozenset({POOLS_READ, KEYS_READ, CLIENTS_READ})
TENANTS: Final = "/api/v1/tenants"
_KEY = ("provider", "base_url", "region", "tier", "weight", "models", "model_map", "max_in_flight", "enabled")


class SecretsMissing(Invalid):
    """Secrets are not where the declaration says; `errors` lists every one."""

    code = "secrets_missing"


def read_secrets(
    document: Document, environment: Callable[[str], Secret | None]
) -> tuple[dict[Address, Secret], SecretsMissing | None]:
    """Read every secret that can be read, and say which cannot."""
    found: dict[Address, Secret] = {}
    missing: list[tuple[str, str]] = []
    for slug, tenant in document.tenants.items():
        for pool_name, pool in tenant.pools.items():
            for key_name, key in pool.keys.items():
                address = Address(slug, "key", f"{pool_name}/{key_name}")
                secret = _read(key.api_key, environment)
                if secret is None:
                    missing.append((str(address), f"{key.api_key.place} is missing, unreadable or empty"))
                else:
                    found[address] = secret
    if not missing:
        return found, None
    return found, SecretsMissing(
        "Some secrets cannot be read.",
        hint="Set the variables and mount the files that the declaration names.",
        errors=tuple(missing),
    )


def _read(ref: SecretRef, environment: Callable[[str], Secret | None]) -> Secret | None:
    if ref.env is not None:
        return environment(ref.env)
    if ref.inline is not None:
        return Secret(ref.inline) if ref.inline else None
    try:
        value = Path(ref.file or "").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return Secret(value) if value else None


def read_state(operator: ManagementClient, document: Document) -> tuple[State, dict[str, UUID]]:
    """Read the declared tenants with all they own, and the others as far as they are owned; ids by slug beside it."""
    found: dict[Address, Found] = {}
    inventory: dict[Address, str] = {}
    owners: dict[str, str] = {}
    ids: dict[str, UUID] = {}
    for item in operator.items(TENANTS):
        slug = str(item["slug"])
        mark = item["settings"].get(INVENTORY)
        if slug not in document.tenants and not isinstance(mark, Mapping):
            continue
        settings = {name: value for name, value in item["settings"].items() if name != INVENTORY}
        attributes = {"name": item["name"], "status": item["status"], "settings": settings}
        found[Address(slug, "tenant")] = Found(item["id"], item["version"], attributes)
        ids[slug] = UUID(item["id"])
        if isinstance(mark, Mapping):
            owners[slug] = str(mark.get("owner", ""))
            inventory.update(_inventory(slug, mark))
        if slug in document.tenants:
            with operator.within(ids[slug], READING) as tenant:
                found.update(_owned(tenant, slug, inventory))
    return State(found, inventory, owners), ids


def _inventory(slug: str, mark: Mapping[str, Any]) -> Iterator[tuple[Address, str]]:
    items = mark.get("items")
    for kind in ORDER[1:]:
        named = items.get(kind) if isinstance(items, Mapping) else None
        for name, known in (named or {}).items():
            yield Address(slug, kind, name), str(known)


def _owned(tenant: ManagementClient, slug: str, inventory: Mapping[Address, str]) -> Iterator[tuple[Address, Found]]:
    quotas = {item["id"]: item for item in tenant.items("/api/v1/quotas")}
    for item in quotas.values():
        if "/" not in item["name"]:  # with a slash: the own quota of one key
            attributes = {"provider": item["provider"], "limits": item["limits"]}
            yield Address(slug, "quota", item["name"]), Found(item["id"], item["version"], attributes)
    for pool in tenant.items("/api/v1/pools"):
        attributes = {name: pool[name] for name in ("strategy", "is_default", "settings")}
        yield Address(slug, "pool", pool["name"]), Found(pool["id"], pool["version"], attributes)
        for key in tenant.items(f"/api/v1/pools/{pool['id']}/keys"):
            yield Address(slug, "key", f"{pool['name']}/{key['name']}"), _key(tenant, key, quotas)
    seen: dict[str, str] = {}
    for item in tenant.items("/api/v1/clients"):
        address = Address(slug, "client", item["name"])
        # Names of clients are labels: of several the one that apply owns is meant, else the oldest.
        if item["name"] in seen and inventory.get(address) != item["client_id"]:
            continue
        seen[item["name"]] = item["client_id"]
        yield address, Found(item["client_id"], item["version"], client_attributes(item))


def _key(tenant: ManagementClient, key: Mapping[str, Any], quotas: Mapping[str, Mapping[str, Any]]) -> Found:
    attributes = {name: key[name] for name in _KEY}
    quota = quotas.get(key["quota_id"], {})
    own = "/" in str(quota.get("name", "/"))
    attributes["quota"] = None if own else quota["name"]
    attributes["limits"] = dict(quota.get("limits", {})) if own else {}
    versions = tenant.request("GET", f"/api/v1/keys/{key['id']}/versions").data["items"]
    current = (key["current"] or {}).get("fingerprint")
    known = [version["fingerprint"] for version in versions if version["fingerprint"] not in ("", None, current)]
    prints = tuple(([current] if current else []) + known)
    return Found(key["id"], key["version"], attributes, prints, key["quota_id"])
