"""One declared or existing thing, told by its address, and how two of them differ. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

from msgspec import to_builtins

from auth.details import parse_details, read_details, write_details
from auth.secret import Secret
from gateway.apply.document import ClientDoc, Document, KeyDoc, PoolDoc, SecretRef
from gateway.balancing.strategies.registry import UnknownStrategy, canonical_name
from tenants.fingerprint import fingerprint_of

Kind = Literal["tenant", "quota", "pool", "key", "client"]
ORDER: Final[tuple[Kind, ...]] = ("tenant", "quota", "pool", "key", "client")
"""What is made first: a thing after all that it names. Removal goes the other way."""


@dataclass(frozen=True, slots=True)
class Address:
    """What a thing is called: a key as `pool/key`, a tenant by its slug alone."""

    tenant: str
    kind: Kind
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.tenant}/{self.name}" if self.name else f"{self.kind} {self.tenant}"

    @property
    def pool(self) -> str:
        """The pool of a key."""
        return self.name.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A declared thing; attributes that it leaves to the server are missing. `fingerprint` is that of its secret."""

    attributes: Mapping[str, Any]
    secret: SecretRef | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """An existing thing; `fingerprints` are those of all its secrets, the current one first."""

    id: str
    version: int
    attributes: Mapping[str, Any]
    fingerprints: tuple[str, ...] = ()
    quota_id: str | None = None


def wanted_of(
    document: Document, *, tenant_ids: Mapping[str, UUID], secrets: Mapping[Address, Secret]
) -> dict[Address, Wanted]:
    """Lay a document out. The secret of a tenant without an id has no fingerprint yet: it is the tenant's own."""
    laid: dict[Address, Wanted] = {}
    for slug, tenant in document.tenants.items():
        own = {"name": tenant.name, "status": tenant.status, "settings": tenant.settings}
        laid[Address(slug, "tenant")] = Wanted({name: value for name, value in own.items() if value is not None})
        for name, quota in tenant.quotas.items():
            attributes = {"provider": quota.provider, "limits": to_builtins(quota.limits)}
            laid[Address(slug, "quota", name)] = Wanted(attributes)
        for pool_name, pool in tenant.pools.items():
            laid[Address(slug, "pool", pool_name)] = Wanted(_pool(pool))
            for key_name, key in pool.keys.items():
                address = Address(slug, "key", f"{pool_name}/{key_name}")
                secret, tenant_id = secrets.get(address), tenant_ids.get(slug)
                known = None if secret is None or tenant_id is None else fingerprint_of(tenant_id, secret)
                laid[address] = Wanted(_key(key), key.api_key, known)
        for name, client in tenant.clients.items():
            laid[Address(slug, "client", name)] = Wanted(_client(client))
    return laid


def _pool(pool: PoolDoc) -> dict[str, Any]:
    attributes: dict[str, Any] = {"settings": to_builtins(pool.settings)}
    if pool.strategy is not None:
        try:
            attributes["strategy"] = canonical_name(pool.strategy)
        except UnknownStrategy:
            attributes["strategy"] = pool.strategy  # the API knows best, and says which there are
    if pool.default:
        attributes["is_default"] = True
    return attributes


def _key(key: KeyDoc) -> dict[str, Any]:
    names = ("provider", "base_url", "region", "tier", "weight", "models", "model_map", "max_in_flight", "enabled")
    attributes = {name: getattr(key, name) for name in names}
    attributes["quota"] = key.quota
    if key.quota is None:
        attributes["limits"] = to_builtins(key.limits) if key.limits is not None else {}
    return attributes


def _client(client: ClientDoc) -> dict[str, Any]:
    attributes = {
        "scopes": sorted(client.scopes),
        "auth_method": client.auth_method,
        "authorization_details": write_details(parse_details(client.authorization_details)),
        "token_lifetime_s": client.token_lifetime_s,
        "metadata": client.metadata,
        "status": client.status,
    }
    if client.grant_types is not None:
        attributes["grant_types"] = sorted(client.grant_types)
    return attributes


def client_attributes(item: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a client, as the API shows it, into the shape that a declared one has."""
    names = ("auth_method", "token_lifetime_s", "metadata", "status")
    return {
        **{name: item[name] for name in names},
        "scopes": sorted(item["scopes"]),
        "grant_types": sorted(item["grant_types"]),
        "authorization_details": write_details(read_details(item["authorization_details"])),
    }


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Give every declared attribute that is otherwise, as (before, after)."""
    return {name: (found.get(name), value) for name, value in wanted.items() if found.get(name) != value}


def patch_between(before: object, after: Mapping[str, Any]) -> dict[str, Any]:
    """Give the merge patch (RFC 7396) that makes `before` into `after`, which holds no null."""
    held = before if isinstance(before, Mapping) else {}
    patch: dict[str, Any] = {name: None for name in held if name not in after}
    for name, value in after.items():
        if name not in held:
            patch[name] = value
        elif held[name] != value:
            both = isinstance(value, Mapping) and isinstance(held[name], Mapping)
            patch[name] = patch_between(held[name], value) if both else value
    return patch
