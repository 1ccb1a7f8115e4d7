"""The providers: where they are, how they want the key, which API faces they speak. Adding one is adding a row.

`base_url` follows the habit of the SDKs: it may or may not end with the face's version path, and what is missing is
added. Paths are given as callers use them (`/v1/chat/completions`, `/v1/messages`, `/v1beta/models/…`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from auth.errors import Invalid
from auth.secret import Secret
from gateway.upstream.guard import EgressPolicy, check_base_url
from gateway.upstream.message import Origin, header_block

DIALECT_ROOTS: Mapping[str, str] = MappingProxyType({"openai": "/v1", "anthropic": "/v1", "gemini": "/v1beta"})
"""The path that a caller's path of each dialect begins with."""


class Credential(StrEnum):
    """How a provider wants its key."""

    BEARER = "authorization"
    X_API_KEY = "x-api-key"
    API_KEY = "api-key"
    X_GOOG_API_KEY = "x-goog-api-key"

    def header(self, secret: Secret) -> tuple[bytes, bytes]:
        """Write the credential header; ValueError when the key holds bytes that no header may carry."""
        value = secret.reveal()
        if not value.isascii() or not value.isprintable() or not value.strip():
            raise ValueError("a provider key must be printable ASCII; re-enter it without line breaks")
        prefix = "Bearer " if self is Credential.BEARER else ""
        return self.value.encode(), (prefix + value.strip()).encode()


@dataclass(frozen=True, slots=True)
class Face:
    """One API of a provider: `prefix` replaces the dialect's root in paths.

    `fill_only` adds the prefix to a bare host only: OpenAI-compatible servers put their API under any path. `defaults`
    are headers to send when the caller has not.
    """

    prefix: str
    credential: Credential = Credential.BEARER
    defaults: tuple[tuple[bytes, bytes], ...] = ()
    fill_only: bool = False


@dataclass(frozen=True, slots=True)
class Provider:
    """A row of the table; `base_url` None = the key must bring its own, `{region}` is filled with the key's region.

    `deployment_version` is the api-version added to Azure's older `/openai/deployments/{name}` base URLs.
    """

    name: str
    title: str
    base_url: str | None
    faces: Mapping[str, Face]
    hint_style: str = "generic"
    deployment_version: str = ""

    @property
    def needs_base_url(self) -> bool:
        """Tell whether a key without base URL is of no use."""
        return self.base_url is None

    @property
    def dialects(self) -> frozenset[str]:
        """The dialects a caller may use."""
        return frozenset(self.faces)


_OPENAI_V1 = {"openai": Face("/v1")}
_COMPATIBLE = {"openai": Face("/v1", fill_only=True)}
_ANTHROPIC = Face("/v1", Credential.X_API_KEY, defaults=((b"anthropic-version", b"2023-06-01"),))
_GEMINI = Face("/v1beta", Credential.X_GOOG_API_KEY)
_ROWS = (
    Provider("openai", "OpenAI", "https://api.openai.com", _OPENAI_V1, "openai"),
    Provider(
        "azure", "Azure OpenAI", None, {"openai": Face("/openai/v1", Credential.API_KEY)}, "azure",
        deployment_version="2024-10-21",
    ),
    Provider(
        "anthropic", "Anthropic", "https://api.anthropic.com", {"anthropic": _ANTHROPIC, "openai": Face("/v1")},
        "anthropic",
    ),
    Provider(
        "gemini", "Google Gemini", "https://generativelanguage.googleapis.com",
        {"gemini": _GEMINI, "openai": Face("/v1beta/openai")},
    ),
    Provider("mistral", "Mistral", "https://api.mistral.ai", _OPENAI_V1, "mistral"),
    Provider("groq", "Groq", "https://api.groq.com", {"openai": Face("/openai/v1")}, "groq"),
    Provider("xai", "xAI", "https://api.x.ai", _OPENAI_V1, "openai"),
    Provider("openrouter", "OpenRouter", "https://openrouter.ai", {"openai": Face("/api/v1")}, "openai"),
    Provider(
        "bedrock", "Amazon Bedrock", "https://bedrock-runtime.{region}.amazonaws.com", {"openai": Face("/openai/v1")},
    ),
    Provider("vllm", "vLLM", None, _COMPATIBLE),
    Provider("ollama", "Ollama", None, _COMPATIBLE),
    Provider("openai_compatible", "Any OpenAI-compatible server", None, _COMPATIBLE),
    Provider(
        "simulated", "Simulated provider", None,
        {"openai": Face("/v1"), "anthropic": _ANTHROPIC, "gemini": _GEMINI}, "openai",
    ),
)  # fmt: skip
PROVIDERS: Mapping[str, Provider] = MappingProxyType({row.name: row for row in _ROWS})

