"""ASGI middleware of the control plane: leaves the verified caller, or the reason why there is none, in the scope."""

from __future__ import annotations

from collections.abc import Callable

from litestar.types import ASGIApp, Receive, Scope, Send

from auth.bearer import RequestAuthenticator


class AuthenticationMiddleware:
    """Puts `scope["auth"]`: the `Principal`, or the `Fault` that a guarded route answers with.

    It refuses nothing itself, so that public routes work with any header.
    """

    def __init__(self, app: ASGIApp, authenticator: RequestAuthenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Authenticate HTTP and WebSocket requests; the lifespan passes untouched."""
        if scope["type"] in {"http", "websocket"}:
            scope["auth"] = self._authenticator.caller(scope)
        await self._app(scope, receive, send)


def authentication(authenticator: RequestAuthenticator) -> Callable[[ASGIApp], ASGIApp]:
    """Return the middleware in the form that Litestar's `middleware=[…]` takes."""

    def wrap(app: ASGIApp) -> ASGIApp:
        return AuthenticationMiddleware(app, authenticator)

    return wrap
