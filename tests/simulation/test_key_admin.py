"""Every rotation driver against the simulated admin APIs over real HTTP, with a fault at each step."""

from __future__ import annotations

import http.client
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from auth.secret import Secret
from gateway.guarded_calls import GuardedCalls
from gateway.simulation.config import KeyConfig, ProviderConfig
from gateway.upstream.connect import DirectConnector
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.pool import ConnectionPool
from tenants.sources.protocol import Driver, HttpCalls, SourceAway, SourceRefused
from tenants.sources.registry import make_driver
from tests.fakes.provider import RunningProvider, running_provider

ADMIN = "sim-admin-key"
AZURE = {"directory_id": "d1", "client_id": "c1", "subscription_id": "s1", "resource_group": "g1", "account": "a1"}
CONFIGS: dict[str, dict[str, Any]] = {
    "openai": {"project_id": "p1"},
    "openrouter": {},
    "xai": {"team_id": "t1"},
    "azure": AZURE,
}
FINDING = ["openai", "openrouter", "xai"]
CONFIG = ProviderConfig(keys=(KeyConfig(secret="sim-key-by-hand", name="a1-Key1"),))


@pytest.fixture(scope="module")
def running() -> Iterator[RunningProvider]:
    with running_provider(CONFIG) as provider:
        yield provider


@pytest.fixture
def provider(running: RunningProvider) -> RunningProvider:
    admin(running, "DELETE", "faults")
    admin(running, "PUT", "works_after", 0)
    return running


@pytest.fixture
async def calls() -> AsyncIterator[HttpCalls]:
    policy = EgressPolicy(allow_private=True)
    pool = ConnectionPool(DirectConnector(policy))
    yield GuardedCalls(pool, policy)
    await pool.close()


def ask(
    provider: RunningProvider, method: str, path: str, body: Any = None, secret: str = "none"
) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(provider.host, provider.port, timeout=10)
    try:
        sent = None if body is None else json.dumps(body)
        connection.request(method, path, sent, {"authorization": f"Bearer {secret}"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def admin(provider: RunningProvider, method: str, path: str, body: Any = None) -> Any:
    status, document = ask(provider, method, f"/_sim/administration/{path}".rstrip("/"), body)
    assert status == 200, document
    return document


def driver(name: str, provider: RunningProvider, calls: HttpCalls, credential: str = ADMIN) -> Driver:
    config = {**CONFIGS[name], "base_url": provider.base_url}
    if name == "azure":
        config["login_url"] = provider.base_url
    return make_driver(name, config, Secret(credential), http=calls, now_unix=lambda: 1e9)


def is_taken(provider: RunningProvider, secret: Secret | None) -> bool:
    assert secret is not None
    return ask(provider, "GET", "/v1/models", secret=secret.reveal())[0] == 200


@pytest.mark.parametrize("name", FINDING)
async def test_a_key_lives_from_create_to_revoke(name: str, provider: RunningProvider, calls: HttpCalls) -> None:
    makes = driver(name, provider, calls)
    tag = f"llm-proxy-{name}"
    for number in range(3):
        await makes.create(f"other-{name}-{number}", in_use=None)
    assert await makes.find(tag) is None
    made = await makes.create(tag, in_use=None)
    assert is_taken(provider, made.secret)
    found = await makes.find(tag)
    assert found is not None
    assert found.ref == made.ref
    if makes.capabilities.disables:
        await makes.disable(made.ref)
        assert not is_taken(provider, made.secret)
        assert await makes.find(tag) is not None
        await makes.enable(made.ref)
        assert is_taken(provider, made.secret)
    for _ in range(2):
        await makes.revoke(made.ref)
    assert not is_taken(provider, made.secret)
    assert await makes.find(tag) is None


async def test_azure_slots_take_turns(provider: RunningProvider, calls: HttpCalls) -> None:
    makes = driver("azure", provider, calls)
    by_hand = Secret("sim-key-by-hand")
    assert is_taken(provider, by_hand)
    second = await makes.create("t1", in_use=None)
    assert second.ref == "Key2"
    assert is_taken(provider, second.secret)
    assert is_taken(provider, by_hand)
    first = await makes.create("t2", in_use="Key2")
    assert first.ref == "Key1"
    assert is_taken(provider, first.secret)
    assert not is_taken(provider, by_hand)


async def test_anthropic_keys_are_switched_not_made(provider: RunningProvider, calls: HttpCalls) -> None:
    assert ask(provider, "PUT", "/_sim/keys/apikey_01", {"secret": "sim-key-of-a-person"})[0] == 200
    config = {"provider": "anthropic", "base_url": provider.base_url}
    manual = make_driver("manual", config, Secret(ADMIN), http=calls, now_unix=lambda: 1e9)
    await manual.disable("apikey_01")
    assert not is_taken(provider, Secret("sim-key-of-a-person"))
    await manual.enable("apikey_01")
    assert is_taken(provider, Secret("sim-key-of-a-person"))


@pytest.mark.parametrize("fault", [{"kind": "status", "status": 503}, {"kind": "reset"}])
@pytest.mark.parametrize("name", CONFIGS)
async def test_a_create_that_fails_makes_nothing(
    name: str, fault: dict[str, Any], provider: RunningProvider, calls: HttpCalls
) -> None:
    before = admin(provider, "GET", "")["keys"]
    admin(provider, "PUT", "faults", [{"step": "create", "times": 1, **fault}])
    with pytest.raises(SourceAway):
        await driver(name, provider, calls).create("llm-proxy-away", in_use=None)
    assert admin(provider, "GET", "")["keys"] == before


@pytest.mark.parametrize("name", FINDING)
async def test_a_lost_answer_leaves_a_key_that_is_found(name: str, provider: RunningProvider, calls: HttpCalls) -> None:
    makes = driver(name, provider, calls)
    tag = f"llm-proxy-lost-{name}"
    admin(provider, "PUT", "faults", [{"step": "create", "kind": "reset", "times": 1, "late": True}])
    with pytest.raises(SourceAway):
        await makes.create(tag, in_use=None)
    found = await makes.find(tag)
    assert found is not None
    await makes.revoke(found.ref)
    assert tag not in {key["tag"] for key in admin(provider, "GET", "")["keys"]}


@pytest.mark.parametrize(("step", "name"), [("find", "openai"), ("disable", "xai"), ("revoke", "openrouter")])
async def test_each_step_can_fail(step: str, name: str, provider: RunningProvider, calls: HttpCalls) -> None:
    makes = driver(name, provider, calls)
    made = await makes.create(f"llm-proxy-{step}-fails", in_use=None)
    admin(provider, "PUT", "faults", [{"step": step, "kind": "status", "status": 500, "times": 1}])
    for attempt in range(2):
        target = {"find": makes.find, "disable": makes.disable, "revoke": makes.revoke}[step]
        if attempt == 0:
            with pytest.raises(SourceAway):
                await target(made.ref)
        else:
            await target(made.ref)


async def test_a_new_key_may_work_only_later(provider: RunningProvider, calls: HttpCalls) -> None:
    admin(provider, "PUT", "works_after", 20)
    made = await driver("openai", provider, calls).create("llm-proxy-slow", in_use=None)
    assert not is_taken(provider, made.secret)


@pytest.mark.parametrize("name", CONFIGS)
async def test_a_wrong_credential_is_refused(name: str, provider: RunningProvider, calls: HttpCalls) -> None:
    with pytest.raises(SourceRefused):
        await driver(name, provider, calls, credential="sk-wrong-000000000000").create("t", in_use=None)