_REGION = re.compile(r"[a-z]{2,8}(?:-[a-z0-9]{1,16}){1,4}")


@dataclass(frozen=True, slots=True)
class Target:
    """A provider's face at one address, worked out once per key: `path` turns a caller's path into the target."""

    origin: Origin
    prefix: str
    query: str
    face: Face
    dialect: str
    hint_style: str

    def path(self, operation_path: str) -> bytes:
        """Rewrite a caller's path; ValueError when it does not belong to the dialect."""
        root = DIALECT_ROOTS[self.dialect]
        if not operation_path.startswith(root + "/"):
            raise ValueError(f"{self.dialect} paths begin with {root}/")
        query = ("&" if "?" in operation_path else "?") + self.query if self.query else ""
        return (self.prefix + operation_path[len(root) :] + query).encode("ascii")

    def credential_block(self, secret: Secret) -> bytes:
        """Write the credential header for `UpstreamRequest.fixed`."""
        return header_block((self.face.credential.header(secret),))


def resolve(
    provider_name: str, dialect: str, *, base_url: str | None = None, region: str | None = None, policy: EgressPolicy
) -> Target:
    """Work out where a key's requests go; Invalid or UnsafeUrl tells the key's owner what to mend."""
    provider = PROVIDERS.get(provider_name)
    if provider is None:
        raise Invalid(f"provider {provider_name!r} is unknown", hint=f"Use one of: {', '.join(PROVIDERS)}.")
    face = provider.faces.get(dialect)
    if face is None:
        raise Invalid(
            f"{provider.title} does not speak the {dialect} API",
            hint=f"It speaks: {', '.join(sorted(provider.faces))}.",
        )
    url = base_url or provider.base_url
    if url is None:
        raise Invalid(f"a key of {provider.title} needs base_url", hint="Give the address of your server or resource.")
    if "{region}" in url:
        if not region or not _REGION.fullmatch(region):
            raise Invalid(f"a key of {provider.title} needs region", hint="Give it as in us-east-1.")
        url = url.replace("{region}", region)
    base = check_base_url(url, policy)
    prefix, query = base.path, base.query
    if provider.deployment_version and "/openai/deployments/" in prefix:
        query = query or f"api-version={provider.deployment_version}"
    elif not prefix or (not face.fill_only and not prefix.endswith(face.prefix)):
        prefix += face.prefix
    return Target(base.origin, prefix, query, face, dialect, provider.hint_style)


TOKEN_BETA: Mapping[str, bytes] = MappingProxyType({"anthropic": b"oauth-2025-04-20"})
"""The `anthropic-beta` flag without which Anthropic's API takes no federated token."""


def with_token(target: Target) -> Target:
    """Return the target for a short-lived token in place of a key: that is always sent as a bearer."""
    return replace(target, face=replace(target.face, credential=Credential.BEARER))


def target_for(
    provider: str,
    base_url: str | None,
    dialect: str,
    operation_path: str,
    *,
    policy: EgressPolicy,
    region: str | None = None,
) -> tuple[Origin, bytes]:
    """Return origin and target of one call; whoever makes many keeps the `Target` of `resolve` instead."""
    target = resolve(provider, dialect, base_url=base_url, region=region, policy=policy)
    return target.origin, target.path(operation_path)
