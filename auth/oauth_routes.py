"""The OAuth endpoints over HTTP: raw bodies in, OAuth's own answers out."""

from __future__ import annotations

import msgspec
from litestar import Response, Router, get, post
from litestar.di import Provide
from litestar.params import FromPath

from auth.deps import AnyRequest, AuthServices, Services, request_id_of
from auth.form import MAX_BODY_BYTES, Call
from auth.grant_server import Answer
from auth.metadata import (
    DISCOVERY_PATH,
    INTROSPECTION_PATH,
    JWKS_PATH,
    REVOCATION_PATH,
    TENANT_PREFIX,
    TOKEN_PATH,
    WELL_KNOWN_PATH,
)

Tenant = FromPath[str | None]
"""The slug in a tenant's own endpoints."""

_TENANT = TENANT_PREFIX + "{tenant:str}"


@post([TOKEN_PATH, _TENANT + TOKEN_PATH], status_code=200, include_in_schema=False)
async def token(request: AnyRequest, services: Services, tenant: Tenant = None) -> Response[bytes]:
    """Issue access tokens (RFC 6749 section 3.2)."""
    return _response(await services.server.token(await _call(request, services), tenant))


@post([INTROSPECTION_PATH, _TENANT + INTROSPECTION_PATH], status_code=200, include_in_schema=False)
async def introspect(request: AnyRequest, services: Services, tenant: Tenant = None) -> Response[bytes]:
    """Say whether a token is good and what it may do (RFC 7662)."""
    return _response(await services.server.introspect(await _call(request, services), tenant))


@post([REVOCATION_PATH, _TENANT + REVOCATION_PATH], status_code=200, include_in_schema=False)
async def revoke(request: AnyRequest, services: Services, tenant: Tenant = None) -> Response[bytes]:
    """Make a token useless everywhere (RFC 7009)."""
    return _response(await services.server.revoke(await _call(request, services), tenant))


@get([JWKS_PATH, _TENANT + JWKS_PATH], include_in_schema=False)
async def jwks(services: Services, tenant: Tenant = None) -> Response[bytes]:  # noqa: ARG001 - one key set for all
    """Publish the keys that tokens are signed with (RFC 7517)."""
    return _response(services.server.jwks())


@get([WELL_KNOWN_PATH, WELL_KNOWN_PATH + _TENANT], include_in_schema=False)
async def well_known(services: Services, tenant: Tenant = None) -> Response[bytes]:
    """Describe the server (RFC 8414); a tenant's issuer has its path after the well-known part (section 3.1)."""
    return _response(services.server.metadata(tenant))


@get(DISCOVERY_PATH, include_in_schema=False)
async def openid_discovery(services: Services) -> Response[bytes]:
    """Tell providers that trust this issuer where its keys are."""
    return _response(services.server.discovery())


def make_oauth_router(services: AuthServices) -> Router:
    """Return the public endpoints; they authenticate clients themselves."""
    return Router(
        path="/",
        route_handlers=[token, introspect, revoke, jwks, well_known, openid_discovery],
        dependencies={"services": Provide(lambda: services, sync_to_thread=False)},
        request_max_body_size=MAX_BODY_BYTES + 1,
        security=[{}],
    )


async def _call(request: AnyRequest, services: AuthServices) -> Call:
    return Call(
        method=request.method,
        path=request.url.path,
        query=request.scope.get("query_string", b""),
        headers=tuple(
            (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in request.scope["headers"]
        ),
        body=await request.body(),
        address=request.client.host if request.client else "",
        request_id=request_id_of(request),
        certificate=services.certificate_of(request),
    )


def _response(answer: Answer) -> Response[bytes]:
    body = answer.body.encode() if isinstance(answer.body, str) else msgspec.json.encode(answer.body)
    headers = {name: value for name, value in answer.headers if name != "Content-Type"}
    kind = next((value for name, value in answer.headers if name == "Content-Type"), "application/json")
    return Response(body, status_code=answer.status, media_type=kind, headers=headers)
