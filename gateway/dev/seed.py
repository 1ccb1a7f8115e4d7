"""The demo tenant `acme`, made through the management API as an operator and a tenant would."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from auth.secret import Secret
from gateway.dev.home import DevHome, read_json, write_json
from gateway.http_client import ApiRefused, Credentials, ManagementClient
from gateway.operators import create_operator, create_tenant_client
from gateway.settings import Settings
from gateway.simulation.config import development_config

TENANT: Final = "acme"
POOL: Final = "main"
MODEL: Final = "gpt-4o-mini"
KEYS: Final = (("primary", 50, 3000), ("secondary", 30, 2000), ("tertiary", 20, 1000))
"""Name, weight, requests a minute: as the simulated provider's development configuration has them."""


def seed(settings: Settings, home: DevHome, base_url: str, provider_url: str) -> None:
    """Make what is missing of operator, tenant, client and pool, and bring what is there up to date. Blocking."""
    operator = _operator(settings, home, base_url)
    with ManagementClient(operator) as client:
        tenant = next((item for item in client.items("/api/v1/tenants") if item["slug"] == TENANT), None)
        made = None
        if tenant is None:
            tenant = client.request("POST", "/api/v1/tenants", {"slug": TENANT, "name": "Acme (demo)"}).data
            made = tenant["client"]
    credentials = _tenant_client(settings, home, base_url, UUID(tenant["id"]), made)
    with ManagementClient(credentials) as client:
        _pool(client, provider_url)
    write_json(
        home.profile,
        {
            "base_url": base_url,
            "token_url": f"{base_url}/oauth2/token",
            "client_id": credentials.client_id,
            "client_secret": credentials.client_secret.reveal(),
            "pool": POOL,
            "model": MODEL,
        },
    )


def _operator(settings: Settings, home: DevHome, base_url: str) -> Credentials:
    held = _working(read_json(home.operator), base_url)
    if held is None:
        made = asyncio.run(create_operator(settings, "development operator", now=datetime.now(UTC), may_act=True))
        held = Credentials(base_url, made.client_id, made.client_secret)
    write_json(home.operator, _profile(held))
    return held


def _tenant_client(
    settings: Settings, home: DevHome, base_url: str, tenant_id: UUID, made: Mapping[str, Any] | None
) -> Credentials:
    if made is not None:
        return Credentials(base_url, made["client_id"], Secret(made["client_secret"]))
    held = _working(read_json(home.profile), base_url)
    if held is not None:
        return held
    fresh = asyncio.run(create_tenant_client(settings, tenant_id, "development client", now=datetime.now(UTC)))
    return Credentials(base_url, fresh.client_id, fresh.client_secret)


def _working(profile: Mapping[str, Any] | None, base_url: str) -> Credentials | None:
    """Return the credentials of a profile file if the token endpoint still takes them."""
    if profile is None or "client_id" not in profile or "client_secret" not in profile:
        return None
    credentials = Credentials(base_url, profile["client_id"], Secret(profile["client_secret"]))
    with ManagementClient(credentials) as client:
        try:
            client.issue_token()
        except ApiRefused as refused:
            if refused.status in (400, 401):
                return None
            raise
    return credentials


def _profile(credentials: Credentials) -> dict[str, str]:
    return {
        "base_url": credentials.base_url,
        "client_id": credentials.client_id,
        "client_secret": credentials.client_secret.reveal(),
    }


def _pool(client: ManagementClient, provider_url: str) -> None:
    found = next((item for item in client.items("/api/v1/pools") if item["name"] == POOL), None)
    if found is None:
        providers = [
            {
                "name": name,
                "provider": "simulated",
                "api_key": f"sim-key-{name}",
                "base_url": provider_url,
                "weight": weight,
                "rate_limit": rpm,
                "models": list(development_config().models),
            }
            for name, weight, rpm in KEYS
        ]
        document = {"name": POOL, "providers": providers, "strategy": "weighted_round_robin", "failover": True}
        client.request("POST", "/api/v1/pools/import", document)
        return
    ours = {name for name, _, _ in KEYS}
    for key in client.items(f"/api/v1/pools/{found['id']}/keys"):
        moved = key["provider"] == "simulated" and key["name"] in ours and key["base_url"] != provider_url
        if moved:
            body = {"api_key": f"sim-key-{key['name']}", "base_url": provider_url}
            client.request("POST", f"/api/v1/keys/{key['id']}/rotate", body)
