"""One call of the management API: who calls, which conditions the headers set, and how it is answered."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, TypeVar
from uuid import UUID

import msgspec
from litestar import Request, Response
from litestar.di import NamedDependency
from litestar.params import HeaderParameter, QueryParameter
from sqlalchemy.ext.asyncio import AsyncSession

from auth.etag import etag
from auth.guards import principal_of
from auth.principal import Principal
from tenants.audit import Actor
from tenants.store import idempotency

T = TypeVar("T", bound=msgspec.Struct)

IfMatch = Annotated[str | None, HeaderParameter(name="if-match", description="The ETag that the change is meant for")]
Limit = Annotated[int | None, QueryParameter(description="How many items a page has: 1 to 200, default 50")]
Cursor = Annotated[str | None, QueryParameter(description="`next_cursor` of the page before")]


@dataclass(frozen=True, slots=True)
class Call:
    """The verified caller and what its request is recognised by."""

    principal: Principal
    actor: Actor
    idempotency_key: str | None
    request_hash: bytes

    @property
    def tenant_id(self) -> UUID:
        """The caller's tenant: the only one that its calls touch."""
        return self.principal.tenant_id


Caller = NamedDependency[Call]
"""The type of handlers' `call` parameters."""


async def provide_call(request: Request[Any, Any, Any]) -> Call:
    """Make the `call` argument of every handler."""
    key = request.headers.get("idempotency-key")
    digest = hashlib.sha256()
    if key is not None:
        for part in (request.method, request.url.path, ""):
            digest.update(part.encode() + b"\0")
        digest.update(await request.body())
    principal = principal_of(request)
    actor = Actor(
        client_id=principal.client_id,
        address=request.client.host if request.client else None,
        request_id=request.scope.get("state", {}).get("request_id"),
    )
    return Call(principal, actor, key, digest.digest())


async def once(
    call: Call,
    transaction: AbstractAsyncContextManager[AsyncSession],
    shape: type[T],
    work: Callable[[AsyncSession], Awaitable[T]],
    *,
    at: datetime,
    location: Callable[[T], str] | None = None,
    status: int = 201,
    shown_again: Callable[[T], T] = lambda body: body,
) -> Response[T]:
    """Do the work of a POST in `transaction`, once for each Idempotency-Key; a repeat gets the first answer again.

    `shown_again` makes the body that a repeat gets, and that is stored: without what is shown only once.
    """
    async with transaction as session:
        key = call.idempotency_key
        answer = None
        if key is not None:
            answer = await idempotency.claim(session, call.tenant_id, key, call.request_hash, at=at)
        if answer is not None:
            body, replayed = msgspec.convert(answer.body, shape), True
        else:
            body, replayed = await work(session), False
            if key is not None:
                stored = msgspec.to_builtins(shown_again(body))
                await idempotency.settle(session, call.tenant_id, key, idempotency.Answer(status, stored))
    response = reply(body, status=status)
    if location is not None:
        response.headers["location"] = location(body)
    if replayed:
        response.headers["idempotent-replayed"] = "true"
    return response


def reply(body: T, *, status: int = 200, version: int | None = None) -> Response[T]:
    """Answer with `body` and the ETag of its `version` (or the one given), never to be stored by caches."""
    headers = {"cache-control": "no-store"}
    version = getattr(body, "version", None) if version is None else version
    if isinstance(version, int):
        headers["etag"] = etag(version)
    return Response(body, status_code=status, headers=headers)
