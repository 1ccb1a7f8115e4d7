"""Who belongs to a tenant: rules over what the OpenID provider says of people, each with the scopes that it gives.

A person may fit several rules of a tenant, and belong to several tenants. Sessions stand on every rule that gave them
something (`lineage`), so that they end with the first of these rules that is deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select
from uuid_utils.compat import uuid7

from auth.errors import Conflict, Invalid, NotFound
from auth.identity import Person, Rule, make_rule
from auth.models import Member
from auth.paging import Page, PageAsk, cut_page
from auth.principal import PLATFORM_TENANT_ID
from auth.revocation_store import revoke_key
from auth.revocations import MAX_TOKEN_LIFETIME_S, client_key
from auth.scopes import INFERENCE, PLATFORM, TENANT_SCOPES, format_scope

MEMBER_SCOPES = TENANT_SCOPES - {INFERENCE}
"""Sessions open pages, not the inference paths."""

MAX_MEMBERS = 10_000
_tenant = sa.table("tenant", sa.column("id", sa.Uuid), sa.column("slug"), sa.column("status"))


@dataclass(frozen=True, slots=True)
class Role:
    """What a person is in one tenant; `client_id` names the rule that says so, `lineage` the further ones."""

    tenant_id: UUID
    tenant_slug: str
    client_id: str
    scopes: frozenset[str]
    lineage: tuple[str, ...] = ()


async def add_member(
    session: AsyncSession, tenant_id: UUID, *, issuer: str, claim: str, value: str, scopes: Sequence[str], now: datetime
) -> Member:
    """Declare a rule; `Invalid` says what is wrong with it, `Conflict` that the tenant has it."""
    try:
        rule = make_rule(claim, value)
    except ValueError as error:
        raise Invalid(
            f"The member is not valid: a rule {error}.",
            hint='Send {"claim": "email", "value": "ada@example.com", "scopes": ["pools:read"]}.',
            errors=(("/claim", f"a rule {error}"),),
        ) from None
    if not scopes or not set(scopes) <= MEMBER_SCOPES:
        raise Invalid(
            "The member's scopes are not valid.",
            hint=f"Name at least one out of {format_scope(MEMBER_SCOPES)}.",
            errors=(("/scopes", f"choose from {format_scope(MEMBER_SCOPES)}"),),
        )
    row = Member(
        id=uuid7(),
        tenant_id=tenant_id,
        issuer=issuer,
        claim=rule.claim,
        value=rule.value,
        scopes=sorted(set(scopes)),
        created_at=now,
    )
    count = await session.scalar(sa.select(sa.func.count()).where(col(Member.tenant_id) == tenant_id))
    if (count or 0) >= MAX_MEMBERS:
        raise Conflict(f"The tenant has {MAX_MEMBERS} members already.", hint="Name a group of them in one rule.")
    same = select(Member).where(
        col(Member.tenant_id) == tenant_id,
        col(Member.issuer) == issuer,
        col(Member.claim) == rule.claim,
        col(Member.value) == rule.value,
    )
    try:
        async with session.begin_nested():
            session.add(row)
            await session.flush()
    except sa.exc.IntegrityError:
        held = (await session.execute(same)).scalar_one()
        raise Conflict(
            f"The tenant has this member already, as {held.id}.", hint="Delete that one first to give other scopes."
        ) from None
    return row


async def get_member(session: AsyncSession, tenant_id: UUID, member_id: UUID) -> Member:
    """Return one of the tenant's; `NotFound` for another tenant's too."""
    query = select(Member).where(col(Member.tenant_id) == tenant_id, col(Member.id) == member_id)
    found = (await session.execute(query)).scalar_one_or_none()
    if found is None:
        raise NotFound(
            f"There is no member {member_id} in this tenant.", hint="List the members with GET /api/v1/members."
        )
    return found


async def list_members(session: AsyncSession, tenant_id: UUID, ask: PageAsk) -> Page[Member]:
    """Return one page of the tenant's members, oldest first."""
    query = select(Member).where(col(Member.tenant_id) == tenant_id)
    if ask.after is not None:
        query = query.where(col(Member.id) > ask.after)
    rows = (await session.execute(query.order_by(col(Member.id)).limit(ask.fetch))).scalars().all()
    return cut_page(rows, ask, key=lambda row: row.id)


async def delete_member(session: AsyncSession, tenant_id: UUID, member_id: UUID, *, now: datetime) -> Member:
    """Remove a rule, and refuse every session that stands on it."""
    row = await get_member(session, tenant_id, member_id)
    until = now + timedelta(seconds=MAX_TOKEN_LIFETIME_S)
    await revoke_key(session, tenant_id, client_key(_name(row.id)), now=now, expires_at=until)
    await session.delete(row)
    await session.flush()
    return row


async def roles_of(session: AsyncSession, person: Person, operators: Sequence[Rule], *, tenant: str = "") -> list[Role]:
    """Return everything that the person is: an operator, and a member of active tenants; in a platform transaction.

    `tenant` is the slug of the one to look at, "" all.
    """
    roles = []
    rule = next((each for each in operators if person.fits(each)), None)
    if rule is not None and tenant in {"", "platform"}:
        roles.append(Role(PLATFORM_TENANT_ID, "platform", rule.name, frozenset({PLATFORM})))
    query = (
        sa.select(Member, _tenant.c.slug)
        .join(_tenant, _tenant.c.id == col(Member.tenant_id))
        .where(
            col(Member.issuer) == person.issuer,
            sa.tuple_(col(Member.claim), col(Member.value)).in_(sorted(person.facts)),
            _tenant.c.status == "active",
        )
        .order_by(_tenant.c.slug, col(Member.id))
    )
    if tenant:
        query = query.where(_tenant.c.slug == tenant)
    found: dict[UUID, list[Member]] = {}
    slugs: dict[UUID, str] = {}
    for member, slug in (await session.execute(query)).all():
        found.setdefault(member.tenant_id, []).append(member)
        slugs[member.tenant_id] = slug
    for tenant_id, rows in found.items():
        scopes = frozenset(scope for row in rows for scope in row.scopes)
        others = tuple(f"{_name(row.id)}:sign-in" for row in rows[1:])
        roles.append(Role(tenant_id, slugs[tenant_id], _name(rows[0].id), scopes, others))
    return roles


def _name(member_id: UUID) -> str:
    """A client id for those whom the rule admits; it can equal no registered client's."""
    return f"member-{member_id}"
