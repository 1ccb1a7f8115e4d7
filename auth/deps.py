"""What the routes of auth work with, passed in by the gateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from litestar import Request
from litestar.di import NamedDependency
from litestar.params import FromQuery
from sqlalchemy.ext.asyncio import AsyncSession

from auth.audit import Event, Trail
from auth.certificates import ClientCertificate
from auth.client_secrets import Peppers
from auth.idempotency import InMemoryRepeats, Repeats
from auth.principal import Principal
from auth.relying_party import RelyingParty
from auth.server import OAuthServer, ServerConfig
from auth.signing_keys import SigningKeys
from auth.storage import Sessions
from auth.throttle import Throttle
from auth.tokens import Verifier

AnyRequest = Request[Any, Any, Any]
Limit = FromQuery[int | None]
Cursor = FromQuery[str | None]


def no_certificate(_: AnyRequest) -> ClientCertificate | None:
    """Stand in where no certificates reach the gateway."""
    return None


@dataclass(frozen=True, slots=True)
class AuthServices:
    """The parts; `clock` is Unix seconds, `certificate_of` tells the caller's TLS certificate by trusted hops.

    `people` signs people in at the installation's OpenID provider, None without one.
    """

    config: ServerConfig
    server: OAuthServer
    sessions: Sessions
    keys: SigningKeys
    verifier: Verifier
    peppers: Peppers
    trail: Trail
    clock: Callable[[], float]
    certificate_of: Callable[[AnyRequest], ClientCertificate | None] = no_certificate
    repeats: Repeats = field(default_factory=InMemoryRepeats)
    people: RelyingParty | None = None
    throttle: Throttle = field(default_factory=Throttle)

    def now(self) -> datetime:
        """Return the time with its zone."""
        return datetime.fromtimestamp(self.clock(), UTC)

    async def record(
        self,
        session: AsyncSession,
        request: AnyRequest,
        caller: Principal,
        action: str,
        subject: str,
        **detail: Any,
    ) -> None:
        """Append what `caller` did to its tenant's trail, in the session's transaction."""
        about: Mapping[str, Any] = {name: value for name, value in detail.items() if value is not None}
        await self.trail.append(
            session,
            Event(
                tenant_id=caller.tenant_id,
                at=self.now(),
                actor=f"person:{caller.subject}" if caller.token_id.startswith("session:") else caller.client_id,
                action=action,
                subject=subject,
                address=request.client.host if request.client else None,
                request_id=request_id_of(request) or None,
                detail=about,
            ),
        )


Services = NamedDependency[AuthServices]
"""The type of the routes' `services` argument."""


def request_id_of(request: AnyRequest) -> str:
    """Return the id that the outer layer gave this request, "" without one."""
    return str(request.scope.get("state", {}).get("request_id", ""))
