"""The declared configuration: what one YAML, JSON or TOML file says of tenants. Pure.

    version: 1
    tenants:
      acme:
        quotas: {openai-org: {provider: openai, limits: {rpm: 3000}}}
        pools:
          main:
            strategy: weighted
            keys:
              openai-1: {provider: openai, quota: openai-org, weight: 50, api_key: {env: ACME_OPENAI_1}}
        clients:
          web: {scopes: [inference]}

Secrets are named, not written: `{env: NAME}` or `{file: /path}`. What a key, pool or client leaves out has the API's
default; `name`, `settings` and `status` of a tenant, a pool's `strategy` and a client's `grant_types` stay as they are.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Hashable, Mapping
from typing import Annotated, Any, Literal

import msgspec
import yaml  # type: ignore[import-untyped]
from msgspec import Meta, Struct

from auth.errors import Invalid
from auth.scopes import DEFAULT_CLIENT_SCOPES
from tenants.checks import located
from tenants.names import NAME, SLUG
from tenants.pool_schemas import InFlight, Limits, PoolSettings, Tier, Weight

Name = Annotated[str, Meta(pattern=NAME)]
Slug = Annotated[str, Meta(pattern=SLUG)]
Status = Literal["active", "suspended"]


class DocumentInvalid(Invalid):
    """A file that cannot be applied; `errors` name each place."""

    code = "declaration_invalid"


class SecretRef(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a secret is: one of `env`, `file` or, only when it is allowed, `inline`."""

    env: str | None = None
    file: str | None = None
    inline: str | None = None

    def __repr__(self) -> str:
        return f"SecretRef({self.place})"

    @property
    def place(self) -> str:
        """Say where it is, without it."""
        if self.env is not None:
            return f"env {self.env}"
        return f"file {self.file}" if self.file is not None else "inline"


class QuotaDoc(Struct, frozen=True, forbid_unknown_fields=True):
    """A quota that several keys draw on."""

    provider: str
    limits: Limits = Limits()


class KeyDoc(Struct, frozen=True, forbid_unknown_fields=True):
    """A provider key; `quota` names one of the tenant's, `limits` are those of a quota of its own."""

    provider: str
    api_key: SecretRef
    base_url: str | None = None
    region: str | None = None
    tier: Tier = 0
    weight: Weight = 1
    models: list[str] = []
    model_map: dict[str, str] = {}
    max_in_flight: InFlight | None = None
    enabled: bool = True
    quota: Name | None = None
    limits: Limits | None = None


class PoolDoc(Struct, frozen=True, forbid_unknown_fields=True):
    """A pool and its keys; `default` true makes it the one for callers that name none."""

    strategy: str | None = None
    default: bool = False
    settings: PoolSettings = PoolSettings()
    keys: dict[Name, KeyDoc] = {}


class ClientDoc(Struct, frozen=True, forbid_unknown_fields=True):
    """An OAuth client and its policy: scopes, and what `authorization_details` narrow its tokens to."""

    scopes: tuple[str, ...] = DEFAULT_CLIENT_SCOPES
    auth_method: str = "client_secret_basic"
    grant_types: tuple[str, ...] | None = None
    authorization_details: list[dict[str, Any]] = []
    token_lifetime_s: int = 3600
    metadata: dict[str, Any] = {}
    status: Literal["active", "disabled"] = "active"


class TenantDoc(Struct, frozen=True, forbid_unknown_fields=True):
    """A tenant with everything that is declared of it."""

    name: str | None = None
    status: Status | None = None
    settings: dict[str, Any] | None = None
    quotas: dict[Name, QuotaDoc] = {}
    pools: dict[Name, PoolDoc] = {}
    clients: dict[str, ClientDoc] = {}


class Document(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole file."""

    version: Literal[1]
    tenants: dict[Slug, TenantDoc] = {}


_MERGE = "tag:yaml.org,2002:merge"
_TEXT = "tag:yaml.org,2002:str"


class _NamedOnce(yaml.SafeLoader):  # type: ignore[misc]
    """YAML whose names are text as in JSON, `on` too, and stand once: the last one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            if isinstance(key_node, yaml.ScalarNode):
                key_node.tag = _TEXT
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is named twice", key_node.start_mark)
            seen.add(key)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return found


def read_document(text: str, name: str, *, allow_inline: bool = False) -> Document:
    """Read one file; `name` tells its format by its ending (.json, .toml, else YAML) and is what errors call it."""
    try:
        document = msgspec.convert(_decode(text, name), Document)
    except msgspec.ValidationError as error:
        raise DocumentInvalid(f"{name} is not a declaration.", hint=_HINT, errors=(located(error, Document),)) from None
    if problems := _problems(document, allow_inline):
        raise DocumentInvalid(f"{name} cannot be applied.", hint=_HINT, errors=tuple(problems))
    return document


def merge_documents(documents: Mapping[str, Document]) -> Document:
    """Make one of several files; a tenant stands in one of them."""
    tenants: dict[str, TenantDoc] = {}
    homes: dict[str, str] = {}
    for name, document in documents.items():
        for slug, tenant in document.tenants.items():
            if slug in homes:
                raise DocumentInvalid(
                    f"Tenant {slug} is declared in {homes[slug]} and in {name}.", hint="Declare it once."
                )
            homes[slug], tenants[slug] = name, tenant
    return Document(version=1, tenants=tenants)


_HINT = "docs/apply.md shows every member."


def _decode(text: str, name: str) -> Any:
    try:
        if name.endswith(".json"):
            return json.loads(text)
        if name.endswith(".toml"):
            return tomllib.loads(text)
        return yaml.load(text, _NamedOnce)  # noqa: S506 - a SafeLoader that is stricter still
    except (ValueError, RecursionError, TypeError) as error:
        raise DocumentInvalid(f"{name} is not readable: {error}.", hint=_HINT) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise DocumentInvalid(f"{name} is not YAML: {getattr(error, 'problem', None) or 'malformed'}{where}.") from None


def _problems(document: Document, allow_inline: bool) -> list[tuple[str, str]]:
    found = []
    for slug, tenant in document.tenants.items():
        if sum(pool.default for pool in tenant.pools.values()) > 1:
            found.append((f"/tenants/{slug}/pools", "has more than one default"))
        for pool_name, pool in tenant.pools.items():
            for key_name, key in pool.keys.items():
                at = f"/tenants/{slug}/pools/{pool_name}/keys/{key_name}"
                ref = key.api_key
                if sum(each is not None for each in (ref.env, ref.file, ref.inline)) != 1:
                    found.append((f"{at}/api_key", "needs exactly one of env and file"))
                elif ref.inline is not None and not allow_inline:
                    found.append((f"{at}/api_key", "is written into the file: name it by env or file"))
                if key.quota is not None and key.limits is not None:
                    found.append((at, "has a quota and limits of its own: the limits belong to the quota"))
                quota = None if key.quota is None else tenant.quotas.get(key.quota)
                if key.quota is not None and quota is None:
                    found.append((f"{at}/quota", f"{key.quota} is not declared among the tenant's quotas"))
                if quota is not None and quota.provider != key.provider:
                    found.append((f"{at}/quota", f"{key.quota} is one of {quota.provider}, not of {key.provider}"))
    return found
