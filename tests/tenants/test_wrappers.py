"""One contract for every KEK provider, and what is special about each."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from auth.secret import Secret
from tenants.errors import KekDisabled, KekUnavailable, KeyringUnsafe, SealBroken
from tenants.keyring import KeyWrapper, LocalKeyring, Wrapped, create_keyring_file
from tenants.shares.layer import ShareLayer, wrap_context
from tenants.shares.protocol import InMemoryShares, ShareMissing
from tenants.sources.protocol import HttpAnswer, HttpCalls
from tenants.wrappers.aws import AwsKms, signed_headers
from tenants.wrappers.aws_identity import AwsCredentials, fixed
from tenants.wrappers.azure import AzureKeyVault
from tenants.wrappers.choose import WrapperParts, make_wrapper
from tenants.wrappers.gcp import GcpKms, crc32c
from tenants.wrappers.gcp_identity import TokenSource
from tenants.wrappers.several import SeveralWrappers
from tenants.wrappers.vault import VaultTransit
from tests.tenants.kms_servers import AZURE_TOKEN, GCP_KEY, GCP_TOKEN, TOKEN, GoogleKms, KeyVault, Kms, Transit

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OTHER = "00000000-0000-0000-0000-000000000009"
CONTEXT = wrap_context(UUID(int=1), UUID(int=2))
CREDENTIALS = AwsCredentials("AKIDEXAMPLE", Secret("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"), Secret("token"))


@dataclass
class Provider:
    """A wrapper and what its administrator, or the network, may do to it."""

    wrapper: KeyWrapper
    disable: Callable[[], None]
    server: Any = None
    remake: Callable[[HttpCalls], KeyWrapper] | None = None


def vault(server: HttpCalls, token: str = TOKEN) -> VaultTransit:
    return VaultTransit("vault://vault.example:8200/transit/llm-proxy", server, lambda: Secret(token))


def aws(server: HttpCalls) -> AwsKms:
    return AwsKms("awskms://eu-central-1/alias/llm-proxy", server, fixed(CREDENTIALS), now=lambda: NOW)


async def google_token() -> Secret:
    return Secret(GCP_TOKEN)


def gcp(server: HttpCalls) -> GcpKms:
    return GcpKms(f"gcpkms://{GCP_KEY}", server, google_token)


async def entra_token() -> Secret:
    return Secret(AZURE_TOKEN)


def azure(server: HttpCalls) -> AzureKeyVault:
    return AzureKeyVault("azurekv://my-vault/llm-proxy", server, lambda _: entra_token, now=lambda: NOW)


REMOTE = ("vault", "aws", "gcp", "azure", "azure hsm")


def make(name: str) -> Provider:
    if name == "vault":
        transit = Transit()
        return Provider(vault(transit), lambda: setattr(transit, "deleted", True), transit, vault)
    if name == "aws":
        kms = Kms()
        return Provider(aws(kms), lambda: setattr(kms, "state", "Disabled"), kms, aws)
    if name == "gcp":
        google = GoogleKms()
        return Provider(gcp(google), lambda: google.states.update({1: "DISABLED"}), google, gcp)
    if name.startswith("azure"):
        key_vault = KeyVault(kty="oct-HSM" if name == "azure hsm" else "RSA")
        return Provider(
            azure(key_vault),
            lambda: key_vault.versions.update(dict.fromkeys(key_vault.versions, False)),
            key_vault,
            azure,
        )
    keyring = LocalKeyring([bytes(range(32))])
    off = Provider(keyring, lambda: keyring.disable(keyring.uri))
    if name == "several":
        return Provider(SeveralWrappers(keyring), off.disable)
    if name == "share":
        return Provider(ShareLayer(keyring, InMemoryShares()), off.disable)
    return off


@pytest.fixture(params=["local", "several", "share", *REMOTE])
def provider(request: pytest.FixtureRequest) -> Provider:
    return make(request.param)


@pytest.fixture(params=REMOTE)
def remote(request: pytest.FixtureRequest) -> Provider:
    return make(request.param)


async def test_what_was_wrapped_unwraps_in_its_context_only(provider: Provider) -> None:
    wrapper = provider.wrapper
    wrapped = await wrapper.wrap(CONTEXT, b"d" * 32)
    assert wrapper.opens(wrapped.kek_uri)
    assert wrapper.uri == wrapped.kek_uri
    assert not wrapper.opens("local://000000000000")
    assert b"d" * 32 not in wrapped.blob
    assert await wrapper.unwrap(CONTEXT, wrapped) == b"d" * 32
    assert await wrapper.status(wrapped.kek_uri) == "enabled"
    for context in (
        (*CONTEXT[:1], OTHER, CONTEXT[2]),
        (*CONTEXT[:2], OTHER),
        (CONTEXT[0] + CONTEXT[1], CONTEXT[2]),
        (),
    ):
        with pytest.raises((SealBroken, ShareMissing, KekDisabled)) as refused:
            await wrapper.unwrap(context, wrapped)
        assert refused.type is SealBroken or isinstance(wrapper, ShareLayer)
    other = b"?" if wrapped.blob.endswith(b"!") else b"!"
    with pytest.raises(SealBroken):
        await wrapper.unwrap(CONTEXT, Wrapped(wrapped.kek_uri, wrapped.blob[:-1] + other))


async def test_a_disabled_key_says_so(provider: Provider) -> None:
    wrapped = await provider.wrapper.wrap(CONTEXT, b"d" * 32)
    provider.disable()
    assert await provider.wrapper.status(wrapped.kek_uri) == "disabled"
    with pytest.raises(KekDisabled):
        await provider.wrapper.unwrap(CONTEXT, wrapped)


async def test_a_disabled_key_wraps_nothing_new(provider: Provider) -> None:
    provider.disable()
    with pytest.raises((KekDisabled, KekUnavailable)):
        await provider.wrapper.wrap(CONTEXT, b"d" * 32)


async def test_a_provider_that_is_away_is_not_a_disabled_key(remote: Provider) -> None:
    wrapped = await remote.wrapper.wrap(CONTEXT, b"d" * 32)
    remote.server.away = True
    for call in calls(remote.wrapper, wrapped):
        with pytest.raises(KekUnavailable):
            await call()


async def test_a_key_that_does_not_exist_any_more_is_cut_off(remote: Provider) -> None:
    wrapped = await remote.wrapper.wrap(CONTEXT, b"d" * 32)
    if isinstance(remote.server, Kms):
        remote.server.state = "Gone"
    else:
        remote.server.deleted = True
    assert await remote.wrapper.status(wrapped.kek_uri) == "disabled"
    with pytest.raises(KekDisabled):
        await remote.wrapper.unwrap(CONTEXT, wrapped)


def calls(wrapper: KeyWrapper, wrapped: Wrapped) -> list[Callable[[], Coroutine[Any, Any, Any]]]:
    return [
        lambda: wrapper.wrap(CONTEXT, b"d" * 32),
        lambda: wrapper.unwrap(CONTEXT, wrapped),
        lambda: wrapper.status(wrapped.kek_uri),
    ]


@dataclass
class Answering:
    """A provider that gives one answer to everything."""

    given: HttpAnswer

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        return self.given


def json_answer(status: int, document: Any) -> HttpAnswer:
    return HttpAnswer(status, {}, json.dumps(document).encode())


ANSWERS = {
    "throttled": json_answer(
        429, {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Quota exceeded"}}
    ),
    "throttled by aws": json_answer(400, {"__type": "ThrottlingException", "message": "Rate exceeded"}),
    "broken down": HttpAnswer(503, {}, b"<html>Service Unavailable</html>"),
    "forbidden": json_answer(403, {"error": {"code": "Forbidden", "message": "no", "status": "PERMISSION_DENIED"}}),
    "redirected": HttpAnswer(302, {"location": "https://elsewhere.example/"}, b""),
    "empty": HttpAnswer(200, {}, b""),
    "an empty object": HttpAnswer(200, {}, b"{}"),
    "a list": HttpAnswer(200, {}, b"[]"),
    "not JSON": HttpAnswer(200, {}, b"\xff<html>"),
    "null members": json_answer(200, {"data": None, "Plaintext": None, "plaintext": None, "value": None, "key": None}),
    "wrong types": json_answer(
        200,
        {"data": 7, "Plaintext": 7, "CiphertextBlob": [], "KeyMetadata": 7, "plaintext": {}, "value": 7, "key": 7},
    ),
    "no base64": json_answer(
        200,
        {"data": {"plaintext": "!", "ciphertext": "!"}, "Plaintext": "!", "CiphertextBlob": "!", "plaintext": "!"}
        | {"value": "!", "ciphertext": "!", "name": "!"},
    ),
}


@pytest.mark.parametrize("kind", ANSWERS)
async def test_no_answer_of_a_provider_breaks_more_than_the_call(remote: Provider, kind: str) -> None:
    """Throttled, forbidden or malformed: the call fails as unavailable; nothing counts as disabled or tampered with.

    A provider behind a broken balancer must not make the gateway drop what it has in memory.
    """
    wrapped = await remote.wrapper.wrap(CONTEXT, b"d" * 32)
    assert remote.remake is not None
    broken = remote.remake(Answering(ANSWERS[kind]))
    for call in calls(broken, wrapped):
        with pytest.raises(KekUnavailable) as refused:
            await call()
        told = refused.value.public + refused.value.hint + refused.value.debug
        assert not any(word in told for word in (TOKEN, GCP_TOKEN, AZURE_TOKEN, "EXAMPLEKEY"))


class Hanging:
    """A provider that takes the request and never answers."""

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_slow_provider_can_be_given_up(remote: Provider) -> None:
    wrapped = await remote.wrapper.wrap(CONTEXT, b"d" * 32)
    assert remote.remake is not None
    for call in calls(remote.remake(Hanging()), wrapped):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call(), 0.01)


async def test_google_versions_are_told_apart() -> None:
    server = GoogleKms()
    wrapper = gcp(server)
    old = await wrapper.wrap(CONTEXT, b"d" * 32)
    server.states[2], server.primary = "ENABLED", 2
    new = await wrapper.wrap(CONTEXT, b"d" * 32)
    assert (old.kek_uri[-3:], new.kek_uri[-3:]) == ("#v1", "#v2")
    server.states[1] = "DESTROY_SCHEDULED"
    assert (await wrapper.status(old.kek_uri), await wrapper.status(new.kek_uri)) == ("disabled", "enabled")
    with pytest.raises(KekDisabled):
        await wrapper.unwrap(CONTEXT, old)
    assert await wrapper.unwrap(CONTEXT, new) == b"d" * 32


async def test_google_sums_are_checked() -> None:
    server = GoogleKms()
    wrapped = await gcp(server).wrap(CONTEXT, b"d" * 32)
    server.flips = True
    for call in calls(gcp(server), wrapped)[:2]:
        with pytest.raises(KekUnavailable, match="CRC-32C"):
            await call()


def test_crc32c_vectors() -> None:
    """RFC 3720 appendix B.4, and the check value of the CRC catalogue."""
    vectors = {b"\0" * 32: 0x8A9136AA, b"\xff" * 32: 0x62A8AB43, bytes(range(32)): 0x46DD794E, b"123456789": 0xE3069283}
    assert {data: crc32c(data) for data in vectors} == vectors


async def test_an_api_that_is_not_switched_on_is_no_disabled_key() -> None:
    message = "Cloud KMS API has not been used in this project before, or it is disabled."
    error = {"error": {"code": 400, "status": "FAILED_PRECONDITION", "message": message}}
    with pytest.raises(KekUnavailable):
        await gcp(Answering(json_answer(400, error))).unwrap(CONTEXT, Wrapped(f"gcpkms://{GCP_KEY}#v1", b"x"))


async def test_key_vault_versions_are_told_apart_and_asked_for_once_a_minute() -> None:
    server = KeyVault()
    clock = [NOW]
    wrapper = AzureKeyVault("azurekv://my-vault/llm-proxy", server, lambda _: entra_token, now=lambda: clock[0])
    old = await wrapper.wrap(CONTEXT, b"d" * 32)
    server.versions["f" * 32] = True
    assert (await wrapper.wrap(CONTEXT, b"d" * 32)).kek_uri == old.kek_uri
    clock[0] += timedelta(minutes=1)
    new = await wrapper.wrap(CONTEXT, b"d" * 32)
    assert new.kek_uri == "azurekv://my-vault.vault.azure.net/llm-proxy#" + "f" * 32
    assert server.calls.count("GET llm-proxy") == 2
    server.versions[old.kek_uri.rpartition("#")[2]] = False
    assert (await wrapper.status(old.kek_uri), await wrapper.status(new.kek_uri)) == ("disabled", "enabled")
    with pytest.raises(KekDisabled):
        await wrapper.unwrap(CONTEXT, old)
    assert await wrapper.unwrap(CONTEXT, new) == b"d" * 32


async def test_key_vault_asks_for_tokens_of_its_own_cloud() -> None:
    asked = []

    def tokens(resource: str) -> TokenSource:
        asked.append(resource)
        return entra_token

    for uri in ("azurekv://v/k", "azurekv://v.vault.azure.cn/k", "azurekv://h.managedhsm.azure.net/k"):
        AzureKeyVault(uri, KeyVault(), tokens, now=lambda: NOW)
    assert asked == ["https://vault.azure.net", "https://vault.azure.cn", "https://managedhsm.azure.net"]


async def test_a_custom_key_store_out_of_reach_is_no_disabled_key() -> None:
    server = Kms()
    wrapped = await aws(server).wrap(CONTEXT, b"d" * 32)
    server.state = "Unavailable"
    for call in calls(aws(server), wrapped):
        with pytest.raises(KekUnavailable):
            await call()
    server.state = "PendingDeletion"
    with pytest.raises(KekDisabled):
        await aws(server).unwrap(CONTEXT, wrapped)


async def test_a_vault_key_below_its_least_version_is_disabled() -> None:
    server = Transit()
    wrapper = vault(server)
    old = await wrapper.wrap(CONTEXT, b"d" * 32)
    server.latest = 2
    new = await wrapper.wrap(CONTEXT, b"d" * 32)
    assert (old.kek_uri[-3:], new.kek_uri[-3:]) == ("#v1", "#v2")
    assert await wrapper.unwrap(CONTEXT, old) == b"d" * 32
    server.least = 2
    assert await wrapper.status(old.kek_uri) == "disabled"
    assert await wrapper.status(new.kek_uri) == "enabled"
    with pytest.raises(KekDisabled):
        await wrapper.unwrap(CONTEXT, old)


async def test_a_wrong_vault_token_is_never_shown() -> None:
    """Nor is it taken for a disabled key: what is cached goes on working while the token is mended."""
    with pytest.raises(KekUnavailable) as refused:
        await vault(Transit(), "hvs.wrong").wrap(CONTEXT, b"d" * 32)
    with pytest.raises(KekUnavailable):
        await vault(Transit(), "hvs.wrong").unwrap(CONTEXT, Wrapped("x", b"vault:v1:AAAA"))
    assert "hvs" not in refused.value.public + refused.value.hint + refused.value.debug


def test_aws_requests_are_signed_as_the_aws_sdk_signs_them() -> None:
    """The signature was made with botocore for the same request."""
    headers = signed_headers(
        "https://kms.eu-central-1.amazonaws.com/",
        b'{"KeyId":"alias/llm-proxy"}',
        "TrentService.Encrypt",
        region="eu-central-1",
        credentials=CREDENTIALS,
        now=NOW,
    )
    assert headers["authorization"].rpartition("Signature=")[2] == SIGNATURE


SIGNATURE = "965c93389b9043234d1b7e82c0500857735a32d5b7b3bb99e1466a8e9596959d"


@pytest.mark.parametrize(
    "uri",
    [
        "gcpkms://projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
        "gcpkms://projects/p/k",
        "azurekv://v",
        "azurekv://user@v/k",
        "azurekv://v/k/version",
        "awskms://region",
        "vault+http://vault.example:8200/transit/k",
    ],
)
def test_malformed_uris(uri: str) -> None:
    parts = WrapperParts(
        now=lambda: NOW,
        http=Transit(),
        vault_token=lambda: Secret(TOKEN),
        aws_credentials=lambda _: fixed(CREDENTIALS),
        gcp_token=lambda: google_token,
        azure_tokens=lambda: lambda _: entra_token,
    )
    with pytest.raises(KeyringUnsafe) as refused:
        make_wrapper(uri, parts)
    assert refused.value.hint


@pytest.mark.parametrize("uri", ["vault://", "vault://host", "vault://user@host/transit/key", "vault://host/transit/"])
def test_malformed_vault_uris(uri: str) -> None:
    with pytest.raises(KeyringUnsafe, match="malformed"):
        VaultTransit(uri, Transit(), lambda: Secret(TOKEN))


async def test_two_providers_while_moving() -> None:
    old, new = LocalKeyring([bytes(range(32))]), vault(Transit())
    wrapped = await old.wrap(CONTEXT, b"d" * 32)
    moving = SeveralWrappers(new, old)
    assert await moving.unwrap(CONTEXT, wrapped) == b"d" * 32
    assert (await moving.wrap(CONTEXT, b"d" * 32)).kek_uri.startswith("vault://")
    with pytest.raises(KekDisabled, match="not configured"):
        await SeveralWrappers(new).unwrap(CONTEXT, wrapped)


def test_uris_choose_the_provider(tmp_path: Path) -> None:
    create_keyring_file(tmp_path / "keyring")
    parts = WrapperParts(
        now=lambda: NOW,
        keys=Secret(base64.b64encode(bytes(range(32))).decode()),
        http=Transit(),
        vault_token=lambda: Secret(TOKEN),
        aws_credentials=lambda _: fixed(CREDENTIALS),
        gcp_token=lambda: google_token,
        azure_tokens=lambda: lambda _: entra_token,
    )
    assert make_wrapper(f"file:{tmp_path / 'keyring'}", parts).uri.startswith("local://")
    assert make_wrapper("env", parts).uri.startswith("local://")
    assert make_wrapper("awskms://eu-central-1/alias/x", parts).uri == "awskms://eu-central-1/alias/x"
    assert make_wrapper(f"gcpkms://{GCP_KEY}", parts).uri == f"gcpkms://{GCP_KEY}#v1"
    assert make_wrapper("azurekv://v/k", parts).uri == "azurekv://v.vault.azure.net/k"
    assert make_wrapper("vault+http://127.0.0.1:8200/transit/k", parts).uri == "vault://127.0.0.1:8200/transit/k#v1"
    moving = make_wrapper("vault://v.example/transit/k, env", parts)
    assert moving.uri.startswith("vault://")
    assert moving.opens(make_wrapper("env", parts).uri)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "ftp://x",
        "gcpkms://x",
        "azurekv://v/k",
        "vault://v/transit/k",
        "awskms://r/k",
        "env",
        "file:/does/not/exist",
        "rsa:/does/not/exist",
    ],
)
def test_what_a_uri_lacks_is_said(uri: str) -> None:
    with pytest.raises(KeyringUnsafe) as refused:
        make_wrapper(uri, WrapperParts(now=lambda: NOW))
    assert refused.value.hint
