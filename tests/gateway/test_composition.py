"""What a process loads, and that the control plane over a real database serves what it documents."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import yaml  # type: ignore[import-untyped]

from auth.secret import Secret
from gateway.asgi import Gateway
from gateway.dev.seed import KEYS
from gateway.settings import Settings, read_settings
from gateway.simulation.config import development_config
from tests.conftest import TestDatabase

KEY = base64.b64encode(bytes(range(32))).decode()
ISSUER = "http://127.0.0.1:8080"


@pytest.fixture
def settings(test_database: TestDatabase) -> Settings:
    environment = {"LLM_PROXY_ISSUER": ISSUER, "LLM_PROXY_KEK": "env", "LLM_PROXY_KEK_KEYS": KEY}
    given = read_settings({**environment, "LLM_PROXY_PEPPERS": f"1:{KEY}"})
    return replace(given, database_url=Secret(test_database.url), database_pool_size=3)


@pytest.fixture
async def gateway(settings: Settings) -> AsyncIterator[Gateway]:
    app = Gateway(settings)
    await app.start()
    yield app
    await app.close()


def client_of(app: Gateway) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=ISSUER)


def test_the_data_path_loads_no_framework_and_no_orm() -> None:
    program = (
        "import sys, gateway.asgi, gateway.data_path, gateway.preflight, gateway.server\n"
        "print(sorted({'litestar', 'sqlmodel', 'sqlalchemy', 'authlib', 'alembic', 'httpx'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


async def test_it_serves_what_it_documents(gateway: Gateway) -> None:
    async with client_of(gateway) as client:
        document = (await client.get("/api/v1/openapi.json")).json()
        assert {"/api/v1/tenants", "/api/v1/pools", "/api/v1/pools/import", "/api/v1/clients"} <= set(document["paths"])
        page = await client.get("/docs")
        assert page.status_code == 200
        assert "script" not in page.headers["content-security-policy"]
        assert "/api/v1/pools" in page.text
        assert (await client.get("/.well-known/oauth-authorization-server")).json()["issuer"] == ISSUER
        assert [key["alg"] for key in (await client.get("/oauth2/jwks")).json()["keys"]] == ["ES256", "RS256"]
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/livez")).status_code == 200
        assert "llm_proxy_tenants" in (await client.get("/metrics")).text


async def test_the_chart_routes_every_path_of_the_control_plane(gateway: Gateway) -> None:
    values = yaml.safe_load((Path(__file__).parents[2] / "helm/llm-proxy/values.yaml").read_text())
    prefixes = tuple(values["routes"]["controlPaths"])
    assert gateway._control is not None
    paths = {route.path for route in gateway._control.routes}
    assert len(paths) > 20
    assert {path for path in paths if not f"{path}/".startswith(tuple(f"{prefix}/" for prefix in prefixes))} == set()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/api/v1/pools", 401), ("GET", "/api/v1/nothing", 404), ("PUT", "/api/v1/pools", 405), ("GET", "/", 404)],
)
async def test_refusals_are_problem_documents(gateway: Gateway, method: str, path: str, status: int) -> None:
    async with client_of(gateway) as client:
        answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-llm-proxy-request-id"]


async def test_a_data_path_alone_has_no_management_api(settings: Settings, gateway: Gateway) -> None:
    alone = Gateway(settings, control=False)
    await alone.start()
    try:
        async with client_of(alone) as client:
            answer = await client.get("/api/v1/pools")
            refused = await client.post("/v1/chat/completions", json={"model": "m", "messages": []})
    finally:
        await alone.close()
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert refused.status_code == 401
    assert alone.health.readiness()[0]
    assert gateway.health.readiness()[0]


def test_the_demo_pool_fits_the_simulated_provider() -> None:
    provided = {key.name: (key.secret, key.limits.rpm) for key in development_config().keys}
    assert provided == {name: (f"sim-key-{name}", rpm) for name, _, rpm in KEYS}
