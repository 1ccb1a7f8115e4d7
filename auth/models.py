"""The tables of the authorization server as the first migration creates them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel


def _timestamp(*, nullable: bool = False, default_now: bool = False) -> Any:
    return Field(
        default=None,
        sa_type=sa.DateTime(timezone=True),
        nullable=nullable,
        sa_column_kwargs={"server_default": sa.func.now()} if default_now else {},
    )


class OAuthClient(SQLModel, table=True):
    """A registered client: `client_id` is its public name, `version` what its ETag carries."""

    __tablename__ = "oauth_client"
    __table_args__ = (sa.UniqueConstraint("tenant_id", "id"),)

    id: UUID = Field(primary_key=True)
    tenant_id: UUID = Field(index=False)
    client_id: str = Field(unique=True)
    name: str
    auth_method: str = "client_secret_basic"
    grant_types: list[str] = Field(default_factory=lambda: ["client_credentials"], sa_type=JSONB)
    scopes: list[str] = Field(default_factory=list, sa_type=JSONB)
    authorization_details: list[dict[str, Any]] = Field(default_factory=list, sa_type=JSONB)
    client_metadata: dict[str, Any] = Field(default_factory=dict, sa_type=JSONB, sa_column_kwargs={"name": "metadata"})
    token_lifetime_s: int = 3600
    status: str = "active"
    version: int = 1
    created_at: datetime = _timestamp(default_now=True)
    updated_at: datetime = _timestamp(default_now=True)


class ClientSecret(SQLModel, table=True):
    """One secret of a client as its MAC; `prefix` is what its owner recognises it by."""

    __tablename__ = "client_secret"
    __table_args__ = (
        sa.ForeignKeyConstraint(
            ["tenant_id", "client_pk"], ["oauth_client.tenant_id", "oauth_client.id"], ondelete="CASCADE"
        ),
    )

    id: UUID = Field(primary_key=True)
    tenant_id: UUID
    client_pk: UUID = Field(index=True)
    mac: bytes
    pepper_version: int
    prefix: str
    created_at: datetime = _timestamp(default_now=True)
    expires_at: datetime | None = _timestamp(nullable=True)
    last_used_at: datetime | None = _timestamp(nullable=True)


class SigningKey(SQLModel, table=True):
    """A key that signs tokens: the private half sealed, the public half as its JWK."""

    __tablename__ = "signing_key"

    kid: str = Field(primary_key=True)
    tenant_id: UUID
    alg: str
    public_jwk: dict[str, Any] = Field(sa_type=JSONB)
    data_key_id: UUID
    sealed: bytes
    state: str
    created_at: datetime = _timestamp(default_now=True)
    activated_at: datetime | None = _timestamp(nullable=True)
    retire_at: datetime | None = _timestamp(nullable=True)


class TokenRevocation(SQLModel, table=True):
    """One refusal: `jti` is a token's, or `client:…` or `tenant:…` for all issued before `revoked_at`.

    `recorded_at` is the database's own clock: what processes read on from, whatever their clocks say.
    """

    __tablename__ = "token_revocation"

    jti: str = Field(primary_key=True)
    tenant_id: UUID
    expires_at: datetime = _timestamp()
    revoked_at: datetime = _timestamp(default_now=True)
    recorded_at: datetime = Field(
        default=None,
        sa_type=sa.DateTime(timezone=True),
        nullable=False,
        sa_column_kwargs={"server_default": sa.func.clock_timestamp()},
    )


class SeenProof(SQLModel, table=True):
    """The use of a one-time JWT, by a digest of its kind, owner and jti, until it is too old anyway."""

    __tablename__ = "seen_proof"

    digest: bytes = Field(primary_key=True)
    tenant_id: UUID
    expires_at: datetime = _timestamp()


class ApiToken(SQLModel, table=True):
    """A long-lived, named access token: what it may do and when it was used, never the token itself."""

    __tablename__ = "api_token"

    id: UUID = Field(primary_key=True)
    tenant_id: UUID
    jti: str = Field(unique=True)
    name: str
    client_id: str
    subject: str
    scopes: list[str] = Field(default_factory=list, sa_type=JSONB)
    authorization_details: list[dict[str, Any]] = Field(default_factory=list, sa_type=JSONB)
    created_at: datetime = _timestamp(default_now=True)
    expires_at: datetime = _timestamp()
    revoked_at: datetime | None = _timestamp(nullable=True)
    last_used_at: datetime | None = _timestamp(nullable=True)


class WebSession(SQLModel, table=True):
    """A person's one-time link or session, by the SHA-256 of its secret; `client_id` is the client that made it."""

    __tablename__ = "web_session"

    id: UUID = Field(primary_key=True)
    digest: bytes = Field(unique=True)
    kind: str
    tenant_id: UUID
    client_id: str
    lineage: list[str] = Field(default_factory=list, sa_type=JSONB)
    subject: str
    scopes: list[str] = Field(default_factory=list, sa_type=JSONB)
    created_at: datetime = _timestamp()
    last_used_at: datetime = _timestamp()
    expires_at: datetime = _timestamp()


class Member(SQLModel, table=True):
    """People of a tenant, by what their OpenID provider says of them; `issuer` is the provider that may say it."""

    __tablename__ = "member"

    id: UUID = Field(primary_key=True)
    tenant_id: UUID
    issuer: str
    claim: str
    value: str
    scopes: list[str] = Field(default_factory=list, sa_type=JSONB)
    created_at: datetime = _timestamp(default_now=True)
