"""Idempotency-Key in the management API of auth: a POST that is sent twice makes one thing, and shows its secret once.

`tenants` keeps the answers; draft-ietf-httpapi-idempotency-key-header.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from uuid import UUID

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from auth.errors import Conflict
from auth.principal import Principal

if TYPE_CHECKING:
    from auth.deps import AnyRequest, AuthServices

T = TypeVar("T", bound=msgspec.Struct)


class Repeats(Protocol):
    """The answers that were given, by tenant and key; both calls belong to the transaction of the work itself."""

    async def claim(
        self, session: AsyncSession, tenant_id: UUID, key: str, request_hash: bytes, *, at: datetime
    ) -> dict[str, Any] | None:
        """Take `key`: None to go on, or the first answer's body; `Conflict` if it was another request's."""

    async def settle(self, session: AsyncSession, tenant_id: UUID, key: str, body: dict[str, Any]) -> None:
        """Keep the answer of a claimed key: never with a secret in it."""


class InMemoryRepeats:
    """The twin for tests."""

    def __init__(self) -> None:
        self._kept: dict[tuple[UUID, str], tuple[bytes, dict[str, Any] | None]] = {}

    async def claim(
        self,
        session: AsyncSession,  # noqa: ARG002 - there is no transaction here
        tenant_id: UUID,
        key: str,
        request_hash: bytes,
        *,
        at: datetime,  # noqa: ARG002 - nothing is forgotten
    ) -> dict[str, Any] | None:
        """Take `key`."""
        known_hash, body = self._kept.setdefault((tenant_id, key), (request_hash, None))
        if known_hash != request_hash:
            raise Conflict("This Idempotency-Key was used for a different request.", hint="Use a new key.")
        return body

    async def settle(
        self,
        session: AsyncSession,  # noqa: ARG002 - there is no transaction here
        tenant_id: UUID,
        key: str,
        body: dict[str, Any],
    ) -> None:
        """Keep the answer."""
        self._kept[tenant_id, key] = (self._kept[tenant_id, key][0], body)


async def once(
    services: AuthServices,
    session: AsyncSession,
    request: AnyRequest,
    caller: Principal,
    *,
    shape: type[T],
    work: Callable[[], Awaitable[T]],
    hidden: str,
) -> tuple[T, bool]:
    """Do `work` in `session`, once for each Idempotency-Key; return its answer and whether it is a repeated one.

    `hidden` is the answer's member that a repeat does not show again, nor anybody stores.
    """
    key = request.headers.get("idempotency-key")
    if key is None:
        return await work(), False
    digest = hashlib.sha256()
    for part in (request.method, request.url.path, caller.client_id):
        digest.update(part.encode() + b"\0")
    digest.update(await request.body())
    found = await services.repeats.claim(session, caller.tenant_id, key, digest.digest(), at=services.now())
    if found is not None:
        return msgspec.convert(found, shape), True
    made = await work()
    await services.repeats.settle(session, caller.tenant_id, key, {**msgspec.to_builtins(made), hidden: None})
    return made, False
