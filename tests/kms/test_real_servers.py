"""The wrappers against real servers: OpenBao's Transit engine and moto's AWS KMS. Run by `make test-kms`."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from uuid_utils.compat import uuid7

from auth.secret import Secret
from gateway.guarded_calls import GuardedCalls
from gateway.upstream.connect import DirectConnector
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.pool import ConnectionPool
from tenants.errors import KekDisabled, KekUnavailable, SealBroken
from tenants.keyring import KeyWrapper, Wrapped
from tenants.shares.protocol import ShareMissing, Shredded
from tenants.shares.vault import VaultShares
from tenants.sources.protocol import HttpCalls
from tenants.wrappers.aws import AwsKms, signed_headers
from tenants.wrappers.aws_identity import AwsCredentials, fixed, web_identity
from tenants.wrappers.vault import VaultTransit
from tests.e2e.conftest import free_port

pytestmark = pytest.mark.slow
PROGRAMS = Path(__file__).parents[2] / ".venv-kms" / "bin"
TOKEN = "root-token-of-a-test"
CREDENTIALS = AwsCredentials("AKIATEST", Secret("secret"))
CONTEXT = ("data-key", "tenant", "id")
KEY = bytes(range(32))


@contextmanager
def running(*command: str, ready: str) -> Iterator[None]:
    process = subprocess.Popen(
        [str(PROGRAMS / command[0]), *command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        give_up = time.monotonic() + 30
        while True:
            try:
                httpx2.get(ready, timeout=1)
                break
            except httpx2.TransportError:
                assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
                assert time.monotonic() < give_up, f"{command[0]} does not answer"
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
async def calls() -> AsyncIterator[HttpCalls]:
    policy = EgressPolicy(allow_private=True)
    pool = ConnectionPool(DirectConnector(policy))
    yield GuardedCalls(pool, policy)
    await pool.close()


@pytest.fixture(scope="module")
def bao() -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    dev = ("-dev", "-dev-no-store-token", f"-dev-root-token-id={TOKEN}", f"-dev-listen-address=127.0.0.1:{port}")
    with running("bao", "server", *dev, ready=f"{url}/v1/sys/health"):
        admin(url, "sys/mounts/transit", {"type": "transit"})
        yield url


def admin(url: str, path: str, body: Any) -> None:
    answer = httpx2.post(f"{url}/v1/{path}", json=body, headers={"x-vault-token": TOKEN})
    assert answer.is_success, answer.text


@pytest.fixture
def transit(bao: str, calls: HttpCalls, request: pytest.FixtureRequest) -> VaultTransit:
    name = request.node.name.replace("_", "-")[:40]
    admin(bao, f"transit/keys/{name}", {})
    host = bao.removeprefix("http://")
    return VaultTransit(f"vault://{host}/transit/{name}", calls, lambda: Secret(TOKEN), scheme="http")


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    with running("moto_server", "-p", str(port), ready=url):
        yield url


class Kms:
    """moto's KMS with one key, and the calls that an administrator would make."""

    def __init__(self, url: str, calls: HttpCalls) -> None:
        self.url, self.calls = url, calls

    async def ask(self, action: str, body: bytes) -> bytes:
        target = f"TrentService.{action}"
        headers = signed_headers(
            self.url, body, target, region="eu-central-1", credentials=CREDENTIALS, now=datetime.now(UTC)
        )
        answer = await self.calls.call("POST", self.url, headers=headers, body=body)
        assert answer.status == 200, answer.body
        return answer.body

    async def wrapper(self) -> tuple[str, AwsKms]:
        made = httpx2.Response(200, content=await self.ask("CreateKey", b"{}")).json()
        key_id = made["KeyMetadata"]["KeyId"]
        uri = f"awskms://eu-central-1/{key_id}"
        return key_id, AwsKms(uri, self.calls, fixed(CREDENTIALS), now=lambda: datetime.now(UTC), endpoint=self.url)


async def assert_wraps(wrapper: KeyWrapper) -> Wrapped:
    wrapped = await wrapper.wrap(CONTEXT, KEY)
    assert KEY not in wrapped.blob
    assert await wrapper.unwrap(CONTEXT, wrapped) == KEY
    assert await wrapper.status(wrapped.kek_uri) == "enabled"
    for context in (("data-key", "other", "id"), ("data-key", "tenanti", "d")):
        with pytest.raises(SealBroken):
            await wrapper.unwrap(context, wrapped)
    return wrapped


