"""/api/v1/sources: drivers with admin credentials that make new keys.

A source is made and deleted, never changed: its credential must not follow a URL that it was not given for.
"""

from __future__ import annotations

from uuid import UUID

import msgspec
from litestar import Response, Router, delete, get, post
from litestar.params import FromPath, JSONBody
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from auth.errors import NotFound
from auth.guards import requires
from auth.metadata import JWKS_PATH
from auth.paging import cut_page, page_ask
from auth.scopes import KEYS_READ, KEYS_ROTATE
from auth.secret import Secret
from tenants import audit
from tenants.api.call import Caller, Cursor, Limit, once, reply
from tenants.api.services import Services, TenantServices
from tenants.catalogue import Catalogue
from tenants.checks import convert_checked, refuse
from tenants.custody import source_context
from tenants.federation import FederatedSettings, audience_of, subject_of
from tenants.keyshape import key_problem
from tenants.models import KeySource, new_id
from tenants.names import NAME_RULE, is_name
from tenants.schemas import SourceIn, SourceOut, SourcePage, TrustOut
from tenants.sources.registry import KEYLESS, NEEDS_CREDENTIAL, OWN_CREDENTIAL, SETTINGS, settings_refusal
from tenants.store.rotations import forget_source, source_of
from tenants.store.violations import conflicts


def source_problems(data: SourceIn, catalogue: Catalogue) -> list[tuple[str, str]]:
    """Check a new source; every URL in its settings passes the guard of base URLs."""
    problems = [] if is_name(data.name) else [("/name", NAME_RULE)]
    if data.driver not in SETTINGS:
        return [*problems, ("/driver", f"is not known; use one of {', '.join(sorted(SETTINGS))}")]
    settings = convert_checked(data.config, SETTINGS[data.driver], "/config")
    for member, value in msgspec.structs.asdict(settings).items():
        if (member == "url" or member.endswith("_url")) and value is not None:
            problem = catalogue.base_urls.check(value)
            if problem is not None:
                problems.append((f"/config/{member}", problem))
    if data.credential is None:
        if data.driver in NEEDS_CREDENTIAL:
            problems.append(("/credential", f"is needed by {data.driver} sources"))
    elif data.driver not in OWN_CREDENTIAL and (sentence := key_problem(data.credential)) is not None:
        problems.append(("/credential", sentence))
    if not problems:
        credential = None if data.credential is None else Secret(data.credential)
        refusal = settings_refusal(data.driver, data.config, credential)
        if refusal is not None:
            problems.append(refusal)
    return problems


@post("/", summary="Create a source of keys", guards=[requires(KEYS_ROTATE)])
async def create_source(data: JSONBody[SourceIn], call: Caller, services: Services) -> Response[SourceOut]:
    """The credential is sealed like a provider key and never shown."""
    refuse(source_problems(data, services.catalogue))
    now = services.now()
    row = KeySource(id=new_id(), tenant_id=call.tenant_id, name=data.name, driver=data.driver, config=data.config)
    if data.credential is not None:
        sealed = await services.sealer.seal(
            call.tenant_id, source_context(row.id, row.driver), data.credential.encode()
        )
        row.data_key_id, row.sealed = sealed.data_key_id, sealed.blob

    async def work(session: AsyncSession) -> SourceOut:
        async with conflicts():
            session.add(row)
            await session.flush()
        await session.refresh(row)
        detail = {"name": row.name, "driver": row.driver}
        subject = f"source:{row.id}"
        await audit.record(session, call.tenant_id, call.actor, "source.create", subject, at=now, detail=detail)
        return _shown(row, services)

    return await once(
        call,
        services.sessions.tenant(call.tenant_id),
        SourceOut,
        work,
        at=now,
        location=lambda body: f"/api/v1/sources/{body.id}",
    )


@get("/", summary="List the sources", guards=[requires(KEYS_READ)])
async def list_sources(
    call: Caller, services: Services, limit: Limit = None, cursor: Cursor = None
) -> Response[SourcePage]:
    """In order of creation."""
    ask = page_ask(limit, cursor)
    query = select(KeySource).where(col(KeySource.tenant_id) == call.tenant_id).order_by(col(KeySource.id))
    if ask.after is not None:
        query = query.where(col(KeySource.id) > ask.after)
    async with services.sessions.tenant(call.tenant_id) as session:
        rows = (await session.execute(query.limit(ask.fetch))).scalars().all()
    page = cut_page(rows, ask, key=lambda row: row.id)
    return reply(SourcePage(items=[_shown(row, services) for row in page.items], next_cursor=page.next_cursor))


@get("/{source_id:uuid}", summary="Read a source", guards=[requires(KEYS_READ)])
async def read_source(source_id: FromPath[UUID], call: Caller, services: Services) -> Response[SourceOut]:
    """Without its credential."""
    async with services.sessions.tenant(call.tenant_id) as session:
        row = await source_of(session, call.tenant_id, source_id)
    if row is None:
        raise NotFound("The source does not exist.", hint="List the sources: GET /api/v1/sources.")
    return reply(_shown(row, services))


@delete("/{source_id:uuid}", summary="Delete a source", guards=[requires(KEYS_ROTATE)])
async def delete_source(source_id: FromPath[UUID], call: Caller, services: Services) -> None:
    """Refused while keys take their versions from it. What it made before stays at the provider: revoke it first."""
    now = services.now()
    async with services.sessions.tenant(call.tenant_id) as session:
        row = await source_of(session, call.tenant_id, source_id, for_change=True)
        if row is None:
            raise NotFound("The source does not exist.", hint="List the sources: GET /api/v1/sources.")
        await forget_source(session, row)
        async with conflicts():
            await session.delete(row)
            await session.flush()
        subject = f"source:{source_id}"
        detail = {"name": row.name}
        await audit.record(session, call.tenant_id, call.actor, "source.delete", subject, at=now, detail=detail)


def _shown(row: KeySource, services: TenantServices) -> SourceOut:
    return SourceOut(
        id=row.id,
        name=row.name,
        driver=row.driver,
        config=row.config,
        has_credential=row.sealed is not None,
        trust=_trust(row, services.issuer) if row.driver in KEYLESS else None,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _trust(row: KeySource, issuer: str) -> TrustOut:
    settings = msgspec.convert(row.config, FederatedSettings)
    return TrustOut(
        issuer=issuer,
        jwks_uri=issuer.rstrip("/") + JWKS_PATH,
        subject=subject_of(row.tenant_id, row.id),
        audience=audience_of(settings),
    )


def router() -> Router:
    """The router."""
    return Router(
        path="/sources", route_handlers=[create_source, list_sources, read_source, delete_source], tags=["rotation"]
    )
