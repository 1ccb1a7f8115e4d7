"""The management API of tenants, pools, keys, quotas and audit, to be mounted by the gateway."""

from __future__ import annotations

from litestar import Router
from litestar.di import Provide

from tenants.api import (
    audit_trail,
    custody,
    imports,
    keys,
    pool_rotation,
    pools,
    provisioning,
    quotas,
    rotation,
    rotation_preview,
    sources,
    tenants,
)
from tenants.api.call import provide_call
from tenants.api.services import TenantServices


def make_router(services: TenantServices, *, path: str = "/api/v1") -> Router:
    """Return the router; requests arrive with a verified `Principal` in their scope (`auth.middleware`)."""
    return Router(
        path=path,
        route_handlers=[
            tenants.router(),
            pools.router(),
            imports.router(),
            keys.router(),
            rotation.router(),
            rotation_preview.router(),
            pool_rotation.router(),
            provisioning.router(),
            sources.router(),
            quotas.router(),
            audit_trail.router(),
            *([custody.router()] if services.custody is not None else []),
        ],
        dependencies={
            "call": Provide(provide_call),
            "services": Provide(lambda: services, sync_to_thread=False),
        },
    )
