"""The drivers by name, and how a stored source becomes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from auth.secret import Secret
from tenants.federation import FederatedSettings
from tenants.sources.aws import AwsDriver, AwsSettings
from tenants.sources.azure import AzureDriver, AzureSettings
from tenants.sources.federated import FederatedDriver, Identity
from tenants.sources.gcp import GcpDriver, GcpSettings
from tenants.sources.manual import ManualDriver, ManualSettings
from tenants.sources.openai import OpenAIDriver, OpenAISettings
from tenants.sources.openrouter import OpenRouterDriver, OpenRouterSettings
from tenants.sources.protocol import CredentialRefused, Driver, HttpAnswer, HttpCalls, SourceRefused
from tenants.sources.webhook import WebhookDriver, WebhookSettings
from tenants.sources.xai import XaiDriver, XaiSettings

SETTINGS: Final[Mapping[str, type[msgspec.Struct]]] = MappingProxyType(
    {
        "openai": OpenAISettings,
        "openrouter": OpenRouterSettings,
        "xai": XaiSettings,
        "azure": AzureSettings,
        "aws": AwsSettings,
        "gcp": GcpSettings,
        "webhook": WebhookSettings,
        "federated": FederatedSettings,
        "manual": ManualSettings,
    }
)
"""What each driver's settings look like."""

NEEDS_CREDENTIAL: Final = frozenset(SETTINGS) - {"manual", "federated"}
OWN_CREDENTIAL: Final = frozenset({"aws", "gcp"})
"""Drivers whose admin credential does not look like a key; they check it themselves."""
TURNS: Final = frozenset({"azure", "aws"})
"""Drivers of accounts with two keys: a source is one key's alone."""
KEYLESS: Final = frozenset({"federated"})
"""Drivers whose keys have no secret."""


def mints(driver: str) -> bool:
    """Tell whether sources of a driver make keys."""
    return driver not in {"manual", *KEYLESS}


def makes_many(driver: str) -> bool:
    """Tell whether a source of a driver makes any number of keys, rather than none or two that take turns."""
    return mints(driver) and driver not in TURNS


class NoCalls:
    """Stands in for HTTP where a driver is only built, to see whether its settings fit."""

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        """Refuse."""
        del headers, body
        raise LookupError(f"{method} {url}: no calls are made from here")


def settings_refusal(name: str, config: Mapping[str, Any], credential: Secret | None) -> tuple[str, str] | None:
    """Return (JSON pointer, sentence) that says why no driver can be made of these, else None."""
    try:
        make_driver(name, config, credential, http=NoCalls(), now_unix=lambda: 0.0)
    except CredentialRefused as refused:
        return "/credential", str(refused)
    except SourceRefused as refused:
        return "/config", f"does not fit: {refused}"
    return None


def make_driver(
    name: str,
    config: Mapping[str, Any],
    credential: Secret | None,
    *,
    http: HttpCalls,
    now_unix: Callable[[], float],
    identity: Identity | None = None,
) -> Driver:
    """Build a driver; `SourceRefused` for an unknown name, settings that do not fit, or a missing credential.

    `identity` is what keyless drivers present in place of a credential.
    """
    if name not in SETTINGS:
        raise SourceRefused(f"there is no driver {name}; use one of {', '.join(sorted(SETTINGS))}")
    try:
        settings = msgspec.convert(dict(config), SETTINGS[name])
    except msgspec.ValidationError as error:
        raise SourceRefused(f"the settings of the {name} source do not fit: {error}") from None
    if isinstance(settings, ManualSettings):
        return ManualDriver(settings, credential, http)
    if isinstance(settings, FederatedSettings):
        return FederatedDriver(settings, http, now_unix, identity)
    if credential is None:
        raise SourceRefused(f"a {name} source needs an admin credential")
    match settings:
        case OpenAISettings():
            return OpenAIDriver(settings, credential, http)
        case OpenRouterSettings():
            return OpenRouterDriver(settings, credential, http)
        case XaiSettings():
            return XaiDriver(settings, credential, http)
        case AzureSettings():
            return AzureDriver(settings, credential, http)
        case AwsSettings():
            return AwsDriver(settings, credential, http, now_unix)
        case GcpSettings():
            return GcpDriver(settings, credential, http, now_unix)
        case WebhookSettings():
            return WebhookDriver(settings, credential, http, now_unix)
    raise LookupError(f"the driver {name} is listed and not built")
