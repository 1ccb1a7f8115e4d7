"""/api/v1/tokens: long-lived tokens, made within what the caller may do, listed and revoked by name."""

from __future__ import annotations

from uuid import UUID

import msgspec
from litestar import Response, Router, delete, get, post
from litestar.params import FromPath, JSONBody

from auth import api_tokens
from auth.acting import act_in_tenant
from auth.deps import AnyRequest, Cursor, Limit, Services
from auth.errors import NotPermitted
from auth.guards import principal_of, requires
from auth.idempotency import once
from auth.models import ApiToken
from auth.paging import page_ask
from auth.principal import Principal
from auth.schemas import TokenCreated, TokenIn, TokenOut, TokenPage
from auth.scopes import TOKENS_ISSUE

_NO_STORE = {"cache-control": "no-store"}


@post("/", summary="Make a token", guards=[requires(TOKENS_ISSUE)])
async def create_token(data: JSONBody[TokenIn], request: AnyRequest, services: Services) -> Response[TokenCreated]:
    """The answer shows the token, once; it can do no more than the caller."""
    caller = principal_of(request)
    spec = api_tokens.TokenSpec(
        name=data.name,
        scopes=data.scopes,
        lifetime_s=data.expires_in_s,
        subject=data.subject,
        authorization_details=data.authorization_details,
    )
    kind = "DPoP" if caller.jkt else "Bearer"
    async with services.sessions.tenant(caller.tenant_id) as session:

        async def work() -> TokenCreated:
            row, token = await api_tokens.create_token(
                session,
                caller,
                spec,
                signer=services.keys.signer(),
                issuer=services.config.issuer,
                audience=services.config.audience,
                now=services.clock(),
            )
            await services.record(
                session, request, caller, "token.create", f"token:{row.jti}", name=row.name, scopes=row.scopes
            )
            return TokenCreated(access_token=token.reveal(), token_type=kind, **msgspec.structs.asdict(_out(row)))

        shown, repeated = await once(
            services, session, request, caller, shape=TokenCreated, work=work, hidden="access_token"
        )
    headers = {**_NO_STORE, "location": f"/api/v1/tokens/{shown.id}"}
    if repeated:
        headers["idempotent-replayed"] = "true"
    return Response(shown, status_code=201, headers=headers)


@get("/", summary="List the tokens", guards=[requires(TOKENS_ISSUE)])
async def list_tokens(
    request: AnyRequest,
    services: Services,
    limit: Limit = None,
    cursor: Cursor = None,
) -> Response[TokenPage]:
    """Oldest first, revoked and expired ones included."""
    caller, ask = _owner(request), page_ask(limit, cursor)
    async with services.sessions.tenant(caller.tenant_id) as session:
        page = await api_tokens.list_tokens(session, caller.tenant_id, ask)
    return Response(TokenPage([_out(row) for row in page.items], page.next_cursor), headers=_NO_STORE)


@get("/{token_id:uuid}", summary="Read a token", guards=[requires(TOKENS_ISSUE)])
async def read_token(token_id: FromPath[UUID], request: AnyRequest, services: Services) -> Response[TokenOut]:
    """What it may do and when it was last used, never the token."""
    caller = _owner(request)
    async with services.sessions.tenant(caller.tenant_id) as session:
        row = await api_tokens.get_token(session, caller.tenant_id, token_id)
    return Response(_out(row), headers=_NO_STORE)


@delete("/{token_id:uuid}", summary="Revoke a token", guards=[requires(TOKENS_ISSUE)])
async def revoke_token(token_id: FromPath[UUID], request: AnyRequest, services: Services) -> None:
    """It is refused everywhere within a second and stays listed."""
    caller = _owner(request)
    async with services.sessions.tenant(caller.tenant_id) as session:
        row, changed = await api_tokens.revoke_token(session, caller.tenant_id, token_id, now=services.now())
        if changed:
            await services.record(session, request, caller, "token.revoke", f"token:{row.jti}", name=row.name)


def token_router() -> Router:
    """The router."""
    return Router(
        path="/tokens",
        route_handlers=[create_token, list_tokens, read_token, revoke_token, act_in_tenant],
        tags=["tokens"],
    )


def _owner(request: AnyRequest) -> Principal:
    """Return the caller, who must act for itself: whom a token was handed to learns nothing of the tenant's others."""
    caller = principal_of(request)
    if caller.actors or caller.details:
        raise NotPermitted(
            "A narrowed or exchanged token cannot see or revoke the tenant's tokens.",
            hint="Use a token that the client got for itself, without authorization_details.",
        )
    return caller


def _out(row: ApiToken) -> TokenOut:
    return TokenOut(
        id=row.id,
        name=row.name,
        client_id=row.client_id,
        subject=row.subject,
        scopes=row.scopes,
        authorization_details=row.authorization_details,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
