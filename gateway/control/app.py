"""The control plane: one Litestar application made of every package's routers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from litestar import Litestar, MediaType, Request, Response, Router, get
from litestar.config.response_cache import CACHE_FOREVER
from litestar.datastructures import ResponseHeader
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, OAuthFlow, OAuthFlows, SecurityScheme
from litestar.serialization import decode_json, encode_json
from litestar.types import ControllerRouterHandler, Middleware

from auth.scopes import SCOPES
from gateway.control.docs_page import docs_page
from gateway.control.problem_responses import with_problems
from gateway.control.version import program_version
from gateway.problems import handle

MAX_BODY_BYTES: Final = 4 << 20
"""A management request is small; a pool file of 500 keys stays far below."""

_NO_SNIFF: Final = [
    ResponseHeader(name="x-content-type-options", value="nosniff"),
    ResponseHeader(name="referrer-policy", value="no-referrer"),
]
_PAGE_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"


@get("/docs", media_type=MediaType.HTML, include_in_schema=False, sync_to_thread=False, cache=CACHE_FOREVER)
def docs(request: Request[Any, Any, Any]) -> Response[str]:
    """Serve the documentation page."""
    page = docs_page(decode_json(_document(request)))
    return Response(page, media_type=MediaType.HTML, headers={"content-security-policy": _PAGE_POLICY})


@get("/api/v1/openapi.json", include_in_schema=False, sync_to_thread=False)
def openapi_document(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Serve the OpenAPI 3.1 document."""
    return Response(_document(request), media_type=MediaType.JSON)


def _document(request: Request[Any, Any, Any]) -> bytes:
    return encode_json(with_problems(request.app.openapi_schema.to_schema()))


def make_control(
    routers: Sequence[Router | ControllerRouterHandler], *, middleware: Sequence[Middleware] = ()
) -> Litestar:
    """Compose the application; what the routers need was given to them when they were made."""
    return Litestar(
        route_handlers=[*routers, openapi_document, docs],
        middleware=list(middleware),
        exception_handlers={Exception: handle},
        openapi_config=OpenAPIConfig(
            title="LLM Proxy management API",
            version=program_version(),
            description="Tenants, OAuth clients, pools and provider keys. Get a token at /oauth2/token and send it as "
            "`Authorization: Bearer …`. Errors are problem documents (RFC 9457) that say how to mend the request.",
            # Litestar answers below this path with pages of its own, its 404 too: kept away from the API's paths.
            path="/docs/schema",
            render_plugins=[JsonRenderPlugin(path="/openapi.json")],
            components=Components(
                security_schemes={
                    "oauth2": SecurityScheme(
                        type="oauth2",
                        flows=OAuthFlows(
                            client_credentials=OAuthFlow(
                                token_url="/oauth2/token",  # noqa: S106 - a path, no secret
                                scopes={name: scope.allows for name, scope in SCOPES.items()},
                            )
                        ),
                    )
                }
            ),
            security=[{"oauth2": []}],
        ),
        response_headers=_NO_SNIFF,
        request_max_body_size=MAX_BODY_BYTES,
        logging_config=None,
        debug=False,
    )
