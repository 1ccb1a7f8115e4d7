"""Signing in and out in a browser, and the management route that makes one-time links."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

from litestar import Response, Router, get, post
from litestar.di import Provide
from litestar.params import FromPath, JSONBody

from auth import people
from auth.deps import AnyRequest, AuthServices, Services
from auth.errors import Invalid, NotPermitted
from auth.guards import principal_of
from auth.oidc_routes import HANDLERS
from auth.page_answers import origin_of, page, see_other
from auth.people_pages import confirm_page, foreign_page, me_page, nobody_page, refused_page
from auth.principal import Principal
from auth.schemas import LinkIn, LinkOut
from auth.scopes import INFERENCE, format_scope

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}")
MAX_FORM_BYTES = 4096


@post("/", summary="Make a one-time sign-in link", status_code=201)
async def make_link(request: AnyRequest, services: Services, data: JSONBody[LinkIn | None] = None) -> Response[LinkOut]:
    """Whoever opens it within five minutes is signed in to the web pages with the caller's scopes, or fewer."""
    caller, wanted = principal_of(request), data or LinkIn()
    if caller.actors or caller.details or caller.jkt or caller.x5t_s256:
        raise NotPermitted(
            "A narrowed, exchanged or bound token cannot sign people in.",
            hint="Use a token that the client got for itself, without authorization_details, DPoP and certificate.",
        )
    if not _LABEL.fullmatch(wanted.subject):
        raise Invalid(
            "The link is not valid: subject needs 1 to 128 of letters, digits and ._:@+-.",
            hint="Name the person, as the audit log is to show it.",
            errors=(("/subject", "needs 1 to 128 of letters, digits and ._:@+-"),),
        )
    scopes = caller.scopes if wanted.scopes is None else frozenset(wanted.scopes)
    if beyond := scopes - caller.scopes:
        raise NotPermitted(
            f"The link would hold scopes that this token lacks: {format_scope(beyond)}.",
            hint=f"Choose from {format_scope(caller.scopes)}.",
        )
    opens = scopes - {INFERENCE}
    if not opens:
        raise NotPermitted(
            "The link would open no page: its only scope is inference, or it has none.",
            hint="Use a token with scopes of the management API, such as pools:read.",
        )
    async with services.sessions.tenant(caller.tenant_id) as session:
        secret, end = await people.make_link(
            session, caller, subject=wanted.subject, scopes=opens, now=services.clock()
        )
        subject = f"person:{wanted.subject}"
        await services.record(session, request, caller, "sign_in_link.create", subject, scopes=sorted(opens))
    url = f"{services.config.issuer.rstrip('/')}/sign-in/{secret.reveal()}"
    return Response(LinkOut(url, end), status_code=201, headers={"cache-control": "no-store"})


@get("/sign-in/{token:str}", include_in_schema=False, sync_to_thread=False)
def confirm(token: FromPath[str]) -> Response[str]:
    """Show the button that uses the link; nothing is looked up yet."""
    return page(confirm_page(token))


@post("/sign-in", include_in_schema=False)
async def sign_in(request: AnyRequest, services: Services) -> Response[str]:
    """Use a link and open a session."""
    if not people.is_same_origin(request.headers, origin_of(services)):
        return page(foreign_page(), status=403)
    presented = (await _fields(request)).get("token", "")
    async with services.sessions.platform() as session:
        opened = await people.redeem(session, presented, now=services.clock())
        if opened is None or services.verifier.is_revoked(opened.caller):
            return page(refused_page(), status=400)
        await services.record(session, request, opened.caller, "person.sign_in", f"person:{opened.caller.subject}")
    cookie = people.cookie_header(origin_of(services), opened.cookie.reveal(), max_age_s=people.SESSION_S)
    return see_other("/me", cookie)


@get("/me", include_in_schema=False)
async def me(request: AnyRequest, services: Services) -> Response[str]:
    """Say who is signed in."""
    caller = await person_of(request, services)
    return page(nobody_page(), status=401) if caller is None else page(me_page(caller))


@post("/sign-out", include_in_schema=False)
async def sign_out(request: AnyRequest, services: Services) -> Response[str]:
    """End this session, or all of this person's."""
    if not people.is_same_origin(request.headers, origin_of(services)):
        return page(foreign_page(), status=403)
    caller = await person_of(request, services)
    if caller is not None:
        everywhere = "everywhere" in await _fields(request)
        async with services.sessions.tenant(caller.tenant_id) as session:
            await people.end(session, caller, everywhere=everywhere)
            subject = f"person:{caller.subject}"
            await services.record(session, request, caller, "person.sign_out", subject, everywhere=everywhere)
    return see_other("/signed-out", people.cookie_header(origin_of(services), "", max_age_s=0))


async def person_of(request: AnyRequest, services: AuthServices) -> Principal | None:
    """Return the person whose session this browser has, None without a good one."""
    cookie = request.cookies.get(people.cookie_name(origin_of(services)))
    if not cookie:
        return None
    async with services.sessions.platform() as session:
        found = await people.find(session, cookie, now=services.clock())
    if found is None or services.verifier.is_revoked(found):
        return None
    if found.client_id.startswith("operator-") and not _is_still_operator(found, services):
        return None
    return found


def _is_still_operator(caller: Principal, services: AuthServices) -> bool:
    """An operator's session stands on a rule of the configuration, and ends when that rule is taken out."""
    party = services.people
    return party is not None and any(caller.client_id == rule.name for rule in party.config.operators)


def link_router() -> Router:
    """The management route."""
    return Router(path="/sign-in-links", route_handlers=[make_link], tags=["people"])


def make_people_router(services: AuthServices) -> Router:
    """The pages; they know people by their cookie and nobody by a token."""
    return Router(
        path="/",
        route_handlers=[confirm, sign_in, me, sign_out, *HANDLERS],
        dependencies={"services": Provide(lambda: services, sync_to_thread=False)},
        request_max_body_size=MAX_FORM_BYTES,
    )


async def _fields(request: AnyRequest) -> dict[str, str]:
    text = (await request.body()).decode("utf-8", "replace")
    try:
        return {name: values[0] for name, values in parse_qs(text, max_num_fields=8).items()}
    except ValueError:
        return {}
