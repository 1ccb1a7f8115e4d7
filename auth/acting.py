"""POST /api/v1/tokens/acting: an operator's short way into one tenant, for declaring its configuration.

An operator of the platform holds nothing inside a tenant. One that also holds `tenants:act` may have a token of a
tenant: for five minutes, with the scopes that it names and no others, under the operator's own client id, noted in the
audit trails of both. It ends with the token that it came from (`lineage`), and outlasts itself through nothing but what
the trail shows: clients that were registered, keys that were added. docs/adr/0005 says why it is no tenant's client.
"""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from litestar import Response, post
from litestar.params import JSONBody
from msgspec import Struct

from auth.deps import AnyRequest, Services
from auth.errors import Invalid, NotFound, NotPermitted
from auth.guards import principal_of, requires
from auth.principal import PLATFORM_TENANT_ID, Principal
from auth.scopes import PLATFORM, TENANT_SCOPES, TENANTS_ACT, format_scope
from auth.tokens import Grant, mint, new_token_id

LIFETIME_S = 300
_tenant = sa.table("tenant", sa.column("id", sa.Uuid), sa.column("slug"))


class ActingIn(Struct, frozen=True, forbid_unknown_fields=True):
    """The tenant to act in, and exactly what for."""

    tenant_id: UUID
    scopes: tuple[str, ...]


class ActingOut(Struct, frozen=True):
    """A token of the tenant, shown this once (RFC 6749 section 5.1)."""

    access_token: str
    token_type: str
    expires_in: int
    scope: str

    def __repr__(self) -> str:
        return f"ActingOut(access_token=…, scope={self.scope!r})"


@post("/acting", summary="Act in a tenant, as an operator", guards=[requires(PLATFORM, TENANTS_ACT)], status_code=200)
async def act_in_tenant(data: JSONBody[ActingIn], request: AnyRequest, services: Services) -> Response[ActingOut]:
    """Five minutes with the scopes asked for; both audit trails show who and for what."""
    caller = _operator(request)
    wanted = frozenset(data.scopes)
    if not wanted or not wanted <= TENANT_SCOPES:
        raise Invalid(
            "The scopes to act with are not valid.",
            hint=f"Name at least one out of {format_scope(TENANT_SCOPES)}.",
            errors=(("/scopes", f"choose from {format_scope(TENANT_SCOPES)}"),),
        )
    token_id = new_token_id()
    async with services.sessions.platform() as session:
        slug = await session.scalar(sa.select(_tenant.c.slug).where(_tenant.c.id == data.tenant_id))
        if slug is None or data.tenant_id == PLATFORM_TENANT_ID:
            raise NotFound(f"There is no tenant {data.tenant_id}.", hint="List them with GET /api/v1/tenants.")
        await services.record(
            session, request, caller, "tenant.act", f"tenant:{data.tenant_id}", slug=slug, scopes=sorted(wanted)
        )
    grant = Grant(
        issuer=services.config.issuer,
        audience=services.config.audience,
        tenant_id=data.tenant_id,
        client_id=caller.client_id,
        subject=caller.subject or caller.client_id,
        scopes=wanted,
        lifetime_s=max(1, min(LIFETIME_S, int(caller.expires_at - services.clock()))),
        lineage=(f"{caller.client_id}:{caller.token_id}", *caller.lineage),
        confirmation={name: value for name, value in (("jkt", caller.jkt), ("x5t#S256", caller.x5t_s256)) if value},
    )
    token = mint(services.keys.signer(), grant, now=services.clock(), token_id=token_id)
    async with services.sessions.tenant(data.tenant_id) as session:
        await services.record(
            session,
            request,
            _within(caller, data.tenant_id),
            "operator.act",
            f"client:{caller.client_id}",
            scopes=sorted(wanted),
        )
    kind = "DPoP" if caller.jkt else "Bearer"
    shown = ActingOut(token, kind, grant.lifetime_s, format_scope(wanted))
    return Response(shown, status_code=200, headers={"cache-control": "no-store"})


def _operator(request: AnyRequest) -> Principal:
    """Return the caller, who must be an operator acting for itself."""
    caller = principal_of(request)
    if not caller.is_operator or caller.actors or caller.details:
        raise NotPermitted(
            "Only operators of the installation may act in a tenant, with a token of their own.",
            hint="Use an operator's client that was made with `llm-proxy bootstrap --may-act`.",
        )
    return caller


def _within(caller: Principal, tenant_id: UUID) -> Principal:
    """Return the caller as the tenant's trail names it."""
    return Principal(tenant_id, caller.client_id, frozenset(), caller.token_id, caller.expires_at)
