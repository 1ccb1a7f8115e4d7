"""The scopes of the gateway: the one table that documentation, metadata and checks read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType

INFERENCE = "inference"
POOLS_READ = "pools:read"
POOLS_WRITE = "pools:write"
KEYS_READ = "keys:read"
KEYS_WRITE = "keys:write"
KEYS_ROTATE = "keys:rotate"
CLIENTS_READ = "clients:read"
CLIENTS_WRITE = "clients:write"
TOKENS_ISSUE = "tokens:issue"
USAGE_READ = "usage:read"
AUDIT_READ = "audit:read"
PLATFORM = "platform"
TENANTS_ACT = "tenants:act"


@dataclass(frozen=True, slots=True)
class Scope:
    """One scope: what it lets its holder do; `operators_only` scopes exist for clients of the platform tenant alone."""

    name: str
    allows: str
    operators_only: bool = False


SCOPES = MappingProxyType(
    {
        scope.name: scope
        for scope in (
            Scope(INFERENCE, "Send requests to the inference paths through the tenant's pools."),
            Scope(POOLS_READ, "List and read pools and quotas."),
            Scope(POOLS_WRITE, "Create, change and delete quotas and pools; a pool's keys go with it."),
            Scope(
                KEYS_READ, "List and read provider keys, versions, rotations and sources; key material is never shown."
            ),
            Scope(KEYS_WRITE, "Add, change, disable and delete provider keys."),
            Scope(
                KEYS_ROTATE,
                "Rotate, roll back and revoke provider keys' secrets; set schedules, sources and growth of pools.",
            ),
            Scope(CLIENTS_READ, "List and read OAuth clients, members and sessions."),
            Scope(
                CLIENTS_WRITE,
                "Create, change and delete OAuth clients, secrets and members, within the caller's scopes;"
                " end sessions.",
            ),
            Scope(
                TOKENS_ISSUE,
                "Hand out narrower tokens: token exchange and POST /api/v1/tokens; list and revoke the tenant's.",
            ),
            Scope(USAGE_READ, "Read what became of requests, their tokens and costs, and how pools stand."),
            Scope(AUDIT_READ, "Read the tenant's audit log."),
            Scope(
                PLATFORM,
                "Operate the installation: create, suspend and delete tenants; look after KEKs and signing keys.",
                operators_only=True,
            ),
            Scope(
                TENANTS_ACT,
                "With `platform`: act in a tenant for five minutes at a time, seen in its audit log.",
                operators_only=True,
            ),
        )
    }
)

TENANT_SCOPES = frozenset(name for name, scope in SCOPES.items() if not scope.operators_only)
"""Every scope that a tenant's client may hold."""

DEFAULT_CLIENT_SCOPES = (INFERENCE,)
"""What a new client may do when its creator names no scopes."""

# RFC 6749 section 3.3: scope-token = 1*( %x21 / %x23-5B / %x5D-7E )
_SCOPE_TOKEN = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")


def parse_scope(value: str) -> frozenset[str] | None:
    """Split a `scope` parameter (RFC 6749 section 3.3: tokens with single spaces between); None if it is malformed."""
    names = value.split(" ")
    if not all(_SCOPE_TOKEN.fullmatch(name) for name in names):
        return None
    return frozenset(names)


def format_scope(names: Iterable[str]) -> str:
    """Join scopes into a `scope` parameter, in the table's order; unknown ones follow by name."""
    order = list(SCOPES)
    return " ".join(sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name)))


def unknown_scopes(names: Iterable[str]) -> list[str]:
    """Return the names that the table does not have, sorted."""
    return sorted(set(names) - set(SCOPES))
