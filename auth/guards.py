"""Litestar guards: which scope a route needs, and the verified caller behind a request."""

from __future__ import annotations

from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard

from auth.errors import Fault, NotAuthenticated, NotPermitted
from auth.principal import Principal
from auth.scopes import SCOPES, format_scope


class InsufficientScope(NotPermitted):
    """The token lacks the scope that the route needs (RFC 6750 section 3.1)."""

    code = "insufficient_scope"

    def __init__(self, public: str, *, hint: str, scope: str) -> None:
        super().__init__(public, hint=hint)
        self.challenge = f'Bearer error="insufficient_scope", scope="{scope}"'


def principal_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Principal:
    """Return the verified caller; raises the fault that kept it from being verified."""
    found = connection.scope.get("auth")
    if isinstance(found, Principal):
        return found
    if isinstance(found, Fault):
        raise found
    raise NotAuthenticated("The request carries no access token.", hint="Send 'Authorization: Bearer <token>'.")


def requires(*scopes: str) -> Guard:
    """Return a guard that lets callers through who hold every one of `scopes`; naming an unknown scope is a bug."""
    if unknown := set(scopes) - set(SCOPES):
        raise ValueError(f"no such scope: {unknown}")
    needed = frozenset(scopes)

    def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        principal = principal_of(connection)
        if missing := needed - principal.scopes:
            names = format_scope(missing)
            raise InsufficientScope(
                f"The access token lacks the scope {names}.",
                hint=f"Use a client that is registered with {names}, and request it at the token endpoint.",
                scope=format_scope(needed),
            )

    return guard
