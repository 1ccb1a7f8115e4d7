"""The routers of auth: the OAuth endpoints, and the management API of clients, tokens and signing keys."""

from __future__ import annotations

from litestar import Router
from litestar.di import Provide

from auth.client_routes import client_router
from auth.deps import AuthServices
from auth.key_routes import key_router
from auth.member_routes import member_router, session_router
from auth.oauth_routes import make_oauth_router
from auth.people_routes import link_router, make_people_router
from auth.token_routes import token_router


def make_router(services: AuthServices, *, path: str = "/api/v1") -> Router:
    """Return the management routes; requests arrive with their caller in the scope (`auth.middleware`)."""
    return Router(
        path=path,
        route_handlers=[
            client_router(),
            token_router(),
            key_router(),
            link_router(),
            member_router(),
            session_router(),
        ],
        dependencies={"services": Provide(lambda: services, sync_to_thread=False)},
    )


def make_routers(services: AuthServices) -> list[Router]:
    """Return everything of auth that the control plane mounts."""
    return [
        make_oauth_router(services),
        make_people_router(services),
        make_router(services),
    ]
