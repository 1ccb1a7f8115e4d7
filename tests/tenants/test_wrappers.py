"""One contract for every KEK provider, and what is special about each."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from auth.secret import Secret
from tenants.errors import KekDisabled, KekUnavailable, KeyringUnsafe, SealBroken
from tenants.keyring import KeyWrapper, LocalKeyring, Wrapped, create_keyring_file
from tenants.wrappers.aws import AwsCredentials, AwsKms, signed_headers
from tenants.wrappers.choose import WrapperParts, make_wrapper
from tenants.wrappers.several import SeveralWrappers
from tenants.wrappers.vault import VaultTransit
from tests.tenants.kms_servers import TOKEN, Kms, Transit

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CONTEXT = ("data-key", "tenant", "id")
CREDENTIALS = AwsCredentials("AKIDEXAMPLE", Secret("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"), Secret("token"))


@dataclass
class Provider:
    wrapper: KeyWrapper
    disable: Callable[[], None]
    leave: Callable[[], None]


def vault(server: Transit, token: str = TOKEN) -> VaultTransit:
    return VaultTransit("vault://vault.example:8200/transit/llm-proxy", server, lambda: Secret(token))


def make(name: str) -> Provider:
    if name == "vault":
        transit = Transit()
        return Provider(
            vault(transit), lambda: setattr(transit, "deleted", True), lambda: setattr(transit, "away", True)
        )
    if name == "aws":
        kms = Kms()
        wrapper = AwsKms("awskms://eu-central-1/alias/llm-proxy", kms, lambda: CREDENTIALS, now=lambda: NOW)
        return Provider(wrapper, lambda: setattr(kms, "state", "Disabled"), lambda: setattr(kms, "away", True))
    keyring = LocalKeyring([bytes(range(32))])
    if name == "several":
        return Provider(SeveralWrappers(keyring), lambda: keyring.disable(keyring.uri), lambda: None)
    return Provider(keyring, lambda: keyring.disable(keyring.uri), lambda: None)


@pytest.fixture(params=["local", "several", "vault", "aws"])
def provider(request: pytest.FixtureRequest) -> Provider:
    return make(request.param)


async def test_what_was_wrapped_unwraps_in_its_context_only(provider: Provider) -> None:
    wrapper = provider.wrapper
    wrapped = await wrapper.wrap(CONTEXT, b"d" * 32)
    assert wrapper.opens(wrapped.kek_uri)
    assert not wrapper.opens("local://000000000000")
    assert b"d" * 32 not in wrapped.blob
    assert await wrapper.unwrap(CONTEXT, wrapped) == b"d" * 32
    assert await wrapper.status(wrapped.kek_uri) == "enabled"
    for context in (("data-key", "other", "id"), ("data-keytenant", "id"), ()):
        with pytest.raises(SealBroken):
            await wrapper.unwrap(context, wrapped)
    with pytest.raises(SealBroken):
        await wrapper.unwrap(CONTEXT, Wrapped(wrapped.kek_uri, wrapped.blob[:-1] + b"!"))


async def test_a_disabled_key_says_so(provider: Provider) -> None:
    wrapped = await provider.wrapper.wrap(CONTEXT, b"d" * 32)
    provider.disable()
    assert await provider.wrapper.status(wrapped.kek_uri) == "disabled"
    with pytest.raises(KekDisabled):
        await provider.wrapper.unwrap(CONTEXT, wrapped)


@pytest.mark.parametrize("name", ["vault", "aws"])
async def test_a_provider_that_is_away_is_not_a_disabled_key(name: str) -> None:
    provider = make(name)
    wrapped = await provider.wrapper.wrap(CONTEXT, b"d" * 32)
    provider.leave()
    with pytest.raises(KekUnavailable):
        await provider.wrapper.unwrap(CONTEXT, wrapped)
    with pytest.raises(KekUnavailable):
        await provider.wrapper.status(wrapped.kek_uri)


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
        aws_credentials=lambda: CREDENTIALS,
    )
    assert make_wrapper(f"file:{tmp_path / 'keyring'}", parts).uri.startswith("local://")
    assert make_wrapper("env", parts).uri.startswith("local://")
    assert make_wrapper("awskms://eu-central-1/alias/x", parts).uri == "awskms://eu-central-1/alias/x"
    moving = make_wrapper("vault://v.example/transit/k, env", parts)
    assert moving.uri.startswith("vault://")
    assert moving.opens(make_wrapper("env", parts).uri)


@pytest.mark.parametrize(
    "uri", ["", "gcpkms://x", "vault://v/transit/k", "awskms://r/k", "env", "file:/does/not/exist"]
)
def test_what_a_uri_lacks_is_said(uri: str) -> None:
    with pytest.raises(KeyringUnsafe) as refused:
        make_wrapper(uri, WrapperParts(now=lambda: NOW))
    assert refused.value.hint
