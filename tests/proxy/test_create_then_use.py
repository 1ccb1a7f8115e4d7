"""What was created a moment ago is usable at once, though its notice has not come (none comes in these tests)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from auth.errors import Unavailable
from tenants.snapshot import TenantSnapshot
from tests.fakes.provider import RunningProvider, provider_config, running_provider
from tests.proxy.harness import TENANT, Gateway, key, pool, running_gateway, tenant

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def provider() -> Iterator[RunningProvider]:
    with running_provider(provider_config(a=10_000)) as running:
        yield running


Make = Callable[[str], TenantSnapshot]

BEFORE: dict[str, tuple[Make, str]] = {
    "no pool yet": (lambda url: tenant(), "/v1/chat/completions"),
    "no such pool": (lambda url: tenant(pool("other", key("o", url))), "/pools/main/v1/chat/completions"),
    "no key yet": (lambda url: tenant(pool("main")), "/v1/chat/completions"),
    "no key in the named pool": (lambda url: tenant(pool("main")), "/pools/main/v1/chat/completions"),
    "no key for the model": (lambda url: tenant(pool("main", key("b", url, models=("m",)))), "/v1/chat/completions"),
    "suspended": (lambda url: tenant(status="suspended"), "/v1/chat/completions"),
    "a key that the provider rejects": (
        lambda url: tenant(pool("main", key("a", url, secret="wrong"))),
        "/v1/chat/completions",
    ),
    "the model is not listed": (
        lambda url: tenant(pool("main", key("b", url, models=("m",)))),
        "/v1/models/gpt-4o-mini",
    ),
    "no model is listed": (lambda url: tenant(pool("main")), "/v1/models"),
}


def after(url: str) -> TenantSnapshot:
    return tenant(pool("main", key("a", url, version=2, models=("gpt-4o-mini",))), revision=2)


async def ask(gateway: Gateway, path: str) -> int:
    reply = await gateway.call(path, None if "/models" in path else CHAT)
    return reply.status if reply.status != 200 or b"gpt-4o-mini" in reply.body else 0


@pytest.mark.parametrize("name", BEFORE)
async def test_a_refusal_looks_again_first(name: str, provider: RunningProvider) -> None:
    make, path = BEFORE[name]
    async with running_gateway(make(provider.base_url)) as gateway:
        gateway.loader.snapshots[TENANT] = after(provider.base_url)
        assert await ask(gateway, path) == 200


async def test_a_token_narrowed_to_a_new_pool_reaches_it(provider: RunningProvider) -> None:
    async with running_gateway(tenant(pool("other", key("o", provider.base_url)))) as gateway:
        gateway.verifier.add("narrow", details=({"type": "llm_proxy", "pools": ["main"]},))
        gateway.loader.snapshots[TENANT] = after(provider.base_url)
        assert (await gateway.call("/v1/chat/completions", CHAT, token="narrow")).status == 200


async def test_what_has_not_changed_is_refused_and_not_loaded(provider: RunningProvider) -> None:
    async with running_gateway(tenant(pool("main", key("a", provider.base_url, models=("m",))))) as gateway:
        assert await ask(gateway, "/v1/chat/completions") == 404
        assert gateway.loader.loads == 0
        (row,) = await gateway.settled(1)
        assert row.outcome == "model_not_found"


async def test_with_the_database_away_the_refusal_comes_at_once() -> None:
    async with running_gateway(tenant()) as gateway:
        gateway.loader.broken = Unavailable("away")
        for _ in range(3):
            assert await ask(gateway, "/v1/chat/completions") == 503
        assert gateway.directory.failures == 1, "the first to see it spares the others the attempt"


async def test_an_upload_that_is_gone_is_not_sent_again(provider: RunningProvider) -> None:
    bad = tenant(pool("main", key("a", provider.base_url, secret="wrong")))
    form = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n'
    form += (
        b'--x\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n' + b"a" * 400_000 + b"\r\n--x--\r\n"
    )
    headers = {"content-type": "multipart/form-data; boundary=x"}
    async with running_gateway(bad) as gateway:
        gateway.loader.snapshots[TENANT] = after(provider.base_url)
        reply = await gateway.call("/v1/audio/transcriptions", form, headers=headers)
        assert reply.status == 503
