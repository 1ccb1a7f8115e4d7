"""The JSON shapes of the management API. Requests carry secrets in, responses never carry one out.

Types are checked while decoding; what a type cannot say is in `tenants.checks`. Unknown members are refused, so that a
misspelt setting is not silently without effect. In a PATCH a missing member means: leave as it is (RFC 7396).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType

from tenants.pool_schemas import InFlight, Limits, PoolSettings, Tier, Weight

ApiKey = Annotated[str, Meta(description="The provider's key. Write-only: no response ever contains it")]


class TenantIn(Struct, frozen=True, forbid_unknown_fields=True):
    """A tenant to create, and what its first client is called."""

    slug: Annotated[str, Meta(description="Lower-case name, unique in the installation", examples=["acme"])]
    name: str | None = None
    settings: dict[str, Any] = {}
    client_name: str = "first client"


class TenantPatch(Struct, frozen=True, forbid_unknown_fields=True):
    """Changes to a tenant; `suspended` stops its requests at once and keeps its data."""

    name: str | UnsetType = UNSET
    status: Literal["active", "suspended"] | UnsetType = UNSET
    settings: dict[str, Any] | UnsetType = UNSET


class TenantOut(Struct, frozen=True):
    """A tenant."""

    id: UUID
    slug: str
    name: str
    status: str
    settings: dict[str, Any]
    version: int
    created_at: datetime
    updated_at: datetime


class FirstClient(Struct, frozen=True):
    """The credentials of a new tenant's first client; the secret is shown this once and null when replayed."""

    client_id: str
    client_secret: str | None
    scopes: list[str]

    def __repr__(self) -> str:
        return f"FirstClient(client_id={self.client_id!r}, client_secret=…)"


class TenantCreated(TenantOut, frozen=True):
    """A new tenant with its first client."""

    client: FirstClient


class PoolIn(Struct, frozen=True, forbid_unknown_fields=True):
    """A pool to create; the first of a tenant is its default."""

    name: str
    strategy: str | None = None
    is_default: bool = False
    settings: PoolSettings = PoolSettings()


class PoolPatch(Struct, frozen=True, forbid_unknown_fields=True):
    """Changes to a pool; `settings` is merged member by member, null removes one."""

    name: str | UnsetType = UNSET
    strategy: str | UnsetType = UNSET
    is_default: bool | UnsetType = UNSET
    settings: dict[str, Any] | UnsetType = UNSET


class PoolOut(Struct, frozen=True):
    """A pool."""

    id: UUID
    name: str
    strategy: str
    is_default: bool
    settings: dict[str, Any]
    version: int
    created_at: datetime
    updated_at: datetime


class QuotaIn(Struct, frozen=True, forbid_unknown_fields=True):
    """A quota to create: one organisation, project or deployment at a provider."""

    name: str
    provider: str
    limits: Limits = Limits()


class QuotaPatch(Struct, frozen=True, forbid_unknown_fields=True):
    """Changes to a quota; `limits` is merged member by member, null removes one."""

    name: str | UnsetType = UNSET
    limits: dict[str, Any] | UnsetType = UNSET


class QuotaOut(Struct, frozen=True):
    """A quota."""

    id: UUID
    name: str
    provider: str
    limits: dict[str, Any]
    version: int
    created_at: datetime
    updated_at: datetime


class Misconfigured(Struct, frozen=True):
    """A limit that is configured above what the provider says it grants."""

    configured: int
    told: int


class BeliefOut(Struct, frozen=True):
    """What is believed of one limiter. `limits`: those enforced, each in its provider's own window.

    `sources`: who says each: `configured`, `provider` (it named it) or `learned` (from what it admits and refuses).
    `known_as` are the provider's names for the quota, `counted_as` is another quota that it turned out to be one with.
    `belief`, where the pool is `predictive`: `margin` (a share of a request), `factors` (learned limit over the
    configured one), `seen` (limits read off remainders), `outside_per_s` (what others take), `phases_known`, `error`
    (mean absolute error of predicted remainders, as a share of the limit), `probes` and `probes_refused`,
    `trials_refused_share` (of the requests sent in spite of the margin), `fallback_s` (beliefs are set aside so long).
    """

    family: str
    updated_at: datetime
    limits: dict[str, float]
    misconfigured: dict[str, Misconfigured]
    rate_limited: int
    belief: dict[str, Any] | None = None
    sources: dict[str, Literal["configured", "provider", "learned"]] = {}
    known_as: list[str] = []
    counted_as: UUID | None = None


class BeliefList(Struct, frozen=True):
    """All of a quota."""

    items: list[BeliefOut]


class KeyIn(Struct, frozen=True, forbid_unknown_fields=True):
    """A provider key to add. Give `quota_id` to share a quota, or `limits` for one of its own, or neither.

    Give `source_id` in place of `api_key` for a key that its source makes, or that has no secret at all.
    """

    name: str
    provider: str
    api_key: ApiKey | None = None
    source_id: UUID | None = None
    base_url: str | None = None
    region: str | None = None
    tier: Tier = 0
    weight: Weight = 1
    models: Annotated[list[str], Meta(max_length=500, description="Globs; empty = every model")] = []
    model_map: Annotated[dict[str, str], Meta(max_length=500, description="Model → name at this provider")] = {}
    max_in_flight: InFlight | None = None
    enabled: bool = True
    quota_id: UUID | None = None
    limits: Limits | None = None

    def __repr__(self) -> str:
        return f"KeyIn(name={self.name!r}, provider={self.provider!r}, api_key=…)"


