"""Every rotation driver against the simulated admin APIs over real HTTP, with a fault at each step."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from joserfc.jwk import RSAKey
from msgspec import convert

from auth.secret import Secret
from gateway.guarded_calls import GuardedCalls
from gateway.simulation.admin_aws import SIM_KEY_ID
from gateway.simulation.config import KeyConfig, ProviderConfig
from gateway.upstream.connect import DirectConnector
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.pool import ConnectionPool
from tenants.sources.gcp import GcpDriver, GcpSettings
from tenants.sources.protocol import Driver, HttpCalls, SourceAway, SourceRefused
from tenants.sources.registry import make_driver
from tenants.sources.webhook import SIGNATURE_HEADER, sign
from tests.fakes.provider import RunningProvider, running_provider

ADMIN = "sim-admin-key"
AZURE = {"directory_id": "d1", "client_id": "c1", "subscription_id": "s1", "resource_group": "g1", "account": "a1"}
CONFIGS: dict[str, dict[str, Any]] = {
    "openai": {"project_id": "p1"},
    "openrouter": {},
    "xai": {"team_id": "t1"},
    "azure": AZURE,
    "aws": {"user_name": "bedrock-user", "in_use": "none"},
    "gcp": {"project": "my-project"},
    "webhook": {},
}
FINDING = ["openai", "openrouter", "xai", "gcp", "webhook"]
SERVICE_ACCOUNT = RSAKey.generate_key(2048)
CREDENTIALS = {
    "aws": f"{SIM_KEY_ID}:{ADMIN}",
    "gcp": json.dumps(
        {
            "type": "service_account",
            "client_email": "rotation@my-project.iam.gserviceaccount.com",
            "private_key": SERVICE_ACCOUNT.as_pem(private=True).decode(),
            "private_key_id": "k1",
        }
    ),
}
WRONG = {
    "aws": f"{SIM_KEY_ID}:sk-wrong-000000000000",
    "gcp": json.dumps({"client_email": "x@y", "private_key": RSAKey.generate_key(2048).as_pem(private=True).decode()}),
}
CONFIG = ProviderConfig(keys=(KeyConfig(secret="sim-key-by-hand", name="a1-Key1"),))


@pytest.fixture(scope="module")
def running() -> Iterator[RunningProvider]:
    with running_provider(CONFIG) as provider:
        yield provider


@pytest.fixture
def provider(running: RunningProvider) -> RunningProvider:
    admin(running, "DELETE", "faults")
    admin(running, "PUT", "works_after", 0)
    admin(running, "PUT", "service_account_key", SERVICE_ACCOUNT.as_pem(private=False).decode())
    for minted in list(running.provider.smith.keys.values()):
        if minted.scope == "bedrock-user":
            running.provider.smith.delete(minted.ref)
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


def driver(name: str, provider: RunningProvider, calls: HttpCalls, credential: str | None = None) -> Driver:
    config = {**CONFIGS[name], "base_url": provider.base_url}
    if name == "webhook":
        config = {"url": f"{provider.base_url}/key-webhook/w1"}
    if name == "azure":
        config["login_url"] = provider.base_url
    if name == "gcp":
        config["token_url"] = f"{provider.base_url}/token"
    given = Secret(credential or CREDENTIALS.get(name, ADMIN))
    if name == "gcp":
        return GcpDriver(convert(config, GcpSettings), given, calls, time.time, sleep=at_once)
    return make_driver(name, config, given, http=calls, now_unix=time.time)


async def at_once(_: float) -> None:
    """Wait for nothing."""


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
        assert name == "gcp" or await makes.find(tag) is not None
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


async def test_aws_credentials_take_turns_and_a_leftover_makes_way(provider: RunningProvider, calls: HttpCalls) -> None:
    makes = driver("aws", provider, calls)
    first = await makes.create("t1", in_use=None)
    admin(provider, "PUT", "faults", [{"step": "create", "kind": "reset", "times": 1, "late": True}])
    with pytest.raises(SourceAway):
        await makes.create("t2", in_use=first.ref)
    second = await makes.create("t2", in_use=first.ref)
    assert is_taken(provider, first.secret)
    assert is_taken(provider, second.secret)
    alive = [key["ref"] for key in admin(provider, "GET", "")["keys"] if key["scope"] == "bedrock-user"]
    assert alive == [first.ref, second.ref], "what the lost answer left behind is gone"
    await makes.disable(first.ref)
    assert not is_taken(provider, first.secret)
    await makes.enable(first.ref)
    assert is_taken(provider, first.secret)
    third = await makes.create("t3", in_use=second.ref)
    assert not is_taken(provider, first.secret)
    assert is_taken(provider, third.secret)
    for _ in range(2):
        await makes.revoke(second.ref)
    for step in (makes.disable, makes.enable):
        await step(second.ref)  # gone: nothing is left to be done


async def test_aws_touches_no_credential_that_was_said_to_be_in_use(
    provider: RunningProvider, calls: HttpCalls
) -> None:
    by_hand = await driver("aws", provider, calls).create("by hand", in_use=None)
    config = {"user_name": "bedrock-user", "in_use": by_hand.ref, "base_url": provider.base_url}
    makes = make_driver("aws", config, Secret(CREDENTIALS["aws"]), http=calls, now_unix=time.time)
    for number in range(3):
        await makes.create(f"t{number}", in_use=None)
        assert is_taken(provider, by_hand.secret)


async def test_aws_is_refused_for_a_user_that_is_not_there(provider: RunningProvider, calls: HttpCalls) -> None:
    admin(provider, "PUT", "faults", [{"step": "find", "kind": "status", "status": 403, "times": 1}])
    with pytest.raises(SourceRefused):
        await driver("aws", provider, calls).create("t", in_use=None)


async def test_gcp_makes_one_key_for_a_tag_and_its_secret_can_be_read_again(
    provider: RunningProvider, calls: HttpCalls
) -> None:
    makes = driver("gcp", provider, calls)
    made = await makes.create("llm-proxy-once", in_use=None)
    with pytest.raises(SourceAway):
        await makes.create("llm-proxy-once", in_use=None)
    found = await makes.find("llm-proxy-once")
    assert found is not None
    assert (found.ref, found.secret) == (made.ref, made.secret)
    await makes.revoke(made.ref)
    assert await makes.find("llm-proxy-once") is None


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
    assert tag not in {key["tag"] for key in admin(provider, "GET", "")["keys"] if key["enabled"]}


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
    wrong = WRONG.get(name, "sk-wrong-000000000000")
    with pytest.raises(SourceRefused):
        await driver(name, provider, calls, credential=wrong).create("t", in_use=None)


async def test_a_webhook_makes_one_key_for_a_tag(provider: RunningProvider, calls: HttpCalls) -> None:
    makes = driver("webhook", provider, calls)
    admin(provider, "PUT", "faults", [{"step": "create", "kind": "reset", "times": 1, "late": True}])
    with pytest.raises(SourceAway):
        await makes.create("llm-proxy-once-only", in_use=None)
    first, second = [await makes.create("llm-proxy-once-only", in_use=None) for _ in range(2)]
    assert (first.ref, first.secret) == (second.ref, second.secret)
    assert [key["tag"] for key in admin(provider, "GET", "")["keys"]].count("llm-proxy-once-only") == 1


@pytest.mark.parametrize("attack", ["another body", "another key", "old", "from the future", "no signature", "no time"])
async def test_a_webhook_call_needs_its_own_fresh_signature(
    attack: str, provider: RunningProvider, calls: HttpCalls
) -> None:
    made = await driver("webhook", provider, calls).create("llm-proxy-attacked", in_use=None)
    before = admin(provider, "GET", "")["keys"]
    body = json.dumps({"id": "i", "at": int(time.time()), "action": "revoke", "ref": made.ref}).encode()
    at = int(time.time()) + {"old": -301, "from the future": 330}.get(attack, 0)
    signature = sign(
        body if attack != "another body" else body.replace(b"revoke", b"enable"),
        Secret(ADMIN if attack != "another key" else "sk-wrong-000000000000"),
        at,
    )
    if attack == "no time":
        signature = signature.split(",")[1]
    headers = {} if attack == "no signature" else {SIGNATURE_HEADER: signature, "x-api-key": ADMIN}
    url = f"{provider.base_url}/key-webhook/w1"
    assert (await calls.call("POST", url, headers=headers, body=body)).status == 401
    assert admin(provider, "GET", "")["keys"] == before
    assert is_taken(provider, made.secret)
    right = {SIGNATURE_HEADER: sign(body, Secret(ADMIN), int(time.time()))}
    assert (await calls.call("POST", url, headers=right, body=body)).status == 200
    assert not is_taken(provider, made.secret)
