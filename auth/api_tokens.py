"""Long-lived access tokens that a tenant names, lists and revokes: for its own apps and its customers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select
from uuid_utils.compat import uuid7

from auth.details import latest_end, narrow, parse_details, read_details, write_details
from auth.errors import Invalid, NotFound, NotPermitted
from auth.keyset import Signer
from auth.models import ApiToken
from auth.paging import Page, PageAsk, cut_page
from auth.principal import Principal
from auth.revocation_store import revoke_key
from auth.revocations import MAX_TOKEN_LIFETIME_S
from auth.scopes import PLATFORM, format_scope, unknown_scopes
from auth.secret import Secret
from auth.tokens import Grant, mint, new_token_id

MAX_LIFETIME_S = min(365 * 86_400, MAX_TOKEN_LIFETIME_S)
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """What a token is made for: at most what its maker may do, for `lifetime_s` seconds."""

    name: str
    scopes: tuple[str, ...]
    lifetime_s: int
    subject: str = ""
    authorization_details: Sequence[Mapping[str, Any]] = ()


async def create_token(
    session: AsyncSession, maker: Principal, spec: TokenSpec, *, signer: Signer, issuer: str, audience: str, now: float
) -> tuple[ApiToken, Secret]:
    """Mint and list a token; `Invalid` and `NotPermitted` say what is wrong with the wish.

    A token made with an exchanged, narrowed or acting token ends with it and is refused with it, as a token that it
    came from.
    """
    _check(maker, spec)
    token_id = new_token_id()
    details = narrow(read_details(maker.details), parse_details(list(spec.authorization_details)), token_id)
    end = int(now) + spec.lifetime_s
    lineage: tuple[str, ...] = ()
    if maker.actors or maker.details or maker.lineage:  # an acting operator's has neither, and leaves no long-lived one
        end = min(end, int(maker.expires_at))
        lineage = (f"{maker.client_id}:{maker.token_id}", *maker.lineage)
    if (latest := latest_end(details)) is not None:
        end = min(end, latest)
    if end - now < 1:
        raise Invalid("The token would have expired already.", hint="Choose a later expires_at in its details.")
    row = ApiToken(
        id=uuid7(),
        tenant_id=maker.tenant_id,
        jti=token_id,
        name=spec.name,
        client_id=maker.client_id,
        subject=f"{maker.subject}/{spec.subject}" if spec.subject else maker.subject,
        scopes=sorted(spec.scopes),
        authorization_details=write_details(details),
        created_at=datetime.fromtimestamp(now, UTC),
        expires_at=datetime.fromtimestamp(end, UTC),
    )
    session.add(row)
    await session.flush()
    grant = Grant(
        issuer=issuer,
        audience=audience,
        tenant_id=maker.tenant_id,
        client_id=maker.client_id,
        subject=row.subject,
        scopes=frozenset(spec.scopes),
        lifetime_s=end - int(now),
        details=tuple(row.authorization_details),
        actors=maker.actors,
        lineage=lineage,
        confirmation={name: value for name, value in (("jkt", maker.jkt), ("x5t#S256", maker.x5t_s256)) if value},
    )
    return row, Secret(mint(signer, grant, now=now, token_id=token_id))


async def list_tokens(session: AsyncSession, tenant_id: UUID, ask: PageAsk) -> Page[ApiToken]:
    """Return one page of the tenant's tokens, oldest first, revoked and expired ones included."""
    query = select(ApiToken).where(col(ApiToken.tenant_id) == tenant_id)
    if ask.after is not None:
        query = query.where(col(ApiToken.id) > ask.after)
    rows = (await session.execute(query.order_by(col(ApiToken.id)).limit(ask.fetch))).scalars().all()
    return cut_page(rows, ask, key=lambda row: row.id)


async def get_token(session: AsyncSession, tenant_id: UUID, token_id: UUID) -> ApiToken:
    """Return one of the tenant's tokens."""
    query = select(ApiToken).where(col(ApiToken.tenant_id) == tenant_id, col(ApiToken.id) == token_id)
    found = (await session.execute(query)).scalar_one_or_none()
    if found is None:
        raise NotFound(f"There is no token {token_id} in this tenant.", hint="List them with GET /api/v1/tokens.")
    return found


async def revoke_token(
    session: AsyncSession, tenant_id: UUID, token_id: UUID, *, now: datetime
) -> tuple[ApiToken, bool]:
    """Refuse the token everywhere from now on; doing it twice changes nothing, which the second member tells."""
    row = await get_token(session, tenant_id, token_id)
    if row.revoked_at is not None:
        return row, False
    row.revoked_at = now
    await session.flush()
    await revoke_key(session, tenant_id, row.jti, now=now, expires_at=row.expires_at)
    return row, True


def _check(maker: Principal, spec: TokenSpec) -> None:
    errors = []
    if not 1 <= len(spec.name.strip()) <= 200 or not spec.name.isprintable():
        errors.append(("/name", "needs 1 to 200 printable characters"))
    if not 60 <= spec.lifetime_s <= MAX_LIFETIME_S:
        errors.append(("/expires_in_s", f"must be between 60 and {MAX_LIFETIME_S} seconds"))
    if spec.subject and not _LABEL.fullmatch(spec.subject):
        errors.append(("/subject", "needs 1 to 128 of letters, digits and ._:@-"))
    if not spec.scopes or unknown_scopes(spec.scopes):
        errors.append(("/scopes", f"choose from {format_scope(maker.scopes)}"))
    if errors:
        raise Invalid(f"The token is not valid: {errors[0][0][1:]} {errors[0][1]}.", errors=tuple(errors))
    if beyond := set(spec.scopes) - (maker.scopes - {PLATFORM}):
        raise NotPermitted(
            f"The token would hold scopes that its maker cannot hand out: {format_scope(beyond)}.",
            hint=f"Choose from {format_scope(maker.scopes - {PLATFORM})}.",
        )
