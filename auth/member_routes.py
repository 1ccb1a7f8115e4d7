"""/api/v1/members: who signs in to the tenant's pages; /api/v1/sessions: who is signed in."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from litestar import Response, Router, delete, get, post
from litestar.params import FromPath, JSONBody
from msgspec import Struct

from auth import members, people
from auth.deps import AnyRequest, AuthServices, Cursor, Limit, Services
from auth.errors import Conflict, NotPermitted
from auth.guards import principal_of, requires
from auth.models import Member, WebSession
from auth.paging import page_ask
from auth.principal import Principal
from auth.relying_party import RelyingParty
from auth.scopes import CLIENTS_READ, CLIENTS_WRITE, format_scope

_NO_STORE = {"cache-control": "no-store"}


class MemberIn(Struct, frozen=True, forbid_unknown_fields=True):
    """People to let in: those whose `claim` is, or has, `value`; `email` means an address the provider verified."""

    value: str
    scopes: tuple[str, ...]
    claim: str = "email"


class MemberOut(Struct, frozen=True, kw_only=True):
    """A declared member."""

    id: UUID
    issuer: str
    claim: str
    value: str
    scopes: list[str]
    created_at: datetime


class MemberPage(Struct, frozen=True):
    """One page of members, oldest first."""

    items: list[MemberOut]
    next_cursor: str | None


class SessionOut(Struct, frozen=True, kw_only=True):
    """A browser that is signed in, or a link that is not used yet (`kind`)."""

    id: UUID
    kind: str
    subject: str
    client_id: str
    scopes: list[str]
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime


class SessionPage(Struct, frozen=True):
    """One page of sessions, oldest first."""

    items: list[SessionOut]
    next_cursor: str | None


@post("/", summary="Declare a member", guards=[requires(CLIENTS_WRITE)], status_code=201)
async def add_member(data: JSONBody[MemberIn], request: AnyRequest, services: Services) -> Response[MemberOut]:
    """Whom the provider vouches for may sign in to the pages of this tenant; no member gets scopes that you lack."""
    caller, provider = _owner(request), _provider(services)
    if beyond := set(data.scopes) - caller.scopes:
        raise NotPermitted(
            f"The member would hold scopes that this token lacks: {format_scope(beyond)}.",
            hint=f"Choose from {format_scope(caller.scopes)}.",
        )
    async with services.sessions.tenant(caller.tenant_id) as session:
        row = await members.add_member(
            session,
            caller.tenant_id,
            issuer=provider.config.issuer,
            claim=data.claim,
            value=data.value,
            scopes=data.scopes,
            now=services.now(),
        )
        await services.record(
            session,
            request,
            caller,
            "member.create",
            f"member:{row.id}",
            claim=row.claim,
            value=row.value,
            scopes=row.scopes,
        )
        shown = _out(row)
    return Response(shown, status_code=201, headers={**_NO_STORE, "location": f"/api/v1/members/{shown.id}"})


@get("/", summary="List the members", guards=[requires(CLIENTS_READ)])
async def list_members(
    request: AnyRequest, services: Services, limit: Limit = None, cursor: Cursor = None
) -> Response[MemberPage]:
    """Oldest first."""
    caller, ask = principal_of(request), page_ask(limit, cursor)
    async with services.sessions.tenant(caller.tenant_id) as session:
        page = await members.list_members(session, caller.tenant_id, ask)
    return Response(MemberPage([_out(row) for row in page.items], page.next_cursor), headers=_NO_STORE)


@get("/{member_id:uuid}", summary="Read a member", guards=[requires(CLIENTS_READ)])
async def read_member(member_id: FromPath[UUID], request: AnyRequest, services: Services) -> Response[MemberOut]:
    """Who is meant, and what they may do."""
    caller = principal_of(request)
    async with services.sessions.tenant(caller.tenant_id) as session:
        row = await members.get_member(session, caller.tenant_id, member_id)
    return Response(_out(row), headers=_NO_STORE)


@delete("/{member_id:uuid}", summary="Remove a member", guards=[requires(CLIENTS_WRITE)])
async def remove_member(member_id: FromPath[UUID], request: AnyRequest, services: Services) -> None:
    """Sessions that stand on it are refused at once."""
    caller = _owner(request)
    async with services.sessions.tenant(caller.tenant_id) as session:
        row = await members.delete_member(session, caller.tenant_id, member_id, now=services.now())
        await services.record(
            session, request, caller, "member.delete", f"member:{member_id}", claim=row.claim, value=row.value
        )


@get("/", summary="List the sessions")
async def list_sessions(
    request: AnyRequest, services: Services, limit: Limit = None, cursor: Cursor = None
) -> Response[SessionPage]:
    """The tenant's browsers that are signed in, and links not used yet; an operator sees the operators' own."""
    caller, ask = _overseer(request, CLIENTS_READ), page_ask(limit, cursor)
    async with services.sessions.tenant(caller.tenant_id) as session:
        page = await people.list_sessions(session, caller.tenant_id, ask, now=services.clock())
    return Response(SessionPage([_session(row) for row in page.items], page.next_cursor), headers=_NO_STORE)


@delete("/{session_id:uuid}", summary="End a session")
async def end_session(session_id: FromPath[UUID], request: AnyRequest, services: Services) -> None:
    """The browser is signed out with its next request; a link does not work any more."""
    caller = _overseer(request, CLIENTS_WRITE)
    async with services.sessions.tenant(caller.tenant_id) as session:
        row = await people.end_session(session, caller.tenant_id, session_id)
        await services.record(
            session, request, caller, f"{row.kind}.revoke", f"person:{row.subject}", id=str(session_id)
        )


def member_router() -> Router:
    """The routes of members."""
    return Router(
        path="/members", route_handlers=[add_member, list_members, read_member, remove_member], tags=["people"]
    )


def session_router() -> Router:
    """The routes of sessions."""
    return Router(path="/sessions", route_handlers=[list_sessions, end_session], tags=["people"])


def _owner(request: AnyRequest) -> Principal:
    caller = principal_of(request)
    if caller.actors or caller.details:
        raise NotPermitted(
            "A narrowed or exchanged token cannot say who belongs to the tenant.",
            hint="Use a token that the client got for itself, without authorization_details.",
        )
    return caller


def _overseer(request: AnyRequest, scope: str) -> Principal:
    caller = _owner(request)
    if not caller.may(scope) and not caller.is_operator:
        requires(scope)(request, request.route_handler)
    return caller


def _provider(services: AuthServices) -> RelyingParty:
    if services.people is None:
        raise Conflict(
            "This installation has no OpenID provider to sign people in with.",
            hint="The operators set LLM_PROXY_OIDC_ISSUER and LLM_PROXY_OIDC_CLIENT_ID; a link by "
            "`llm-proxy sign-in` works without.",
        )
    return services.people


def _out(row: Member) -> MemberOut:
    return MemberOut(
        id=row.id, issuer=row.issuer, claim=row.claim, value=row.value, scopes=row.scopes, created_at=row.created_at
    )


def _session(row: WebSession) -> SessionOut:
    return SessionOut(
        id=row.id,
        kind=row.kind,
        subject=row.subject,
        client_id=row.client_id,
        scopes=row.scopes,
        created_at=row.created_at,
        last_used_at=row.last_used_at,
        expires_at=row.expires_at,
    )
