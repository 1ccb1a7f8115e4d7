"""A pool without a stored key, end to end: the provider trusts the gateway's issuer, and nothing else is needed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Self

import httpx2
import openai
import pytest

from tests.e2e.conftest import RunningGateway
from tests.e2e.provider import SeparateProvider, run_provider


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeparateProvider]:
    config = {"keys": [{"secret": "sim-key-nobody-has", "name": "unused"}]}
    with run_provider(tmp_path_factory.mktemp("trusting"), config) as running:
        yield running


class Api:
    """The tenant's own program at the management API."""

    def __init__(self, gateway: RunningGateway) -> None:
        self._http = httpx2.Client(
            base_url=f"{gateway.base_url}/api/v1", headers={"authorization": f"Bearer {gateway.token()}"}
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, method: str, path: str, body: Any = None) -> httpx2.Response:
        return self._http.request(method, path, json=body)

    def need(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.ask(method, path, body)
        assert answer.is_success, answer.text
        return answer.json()


@pytest.fixture
def api(gateway: RunningGateway) -> Iterator[Api]:
    with Api(gateway) as opened:
        yield opened


def ask_until_served(gateway: RunningGateway, pool: str) -> str:
    """Ask a pool until it answers."""
    give_up = time.monotonic() + 20
    base_url = f"{gateway.base_url}/pools/{pool}/v1"
    with openai.OpenAI(base_url=base_url, api_key=gateway.token(), max_retries=0) as client:
        while True:
            try:
                answer = client.chat.completions.create(
                    model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}]
                )
                return answer.choices[0].message.content or ""
            except openai.APIStatusError:
                assert time.monotonic() < give_up, "the key has not come into service"
                time.sleep(0.2)


def test_a_pool_without_a_stored_key(gateway: RunningGateway, api: Api, provider: SeparateProvider) -> None:
    config = {"provider": "openrouter", "federation_policy_id": "p1"}
    config["token_url"] = f"{provider.base_url}/api/v1/oauth/token"
    source = api.need("POST", "/sources", {"name": "keyless", "driver": "federated", "config": config})
    trust = source["trust"]
    discovered = httpx2.get(f"{trust['issuer']}/.well-known/openid-configuration").json()
    assert (discovered["issuer"], discovered["jwks_uri"]) == (trust["issuer"], trust["jwks_uri"])
    assert httpx2.get(trust["jwks_uri"]).json()["keys"]
    pool = api.need("POST", "/pools", {"name": "keyless", "strategy": "round_robin"})
    entry = {"name": "only", "provider": "simulated", "base_url": provider.base_url, "source_id": source["id"]}
    key = api.need("POST", f"/pools/{pool['id']}/keys", entry)
    assert key["current"]["prefix"] == ""

    address = f"{gateway.base_url}/pools/keyless/v1/chat/completions"
    asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
    early = httpx2.post(address, json=asked, headers={"authorization": f"Bearer {gateway.token()}"})
    assert early.status_code == 503, "nobody is trusted yet"

    rule = {"issuer": trust["issuer"], "jwks_url": trust["jwks_uri"], "audience": trust["audience"]}
    rules = [{**rule, "subject": trust["subject"]}]
    assert httpx2.put(f"{provider.base_url}/_sim/administration/trust", json=rules).is_success
    assert ask_until_served(gateway, "keyless")
    served = [name for name, count in provider.counts().items() if count["requests"] and name.startswith("tenant:")]
    assert served, "the token's own subject was served"
    assert all(name.startswith(trust["subject"]) for name in served)

    refused = api.ask("POST", f"/keys/{key['id']}/rotate", {})
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert "no secret" in refused.json()["detail"]
    schedule = {"source_id": source["id"], "settings": {"schedule": {"interval_s": 86400}}}
    assert api.ask("PUT", f"/keys/{key['id']}/rotation", schedule).status_code == 409


def test_a_key_that_its_source_makes(gateway: RunningGateway, api: Api, provider: SeparateProvider) -> None:
    config = {"project_id": "p1", "base_url": provider.base_url}
    body = {"name": "mints", "driver": "openai", "config": config, "credential": "sim-admin-key"}
    source = api.need("POST", "/sources", body)
    assert source["trust"] is None
    pool = api.need("POST", "/pools", {"name": "minted", "strategy": "round_robin"})
    entry = {"name": "only", "provider": "simulated", "base_url": provider.base_url, "source_id": source["id"]}
    key = api.need("POST", f"/pools/{pool['id']}/keys", entry)
    assert key["current"] is None
    give_up = time.monotonic() + 30
    while api.need("GET", f"/keys/{key['id']}")["current"] is None:
        assert time.monotonic() < give_up, api.need("GET", f"/keys/{key['id']}/versions")
        time.sleep(0.2)
    assert ask_until_served(gateway, "minted")


def test_what_a_new_key_may_say(api: Api) -> None:
    pool = api.need("POST", "/pools", {"name": "refusing", "strategy": "round_robin"})
    manual = api.need("POST", "/sources", {"name": "by-hand", "driver": "manual", "config": {}})
    keys = f"/pools/{pool['id']}/keys"
    neither = api.ask("POST", keys, {"name": "k", "provider": "openai"})
    assert "api_key" in neither.json()["errors"][0]["pointer"]
    both = {"name": "k", "provider": "openai", "api_key": "sk-test-0123456789", "source_id": manual["id"]}
    assert api.ask("POST", keys, both).json()["errors"][0]["pointer"] == "/source_id"
    cannot = api.ask("POST", keys, {"name": "k", "provider": "openai", "source_id": manual["id"]})
    assert "makes no keys" in cannot.json()["detail"]
    missing = {"name": "x", "driver": "federated", "config": {"provider": "openai"}}
    assert "identity_provider_id" in api.ask("POST", "/sources", missing).json()["errors"][0]["detail"]
