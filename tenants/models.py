"""The tables of what a tenant owns, as the first migration makes them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Column, DateTime, LargeBinary, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel
from uuid_utils.compat import uuid7

from tenants.lifecycle import VersionState


def new_id() -> UUID:
    """Return a UUIDv7: ids in order of creation, which cursors and B-trees like (RFC 9562 section 5.7)."""
    return uuid7()


def _moment() -> Any:
    return Field(default=None, sa_column=Column(DateTime(timezone=True), nullable=False, server_default=func.now()))


def _maybe_moment() -> Any:
    return Field(default=None, sa_column=Column(DateTime(timezone=True), nullable=True))


def _json(default: Any, sql: str) -> Any:
    return Field(default_factory=default, sa_column=Column(JSONB, nullable=False, server_default=text(sql)))


class Tenant(SQLModel, table=True):
    """A customer of the installation; `config_revision` moves with every change that a data path must see."""

    __tablename__ = "tenant"

    id: UUID = Field(default_factory=new_id, primary_key=True)
    slug: str = Field(unique=True)
    name: str
    status: str = "active"
    settings: dict[str, Any] = _json(dict, "'{}'")
    version: int = 1
    config_revision: int = Field(
        default=None,
        sa_column=Column(BigInteger, nullable=False, server_default=text("nextval('config_revision_seq')")),
    )
    created_at: datetime = _moment()
    updated_at: datetime = _moment()


class DataKey(SQLModel, table=True):
    """A tenant's data key, wrapped by the KEK that `kek_uri` names."""

    __tablename__ = "data_key"

    id: UUID = Field(default_factory=new_id, primary_key=True)
    tenant_id: UUID
    version: int
    kek_uri: str
    wrapped: bytes = Field(sa_type=LargeBinary)
    spare_uri: str | None = None
    spare_wrapped: bytes | None = Field(default=None, sa_type=LargeBinary)
    state: str = "active"
    created_at: datetime = _moment()


class Pool(SQLModel, table=True):
    """Keys that serve the same callers under one strategy."""

    __tablename__ = "pool"

    id: UUID = Field(default_factory=new_id, primary_key=True)
    tenant_id: UUID
    name: str
    strategy: str
    is_default: bool = False
    settings: dict[str, Any] = _json(dict, "'{}'")
    version: int = 1
    created_at: datetime = _moment()
    updated_at: datetime = _moment()


class Quota(SQLModel, table=True):
    """What a provider limits; keys draw on it."""

    __tablename__ = "quota"

    id: UUID = Field(default_factory=new_id, primary_key=True)
    tenant_id: UUID
    name: str
    provider: str
    limits: dict[str, Any] = _json(dict, "'{}'")
    version: int = 1
    created_at: datetime = _moment()
    updated_at: datetime = _moment()


class LimiterBelief(SQLModel, table=True):
    """What the data path has learned of a quota's limiter for one model family; it alone writes these."""

    __tablename__ = "limiter_belief"

    quota_id: UUID = Field(primary_key=True)
    family: str = Field(primary_key=True)
    tenant_id: UUID
    report: dict[str, Any] = _json(dict, "'{}'")
    updated_at: datetime = _moment()


class ProviderKey(SQLModel, table=True):
    """One key of a pool; its secret lives in `KeyVersion`. `provisioned`: made by the pool's own growth."""

    __tablename__ = "provider_key"

    id: UUID = Field(default_factory=new_id, primary_key=True)
    tenant_id: UUID
    pool_id: UUID
    quota_id: UUID
    name: str
    provider: str
    base_url: str | None = None
    region: str | None = None
    tier: int = 0
    weight: int = 1
    models: list[str] = _json(list, "'[]'")
    model_map: dict[str, str] = _json(dict, "'{}'")
    max_in_flight: int | None = None
    enabled: bool = True
    source_id: UUID | None = None
    rotation: dict[str, Any] = _json(dict, "'{}'")
    due_at: datetime | None = _maybe_moment()
    failures: int = 0
    provisioned: bool = False
    retiring_at: datetime | None = _maybe_moment()
    version: int = 1
    created_at: datetime = _moment()
    updated_at: datetime = _moment()


class KeyVersion(SQLModel, table=True):
    """One secret of a key: sealed, or erased once it is revoked.

    `step_at` is when the rotation engine looks at it next (None: never), and its claim while it is being looked at.
    `source_id` is whose key `provider_ref` names, None while that is the key's own source.
    """

    __tablename__ = "key_version"

    id: UUID = Field(default_factory=new_id, primary_key=True)
    tenant_id: UUID
    key_id: UUID
    number: int
    state: str = VersionState.PENDING.value
    data_key_id: UUID | None = None
    envelope: bytes | None = Field(default=None, sa_type=LargeBinary)
    prefix: str = ""
    fingerprint: str = ""
    provider_ref: str | None = None
    source_id: UUID | None = None
    step_at: datetime | None = _maybe_moment()
    attempts: int = 0
    successes: int = 0
    error: str | None = None
    alerted_at: datetime | None = _maybe_moment()
    created_at: datetime = _moment()
    state_changed_at: datetime = _moment()


class KeySource(SQLModel, table=True):
    """Where a tenant's new keys come from: a driver, its settings, and its sealed admin credential."""

    __tablename__ = "key_source"

    id: UUID = Field(default_factory=new_id, primary_key=True)
    tenant_id: UUID
    name: str
    driver: str
    config: dict[str, Any] = _json(dict, "'{}'")
    data_key_id: UUID | None = None
    sealed: bytes | None = Field(default=None, sa_type=LargeBinary)
    version: int = 1
    created_at: datetime = _moment()
    updated_at: datetime = _moment()


class PoolProvisioning(SQLModel, table=True):
    """How a pool grows by itself; `look_at` is when it is looked at next, and the claim while it is."""

    __tablename__ = "pool_provisioning"

    pool_id: UUID = Field(primary_key=True)
    tenant_id: UUID
    source_id: UUID
    settings: dict[str, Any] = _json(dict, "'{}'")
    look_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    busy_since: datetime | None = _maybe_moment()
    idle_since: datetime | None = _maybe_moment()
    changed_at: datetime | None = _maybe_moment()
    failures: int = 0
    error: str | None = None
    version: int = 1
    created_at: datetime = _moment()
    updated_at: datetime = _moment()


class IdempotencyKey(SQLModel, table=True):
    """What a POST with an Idempotency-Key answered, so that a repeat gets the same."""

    __tablename__ = "idempotency_key"

    tenant_id: UUID = Field(primary_key=True)
    key: str = Field(primary_key=True)
    request_hash: bytes = Field(sa_type=LargeBinary)
    status: int | None = None
    response: dict[str, Any] | None = Field(default=None, sa_column=Column(JSONB))
    created_at: datetime = _moment()


class AuditEvent(SQLModel, table=True):
    """One link of a tenant's audit chain."""

    __tablename__ = "audit_event"

    id: UUID = Field(default_factory=new_id, primary_key=True)
    tenant_id: UUID
    seq: int = Field(sa_type=BigInteger)
    at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    actor: str
    action: str
    subject: str
    address: str | None = None
    request_id: str | None = None
    detail: dict[str, Any] = _json(dict, "'{}'")
    previous_hash: bytes = Field(sa_type=LargeBinary)
    hash: bytes = Field(sa_type=LargeBinary)
