"""/api/v1/signing-keys: the operators' command to rotate the issuer's signing key."""

from __future__ import annotations

from litestar import Router, post
from litestar.params import JSONBody

from auth.deps import AnyRequest, Services
from auth.errors import NotPermitted
from auth.guards import principal_of, requires
from auth.schemas import RotationIn, RotationOut
from auth.scopes import PLATFORM


@post("/rotate", summary="Rotate the signing key", status_code=200, guards=[requires(PLATFORM)])
async def rotate(request: AnyRequest, services: Services, data: JSONBody[RotationIn | None] = None) -> RotationOut:
    """The old key stays published until its tokens have expired, unless it is compromised."""
    caller, wanted = principal_of(request), data or RotationIn()
    if not caller.is_operator:
        raise NotPermitted("Only operators of the installation rotate its keys.")
    kid = await services.keys.rotate(wanted.alg, now=services.clock(), compromised=wanted.compromised)
    async with services.sessions.tenant(caller.tenant_id) as session:
        await services.record(
            session, request, caller, "signing_key.rotate", f"signing_key:{kid}", compromised=wanted.compromised
        )
    return RotationOut(kid, services.keys.signer(wanted.alg).alg)


def key_router() -> Router:
    """The router."""
    return Router(path="/signing-keys", route_handlers=[rotate], tags=["signing keys"])
