"""One contract for every driver, over the admin APIs of the providers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from auth.secret import Secret
from tenants.sources.protocol import (
    Driver,
    HttpAnswer,
    InMemorySource,
    ProviderKeyMade,
    SourceAway,
    SourceRefused,
    SourceUnknown,
)
from tenants.sources.registry import make_driver
from tests.tenants.admin_apis import CREDENTIAL, AdminApis

AZURE = {
    "directory_id": "d1",
    "client_id": "c1",
    "subscription_id": "s1",
    "resource_group": "g1",
    "account": "a1",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "openai": {"project_id": "p1"},
    "openrouter": {},
    "xai": {"team_id": "t1"},
    "webhook": {"url": "https://hooks.example/rotate"},
    "azure": AZURE,
}
FINDING = ["openai", "openrouter", "xai", "webhook", "memory"]


@pytest.fixture
def apis() -> AdminApis:
    return AdminApis()


def driver(name: str, apis: AdminApis, credential: str = CREDENTIAL) -> Driver:
    if name == "memory":
        return InMemorySource()
    return make_driver(name, CONFIGS[name], Secret(credential), http=apis, now_unix=lambda: 1e9)


@pytest.mark.parametrize("name", FINDING)
async def test_a_key_is_made_found_by_its_tag_and_revoked(name: str, apis: AdminApis) -> None:
    made_by = driver(name, apis)
    for number in range(5):
        await made_by.create(f"other-{number}", in_use=None)
    assert await made_by.find("llm-proxy-1") is None
    made = await made_by.create("llm-proxy-1", in_use=None)
    assert made.secret is not None
    found = await made_by.find("llm-proxy-1")
    assert found is not None
    assert found.ref == made.ref
    await made_by.disable(made.ref)
    await made_by.enable(made.ref)
    await made_by.revoke(made.ref)
    assert await made_by.find("llm-proxy-1") is None


@pytest.mark.parametrize("name", FINDING)
async def test_steps_that_were_done_before_succeed(name: str, apis: AdminApis) -> None:
    made_by = driver(name, apis)
    made = await made_by.create("llm-proxy-1", in_use=None)
    for _ in range(2):
        await made_by.disable(made.ref)
    for _ in range(2):
        await made_by.revoke(made.ref)
    await made_by.disable(made.ref)


@pytest.mark.parametrize("name", ["openrouter", "xai", "webhook"])
async def test_disabling_is_reversible(name: str, apis: AdminApis) -> None:
    made_by = driver(name, apis)
    made = await made_by.create("llm-proxy-1", in_use=None)
    await made_by.disable(made.ref)
    assert apis.keys[made.ref]["enabled"] is False
    await made_by.enable(made.ref)
    assert apis.keys[made.ref]["enabled"] is True


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("status", [0, 429, 500, 503])
async def test_passing_failures_are_told_apart(name: str, status: int, apis: AdminApis) -> None:
    apis.fail_next = status
    with pytest.raises(SourceAway):
        await driver(name, apis).create("llm-proxy-1", in_use=None)


@pytest.mark.parametrize("name", CONFIGS)
async def test_lasting_refusals_do_not_show_the_credential(name: str, apis: AdminApis) -> None:
    apis.fail_next = 403
    with pytest.raises(SourceRefused) as refused:
        await driver(name, apis).create("llm-proxy-1", in_use=None)
    with pytest.raises(SourceRefused):
        await driver(name, apis, "sk-wrong-0123456789").create("llm-proxy-1", in_use=None)
    assert CREDENTIAL not in str(refused.value)


async def test_azure_regenerates_the_slot_that_is_not_in_use(apis: AdminApis) -> None:
    made_by = driver("azure", apis)
    first = await made_by.create("t1", in_use=None)
    assert (first.ref, first.secret) == ("Key2", Secret(apis.slots["Key2"]))
    second = await made_by.create("t2", in_use="Key2")
    assert (second.ref, second.secret) == ("Key1", Secret(apis.slots["Key1"]))
    assert Secret(apis.slots["Key2"]) == first.secret


async def test_a_webhook_makes_one_key_for_a_tag(apis: AdminApis) -> None:
    made_by = driver("webhook", apis)
    first, second = await made_by.create("t", in_use=None), await made_by.create("t", in_use=None)
    assert (first.ref, first.secret) == (second.ref, second.secret)


class Answers:
    """Answers every call alike."""

    def __init__(self, status: int, body: bytes) -> None:
        self.answer = HttpAnswer(status, {}, body)

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        return self.answer


def webhook(status: int, body: bytes = b"") -> Driver:
    answers = Answers(status, body)
    return make_driver("webhook", CONFIGS["webhook"], Secret(CREDENTIAL), http=answers, now_unix=lambda: 1e9)


@pytest.mark.parametrize("status", [404, 410])
async def test_what_is_gone_at_a_webhook_needs_no_more_doing(status: int) -> None:
    gone = webhook(status)
    assert await gone.find("t") is None
    for step in (gone.disable, gone.enable, gone.revoke):
        await step("ref-1")
    with pytest.raises(SourceRefused, match=str(status)):
        await gone.create("t", in_use=None)


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'{"ref": 7}', b"\xff"])
async def test_a_webhook_that_answers_with_something_else_is_asked_again(body: bytes) -> None:
    """Its key may have been made: a refusal would say that there is none."""
    answers = webhook(200, body)
    with pytest.raises(SourceAway):
        await answers.find("t")
    with pytest.raises(SourceAway):
        await answers.create("t", in_use=None)
    for step in (answers.disable, answers.enable, answers.revoke):
        await step("ref-1")  # whose answers are a status and no more


async def test_a_webhook_that_made_a_key_and_does_not_tell_it() -> None:
    assert await webhook(200, b'{"ref": "r"}').create("t", in_use=None) == ProviderKeyMade("r", None)
    with pytest.raises(SourceUnknown):
        await webhook(200, b'{"secret": "s"}').create("t", in_use=None)


async def test_manual_sources_switch_old_keys_off_at_anthropic_only(apis: AdminApis) -> None:
    apis.keys["apikey_1"] = {"id": "apikey_1", "name": "", "secret": "", "enabled": True}
    manual = make_driver("manual", {"provider": "anthropic"}, Secret(CREDENTIAL), http=apis, now_unix=lambda: 1e9)
    assert (manual.capabilities.mints, manual.capabilities.disables) == (False, True)
    await manual.disable("apikey_1")
    assert apis.keys["apikey_1"]["enabled"] is False
    with pytest.raises(SourceRefused, match="supply the new secret"):
        await manual.create("t", in_use=None)
    other = make_driver("manual", {"provider": "mistral"}, None, http=apis, now_unix=lambda: 1e9)
    assert not other.capabilities.disables
    calls = len(apis.calls)
    await other.revoke("x")
    assert len(apis.calls) == calls


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("pigeon", {}, "use one of aws, azure"),
        ("openai", {}, "project_id"),
        ("openai", {"project_id": "p", "extra": 1}, "extra"),
        ("azure", AZURE | {"account": "../x"}, "plain names"),
        ("azure", AZURE | {"in_use": "Key3"}, "Key1 or Key2"),
    ],
)
def test_settings_that_do_not_fit(name: str, config: dict[str, Any], says: str, apis: AdminApis) -> None:
    with pytest.raises(SourceRefused, match=says):
        make_driver(name, config, Secret(CREDENTIAL), http=apis, now_unix=lambda: 1e9)


def test_paths_cannot_be_escaped(apis: AdminApis) -> None:
    made_by = make_driver("openai", {"project_id": "../../x?y"}, Secret(CREDENTIAL), http=apis, now_unix=lambda: 1e9)
    assert "..%2F..%2Fx%3Fy" in vars(made_by)["_path"]