async def test_openbao_binds_the_context(transit: VaultTransit) -> None:
    await assert_wraps(transit)


async def test_openbao_changes_versions_and_retires_them(transit: VaultTransit, bao: str) -> None:
    old = await assert_wraps(transit)
    name = transit.uri.rpartition("/")[2].partition("#")[0]
    admin(bao, f"transit/keys/{name}/rotate", {})
    new = await transit.wrap(CONTEXT, KEY)
    assert (old.kek_uri[-3:], new.kek_uri[-3:]) == ("#v1", "#v2")
    assert await transit.unwrap(CONTEXT, old) == KEY
    admin(bao, f"transit/keys/{name}/config", {"min_decryption_version": 2})
    assert await transit.status(old.kek_uri) == "disabled"
    assert await transit.status(new.kek_uri) == "enabled"
    with pytest.raises(KekDisabled):
        await transit.unwrap(CONTEXT, old)


async def test_openbao_with_a_wrong_token_is_no_disabled_key(transit: VaultTransit, calls: HttpCalls) -> None:
    uri = transit.uri.partition("#")[0]
    other = VaultTransit(uri, calls, lambda: Secret("wrong"), scheme="http")
    with pytest.raises(KekUnavailable):
        await other.wrap(CONTEXT, KEY)


async def test_kms_binds_the_context_and_can_be_disabled(moto: str, calls: HttpCalls) -> None:
    kms = Kms(moto, calls)
    key_id, wrapper = await kms.wrapper()
    wrapped = await assert_wraps(wrapper)
    body = b'{"KeyId": "%b"}' % key_id.encode()
    await kms.ask("DisableKey", body)
    assert await wrapper.status(wrapped.kek_uri) == "disabled"
    await kms.ask("EnableKey", body)
    assert await wrapper.unwrap(CONTEXT, wrapped) == KEY


async def test_openbao_keeps_and_destroys_shares(bao: str, calls: HttpCalls) -> None:
    """The version 2 KV engine that a development server mounts at secret/."""
    host = bao.removeprefix("http://")

    def store(token: str = TOKEN) -> VaultShares:
        return VaultShares(f"vault://{host}/secret/llm-proxy/shares", calls, lambda: Secret(token), scheme="http")

    gone, kept = uuid7(), uuid7()
    with pytest.raises(ShareMissing):
        await store().get(gone)
    racers = await asyncio.gather(*(store().get_or_create(gone) for _ in range(5)))
    assert len(set(racers)) == 1
    await store().get_or_create(kept)
    assert await store().shredded() == {}
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    await store().destroy(gone, at=at)
    await store().destroy(gone, at=datetime.now(UTC))
    for again in (store().get, store().get_or_create):
        with pytest.raises(Shredded):
            await again(gone)
    assert await store().shredded() == {gone: at}
    assert len(await store().get(kept)) == 32
    data = httpx2.get(f"{bao}/v1/secret/metadata/llm-proxy/shares/{gone}", headers={"x-vault-token": TOKEN})
    assert data.status_code == 404, "no version of it is left"
    with pytest.raises(KekUnavailable):
        await store("wrong").get_or_create(uuid7())


async def test_kms_by_web_identity(moto: str, calls: HttpCalls, tmp_path: Path) -> None:
    """IRSA against moto's STS: the temporary credentials sign what KMS is asked."""
    token = tmp_path / "token"
    token.write_text("a.projected.token")
    source = web_identity(
        calls,
        role_arn="arn:aws:iam::123456789012:role/llm-proxy",
        token_path=token,
        session_name="llm-proxy",
        region="eu-central-1",
        now=lambda: datetime.now(UTC),
        endpoint=moto,
    )
    credentials = await source()
    assert credentials.access_key_id.startswith("ASIA")
    assert credentials.session_token is not None
    key_id, _ = await Kms(moto, calls).wrapper()
    uri = f"awskms://eu-central-1/{key_id}"
    await assert_wraps(AwsKms(uri, calls, source, now=lambda: datetime.now(UTC), endpoint=moto))
