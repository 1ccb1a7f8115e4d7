"""Signing in with the OpenID provider: the page, the way there, and the way back."""

from __future__ import annotations

import logging
import math

from litestar import Response, get
from litestar.params import FromQuery

from auth import members, people
from auth.audit import Event
from auth.deps import AnyRequest, AuthServices, Services, request_id_of
from auth.errors import Unavailable
from auth.identity import Person, SignInRefused, safe_place
from auth.members import Role
from auth.oidc_pages import away_page, choose_page, failed_page, sign_in_page, signed_out_page, slow_page, stranger_page
from auth.page_answers import ATTEMPT, ended_attempt, origin_of, page, see_other
from auth.principal import PLATFORM_TENANT_ID
from auth.relying_party import ATTEMPT_S, RelyingParty, Returned
from auth.replay import first_use
from auth.throttle import SIGN_INS_PER_ADDRESS

log = logging.getLogger(__name__)


@get("/sign-in", include_in_schema=False, sync_to_thread=False)
def sign_in_form(services: Services, after: FromQuery[str] = "/me") -> Response[str]:
    """Show how to sign in."""
    party = services.people
    return page(sign_in_page(None if party is None else party.config.issuer, safe_place(after)))


@get("/signed-out", include_in_schema=False, sync_to_thread=False)
def signed_out(services: Services) -> Response[str]:
    """Say that it is done, and where the provider's own session ends."""
    party = services.people
    return page(signed_out_page(None if party is None else party.end_session_endpoint(), party is not None))


@get("/sign-in/oidc", include_in_schema=False)
async def begin(
    request: AnyRequest, services: Services, tenant: FromQuery[str] = "", after: FromQuery[str] = "/me"
) -> Response[str]:
    """Send the browser to the provider; whoever makes it come here only signs its own person in."""
    party = services.people
    if party is None:
        return page(sign_in_page(None, "/me"), status=404)
    if (wait_s := _too_fast(request, services)) > 0:
        return page(slow_page(math.ceil(wait_s)), status=429)
    try:
        place, attempt = await party.begin(after=after, tenant=tenant, now=services.clock())
    except Unavailable as away:
        log.warning("sign-in: the provider is away", extra={"reason": away.debug, "request_id": request_id_of(request)})
        return page(away_page(), status=503)
    return see_other(place, people.cookie_header(origin_of(services), attempt, max_age_s=ATTEMPT_S, kind=ATTEMPT))


@get("/sign-in/callback", include_in_schema=False)
async def callback(request: AnyRequest, services: Services) -> Response[str]:
    """Take the provider's answer and open a session, always under a new cookie (session fixation, CWE-384)."""
    party, origin = services.people, origin_of(services)
    if party is None:
        return page(sign_in_page(None, "/me"), status=404)
    if (wait_s := _too_fast(request, services)) > 0:
        return page(slow_page(math.ceil(wait_s)), status=429)
    drop = ended_attempt(origin)
    try:
        returned, person = await _person(request, services, party)
    except SignInRefused as refused:
        log.info("sign-in refused", extra={"reason": refused.debug, "request_id": request_id_of(request)})
        await _record_refusal(request, services, "nobody", refused.debug or refused.public)
        return page(failed_page(refused.public), status=400, drop=drop)
    except Unavailable as away:
        log.warning("sign-in: the provider is away", extra={"reason": away.debug, "request_id": request_id_of(request)})
        return page(away_page(), status=503, drop=drop)
    attempt = returned.attempt
    async with services.sessions.platform() as session:
        roles = await members.roles_of(session, person, party.config.operators, tenant=attempt.tenant)
    if not roles:
        await _record_refusal(request, services, f"person:{person.label}", "no member anywhere", sub=person.subject)
        return page(stranger_page(person.label, party.config.issuer, attempt.tenant), status=403, drop=drop)
    if len(roles) > 1:
        return page(choose_page([role.tenant_slug for role in roles], attempt.after), drop=drop)
    return await _open(request, services, person, roles[0], attempt.after)


async def _person(request: AnyRequest, services: AuthServices, party: RelyingParty) -> tuple[Returned, Person]:
    query = request.scope.get("query_string", b"").decode("latin-1")
    cookie = request.cookies.get(people.cookie_name(origin_of(services), ATTEMPT), "")
    returned = await party.take_answer(query, cookie, now=services.clock())
    attempt = returned.attempt
    async with services.sessions.platform() as session:
        # The state is good for one answer, in whichever process it arrives.
        fresh = await first_use(
            session,
            PLATFORM_TENANT_ID,
            "sign-in",
            party.config.issuer,
            attempt.state,
            expires_at=attempt.started_at + ATTEMPT_S,
        )
    if not fresh:
        raise SignInRefused("This answer of the provider was used before.", debug="state used twice")

    async def enough(person: Person) -> bool:
        async with services.sessions.platform() as session:
            return bool(await members.roles_of(session, person, party.config.operators, tenant=attempt.tenant))

    return returned, await party.identify(returned, now=services.clock(), enough=enough)


async def _open(request: AnyRequest, services: AuthServices, person: Person, role: Role, after: str) -> Response[str]:
    origin = origin_of(services)
    held = request.cookies.get(people.cookie_name(origin))
    async with services.sessions.platform() as session:
        if held:
            await people.end_presented(session, held)
        opened = await people.sign_in_as(session, role, person.label, now=services.clock())
        await services.record(
            session,
            request,
            opened.caller,
            "person.sign_in",
            f"person:{person.label}",
            issuer=person.issuer,
            sub=person.subject,
            scopes=sorted(role.scopes),
        )
    cookie = people.cookie_header(origin, opened.cookie.reveal(), max_age_s=people.SESSION_S)
    return see_other(after, cookie, drop=ended_attempt(origin))


def _too_fast(request: AnyRequest, services: AuthServices) -> float:
    """Count one step of signing in against the address, and tell how long it has to wait: each makes us call out."""
    key = ("sign-in", request.client.host if request.client else "")
    now, throttle = services.clock(), services.throttle
    wait_s = throttle.wait_s(key, SIGN_INS_PER_ADDRESS, now=now)
    if wait_s <= 0:
        throttle.count(key, SIGN_INS_PER_ADDRESS, now=now)
    return wait_s


async def _record_refusal(request: AnyRequest, services: AuthServices, actor: str, reason: str, **detail: str) -> None:
    async with services.sessions.tenant(PLATFORM_TENANT_ID) as session:
        await services.trail.append(
            session,
            Event(
                tenant_id=PLATFORM_TENANT_ID,
                at=services.now(),
                actor=actor,
                action="person.sign_in_refused",
                subject="sign-in",
                address=request.client.host if request.client else None,
                request_id=request_id_of(request) or None,
                detail={"reason": reason[:300], **detail},
            ),
        )


HANDLERS = (sign_in_form, signed_out, begin, callback)
