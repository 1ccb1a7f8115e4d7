"""Makes what custody needs from the settings: the key-encryption keys' provider and the client secrets' peppers."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from auth.secret import Secret
from tenants.errors import KeyringUnsafe
from tenants.keyring import KeyWrapper
from tenants.wrappers.aws import AwsCredentials
from tenants.wrappers.choose import WrapperParts, make_wrapper

if TYPE_CHECKING:
    from gateway.settings import Settings
    from tenants.sources.protocol import HttpCalls


def make_keks(settings: Settings, http: HttpCalls) -> KeyWrapper:
    """Build the provider that LLM_PROXY_KEK names; `KeyringUnsafe` with the mend. `http` reaches a KMS."""
    if settings.kek is None:
        raise KeyringUnsafe(
            "LLM_PROXY_KEK is not set.", hint="Set it to file:PATH of a keyring with mode 0600, env, or a KMS."
        )
    return make_wrapper(
        settings.kek,
        WrapperParts(
            now=lambda: datetime.now(UTC),
            keys=settings.kek_keys,
            http=http,
            vault_token=_vault_token(settings),
            aws_credentials=_aws_credentials(settings),
        ),
    )


def _vault_token(settings: Settings) -> Callable[[], Secret] | None:
    path, fixed = settings.vault_token_path, settings.vault_token
    if path is not None:
        return lambda: Secret(path.read_text().strip())  # read anew each time: an agent renews it
    return None if fixed is None else lambda: fixed


def _aws_credentials(settings: Settings) -> Callable[[], AwsCredentials] | None:
    key_id, secret, session = settings.aws_access_key_id, settings.aws_secret_access_key, settings.aws_session_token
    if key_id is None or secret is None:
        return None
    return lambda: AwsCredentials(key_id, secret, session)


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
