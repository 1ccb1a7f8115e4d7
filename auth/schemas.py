"""The management API's documents about clients, secrets and tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from msgspec import UNSET, Struct, UnsetType, field

from auth.scopes import DEFAULT_CLIENT_SCOPES


class ClientIn(Struct, frozen=True, forbid_unknown_fields=True):
    """A client to register; `grant_types` left out follow from the scopes."""

    name: str
    scopes: tuple[str, ...] = DEFAULT_CLIENT_SCOPES
    auth_method: str = "client_secret_basic"
    grant_types: tuple[str, ...] = ()
    authorization_details: list[dict[str, Any]] = field(default_factory=list)
    token_lifetime_s: int = 3600
    metadata: dict[str, Any] = field(default_factory=dict)


class ClientPatch(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Changes to a client: members left out stay as they are."""

    name: str | UnsetType = UNSET
    scopes: tuple[str, ...] | UnsetType = UNSET
    auth_method: str | UnsetType = UNSET
    grant_types: tuple[str, ...] | UnsetType = UNSET
    authorization_details: list[dict[str, Any]] | UnsetType = UNSET
    token_lifetime_s: int | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    status: Literal["active", "disabled"] | UnsetType = UNSET


class SecretOut(Struct, frozen=True):
    """A stored secret, recognised by its first characters."""

    id: UUID
    prefix: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


class ClientOut(Struct, frozen=True, kw_only=True):
    """A registered client."""

    client_id: str
    name: str
    scopes: list[str]
    auth_method: str
    grant_types: list[str]
    authorization_details: list[dict[str, Any]]
    token_lifetime_s: int
    metadata: dict[str, Any]
    status: str
    version: int
    created_at: datetime
    updated_at: datetime
    secrets: list[SecretOut]


class ClientCreated(ClientOut, frozen=True, kw_only=True):
    """A new client with its secret, which no other answer ever shows; null for methods without one."""

    client_secret: str | None


class ClientPage(Struct, frozen=True):
    """One page of clients, oldest first; secrets are listed with each client alone."""

    items: list[ClientOut]
    next_cursor: str | None


class SecretIn(Struct, frozen=True, forbid_unknown_fields=True):
    """A further secret: when it ends, and when the older ones do (0: at once)."""

    expires_in_s: int | None = None
    retire_others_in_s: int | None = None


class SecretCreated(SecretOut, frozen=True, kw_only=True):
    """A new secret, which no other answer ever shows, a repeated one (Idempotency-Key) neither: null."""

    client_secret: str | None


class TokenIn(Struct, frozen=True, forbid_unknown_fields=True):
    """A long-lived token: named, listed, revocable; it can do no more than the caller can."""

    name: str
    expires_in_s: int = 30 * 86_400
    scopes: tuple[str, ...] = DEFAULT_CLIENT_SCOPES
    subject: str = ""
    authorization_details: list[dict[str, Any]] = field(default_factory=list)


class TokenOut(Struct, frozen=True, kw_only=True):
    """A long-lived token, without the token."""

    id: UUID
    name: str
    client_id: str
    subject: str
    scopes: list[str]
    authorization_details: list[dict[str, Any]]
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None


class TokenCreated(TokenOut, frozen=True, kw_only=True):
    """A new token, which no other answer ever shows, a repeated one (Idempotency-Key) neither: null."""

    access_token: str | None
    token_type: str


class TokenPage(Struct, frozen=True):
    """One page of tokens, oldest first."""

    items: list[TokenOut]
    next_cursor: str | None


class RotationIn(Struct, frozen=True, forbid_unknown_fields=True):
    """A rotation of the issuer's signing key; `compromised` refuses at once whatever the old key signed."""

    alg: str | None = None
    compromised: bool = False


class RotationOut(Struct, frozen=True):
    """The key that signs now."""

    kid: str
    alg: str


class LinkIn(Struct, frozen=True, forbid_unknown_fields=True):
    """Who is to be signed in, by the name that the audit log shows; `scopes` left out are the caller's."""

    subject: str = "operator"
    scopes: tuple[str, ...] | None = None


class LinkOut(Struct, frozen=True):
    """A link that works once."""

    url: str
    expires_at: datetime