class KeyPatch(Struct, frozen=True, forbid_unknown_fields=True):
    """Changes to a key. Secret and base URL change by rotation only: a key never follows a URL it was not given for."""

    name: str | UnsetType = UNSET
    region: str | UnsetType | None = UNSET
    tier: Tier | UnsetType = UNSET
    weight: Weight | UnsetType = UNSET
    models: Annotated[list[str], Meta(max_length=500)] | UnsetType = UNSET
    model_map: Annotated[dict[str, str], Meta(max_length=500)] | UnsetType = UNSET
    max_in_flight: InFlight | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET
    quota_id: UUID | UnsetType = UNSET


class RotateIn(Struct, frozen=True, forbid_unknown_fields=True):
    """A rotation: with `api_key` to a supplied secret (`base_url` may change with it), without it the source makes one.

    `probe` tries a supplied secret against the provider first, and promotes it only when it works. `provider_ref` is
    what the provider calls the supplied key, for sources that can switch it off later. `at` has it begin later; until
    then the key takes no other rotation, and revoking the new version calls it off. A supplied secret is probed then.
    """

    api_key: ApiKey | None = None
    base_url: str | UnsetType | None = UNSET
    probe: bool = False
    provider_ref: str | None = None
    at: Annotated[datetime | None, Meta(description="With its time zone, up to a year ahead")] = None

    def __repr__(self) -> str:
        return "RotateIn(api_key=…)"


class RevokeIn(Struct, frozen=True, forbid_unknown_fields=True):
    """An emergency revocation; `force` also takes the key's last living version."""

    force: bool = False


class KeyRotationIn(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a key's new secrets come from and when; null takes the source away."""

    source_id: UUID | None = None
    settings: dict[str, Any] = {}


class KeyRotationOut(Struct, frozen=True):
    """How a key is rotated; `due_at` is the next scheduled run, `failures` in a row so far."""

    source_id: UUID | None
    settings: dict[str, Any]
    due_at: datetime | None
    failures: int


class SourceIn(Struct, frozen=True, forbid_unknown_fields=True):
    """A source of keys: a driver, its settings and its admin credential, which is write-only."""

    name: str
    driver: str
    config: dict[str, Any] = {}
    credential: str | None = None

    def __repr__(self) -> str:
        return f"SourceIn(name={self.name!r}, driver={self.driver!r}, credential=…)"


class TrustOut(Struct, frozen=True):
    """What the provider must be told to trust, for a source without a credential."""

    issuer: str
    jwks_uri: str
    subject: str
    audience: str


class SourceOut(Struct, frozen=True):
    """A source without its credential."""

    id: UUID
    name: str
    driver: str
    config: dict[str, Any]
    has_credential: bool
    trust: TrustOut | None
    version: int
    created_at: datetime
    updated_at: datetime


class SourcePage(Struct, frozen=True):
    """A page of sources."""

    items: list[SourceOut]
    next_cursor: str | None


class VersionOut(Struct, frozen=True):
    """One secret of a key, told by its first characters and its fingerprint.

    A source calls its key `llm-proxy-<id>` at the provider, where `provider_ref` is its id. `step_at` is when the
    rotation engine looks at it next: the end of its drain, or of the time it can be rolled back to.
    """

    id: UUID
    number: int
    state: str
    prefix: str
    fingerprint: str
    created_at: datetime
    state_changed_at: datetime
    step_at: datetime | None = None
    provider_ref: str | None = None
    error: str | None = None


class KeyOut(Struct, frozen=True):
    """A provider key without its secret."""

    id: UUID
    pool_id: UUID
    quota_id: UUID
    name: str
    provider: str
    base_url: str | None
    region: str | None
    tier: int
    weight: int
    models: list[str]
    model_map: dict[str, str]
    max_in_flight: int | None
    enabled: bool
    current: VersionOut | None
    version: int
    created_at: datetime
    updated_at: datetime


class PageOut(Struct, frozen=True):
    """Where the next page of a list begins; null on the last one."""

    next_cursor: str | None


class TenantPage(PageOut, frozen=True):
    """A page of tenants."""

    items: list[TenantOut]


class PoolPage(PageOut, frozen=True):
    """A page of pools."""

    items: list[PoolOut]


class QuotaPage(PageOut, frozen=True):
    """A page of quotas."""

    items: list[QuotaOut]


class KeyPage(PageOut, frozen=True):
    """A page of keys."""

    items: list[KeyOut]


class VersionList(Struct, frozen=True):
    """All versions of a key, the newest first."""

    items: list[VersionOut]


class PoolImported(PoolOut, frozen=True):
    """An imported pool with its keys."""

    keys: list[KeyOut]


class AuditEventOut(Struct, frozen=True):
    """One event; hashes in hex."""

    id: UUID
    seq: int
    at: datetime
    actor: str
    action: str
    subject: str
    address: str | None
    request_id: str | None
    detail: dict[str, Any]
    previous_hash: str
    hash: str


class AuditPage(PageOut, frozen=True):
    """A page of the audit trail."""

    items: list[AuditEventOut]


class AuditVerdict(Struct, frozen=True):
    """Whether the chain is whole; `last_hash` is worth keeping elsewhere: it shows a chain whose end was cut off."""

    intact: bool
    events: int
    last_hash: str | None = None
    broken_at: int | None = None
    reason: str | None = None
