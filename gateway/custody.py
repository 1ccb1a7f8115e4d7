"""Makes what custody needs from the settings: key-encryption keys, tenants' shares, the client secrets' peppers."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from auth.secret import Secret
from gateway.cloud_identity import aws_credentials, azure_tokens, gcp_token
from tenants.datakeys import DataKeys
from tenants.errors import KeyringUnsafe
from tenants.keyring import KeyWrapper
from tenants.shares.files import FileShares
from tenants.shares.layer import ShareLayer
from tenants.shares.protocol import ShareStore
from tenants.shares.vault import VaultShares
from tenants.spare import NO_SPARE, SpareKek
from tenants.wrappers.choose import WrapperParts, make_wrapper, vault_scheme
from tenants.wrappers.renewal import read_identity

if TYPE_CHECKING:
    from auth.storage import Connections
    from gateway.settings import Settings
    from tenants.sources.protocol import HttpCalls


def make_keks(settings: Settings, http: HttpCalls) -> KeyWrapper:
    """Build the provider that LLM_PROXY_KEK names, under the tenants' shares if there are any.

    `http` reaches a KMS; `KeyringUnsafe` with the mend.
    """
    if settings.kek is None:
        raise KeyringUnsafe(
            "LLM_PROXY_KEK is not set.", hint="Set it to file:PATH of a keyring with mode 0600, env, or a KMS."
        )
    return ShareLayer(make_wrapper(settings.kek, _parts(settings, http)), make_shares(settings, http))


def make_spare(settings: Settings, http: HttpCalls, uri: str | None = None) -> SpareKek:
    """Build the break-glass KEK that LLM_PROXY_KEK_SPARE names, or `uri` in its place."""
    place = uri or settings.kek_spare
    if place is None:
        return NO_SPARE
    if place == "none":
        return SpareKek(clear=True)
    return SpareKek(ShareLayer(make_wrapper(place, _parts(settings, http)), make_shares(settings, http)))


def make_shares(settings: Settings, http: HttpCalls) -> ShareStore | None:
    """Build the store that LLM_PROXY_KEK_SHARES names."""
    if settings.kek_shares is None:
        return None
    if settings.kek_shares.startswith("file:"):
        return FileShares(Path(settings.kek_shares.removeprefix("file://").removeprefix("file:")))
    token = _vault_token(settings)
    if token is None:
        raise KeyringUnsafe("A Vault token is needed.", hint="Set VAULT_TOKEN, or LLM_PROXY_VAULT_TOKEN_PATH.")
    place, scheme = vault_scheme(settings.kek_shares)
    return VaultShares(place, http, token, scheme=scheme)


def make_data_keys(settings: Settings, connections: Connections, http: HttpCalls) -> DataKeys:
    """Build the data keys over all of these."""
    return DataKeys(connections, make_keks(settings, http), spare=make_spare(settings, http))


def _parts(settings: Settings, http: HttpCalls) -> WrapperParts:
    return WrapperParts(
        now=lambda: datetime.now(UTC),
        keys=settings.kek_keys,
        http=http,
        vault_token=_vault_token(settings),
        aws_credentials=lambda region: aws_credentials(settings, http, region),
        aws_endpoint=None if settings.aws_kms_url is None else f"{settings.aws_kms_url}/",
        gcp_token=lambda: gcp_token(settings, http),
        azure_tokens=lambda: azure_tokens(settings, http),
    )


def _vault_token(settings: Settings) -> Callable[[], Secret] | None:
    path, fixed = settings.vault_token_path, settings.vault_token
    if path is not None:
        return lambda: Secret(read_identity(path))
    return None if fixed is None else lambda: fixed


def parse_peppers(given: Secret | None) -> Mapping[int, bytes]:
    """Read `version:base64,…`; `ValueError` says what is wrong with it."""
    if given is None:
        raise ValueError('is not set: make one with echo "1:$(openssl rand -base64 32)".')
    peppers: dict[int, bytes] = {}
    for position, entry in enumerate(given.reveal().replace("\n", ",").split(","), start=1):
        if not entry.strip():
            continue
        version, colon, encoded = entry.strip().partition(":")
        if not colon or not version.isdecimal() or int(version) < 1:
            raise ValueError(f"entry {position} is not version:base64; versions start at 1.")
        try:
            key = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) < 32 or len(set(key)) < 8:
            raise ValueError(f"entry {position} is not 32 random bytes in base64: use openssl rand -base64 32.")
        if int(version) in peppers:
            raise ValueError(f"names version {version} twice.")
        peppers[int(version)] = key
    if not peppers:
        raise ValueError("is empty.")
    return peppers
