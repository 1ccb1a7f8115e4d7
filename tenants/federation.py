"""Keys that are not stored: a token of this gateway's own issuer is exchanged for a provider's short-lived one.

    OpenAI       POST https://auth.openai.com/oauth/token        RFC 8693, JSON
    Anthropic    POST https://api.anthropic.com/v1/oauth/token   RFC 7523 JWT bearer grant, JSON
    OpenRouter   POST https://openrouter.ai/api/v1/oauth/token   RFC 8693, form

The provider is told once to trust the issuer (`iss`, its JWKS) for one audience and subject. The subject names the
tenant and the source, and no tenant can choose it: trust in one tenant's subject is of no use to another. Imports
nothing that a data path process would not load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal
from urllib.parse import urlencode
from uuid import UUID

import msgspec
from msgspec import Struct

from auth.secret import Secret
from tenants.sources.json_calls import judged
from tenants.sources.protocol import HttpCalls, SourceAway, SourceRefused

ASSERTION_LIFETIME_S: Final = 600
"""OpenRouter's tokens live no longer than what they were exchanged for."""
ASSERTION_TYPE: Final = "JWT"
"""Never `at+jwt`: an assertion is no access token of this gateway (RFC 8725 section 3.11)."""
SHORTEST_S: Final = 30.0

_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
_BEARER_GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_JWT: Final = "urn:ietf:params:oauth:token-type:jwt"
_ANTHROPIC_BETA: Final = "oauth-2025-04-20,oidc-federation-2026-04-01"

ProviderName = Literal["openai", "anthropic", "openrouter"]


class FederatedSettings(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the provider's console shows once the issuer is trusted there; which ids are needed depends on `provider`.

    `audience` is what the provider expects in `aud`. `algorithm`: sign with this one instead of the issuer's default.
    """

    provider: ProviderName
    audience: str | None = None
    identity_provider_id: str | None = None
    service_account_id: str | None = None
    federation_rule_id: str | None = None
    organization_id: str | None = None
    workspace_id: str | None = None
    federation_policy_id: str | None = None
    algorithm: Literal["ES256", "RS256"] | None = None
    token_url: str | None = None


@dataclass(frozen=True, slots=True)
class _Rule:
    token_url: str
    audience: str
    needs: tuple[str, ...]
    may: tuple[str, ...] = ()


_RULES: Final[Mapping[str, _Rule]] = MappingProxyType(
    {
        "openai": _Rule(
            "https://auth.openai.com/oauth/token",
            "https://api.openai.com/v1",
            ("identity_provider_id", "service_account_id"),
        ),
        "anthropic": _Rule(
            "https://api.anthropic.com/v1/oauth/token",
            "https://api.anthropic.com",
            ("federation_rule_id", "organization_id", "service_account_id"),
            ("workspace_id",),
        ),
        "openrouter": _Rule(
            "https://openrouter.ai/api/v1/oauth/token", "https://openrouter.ai", ("federation_policy_id",)
        ),
    }
)
_IDS: Final = tuple(sorted({name for rule in _RULES.values() for name in (*rule.needs, *rule.may)}))


@dataclass(frozen=True, slots=True)
class Token:
    """A provider's short-lived token, `lifetime_s` from now."""

    secret: Secret
    lifetime_s: float


class _Answer(Struct):
    access_token: str
    expires_in: float


def settings_problem(settings: FederatedSettings) -> str | None:
    """Return a sentence about ids that are missing or have no meaning for the provider, else None."""
    rule = _RULES[settings.provider]
    given = {name for name in _IDS if getattr(settings, name)}
    missing = [name for name in rule.needs if name not in given]
    if missing:
        return f"a federated source of {settings.provider} needs {', '.join(missing)}"
    foreign = sorted(given - {*rule.needs, *rule.may})
    if foreign:
        return f"{', '.join(foreign)} has no meaning for {settings.provider}"
    return None


def subject_of(tenant_id: UUID, source_id: UUID) -> str:
    """Return the `sub` of a source's assertions: what the provider is told to trust."""
    return f"tenant:{tenant_id}:source:{source_id}"


def audience_of(settings: FederatedSettings) -> str:
    """Return the `aud` of the assertions."""
    return settings.audience or _RULES[settings.provider].audience


def claims_of(
    settings: FederatedSettings, *, issuer: str, tenant_id: UUID, source_id: UUID, token_id: str, now: float
) -> dict[str, Any]:
    """Return the claims of one assertion."""
    issued_at = int(now)
    return {
        "iss": issuer,
        "sub": subject_of(tenant_id, source_id),
        "aud": audience_of(settings),
        "tenant_id": str(tenant_id),
        "iat": issued_at,
        "exp": issued_at + ASSERTION_LIFETIME_S,
        "jti": token_id,
    }


async def exchange(http: HttpCalls, settings: FederatedSettings, assertion: str) -> Token:
    """Exchange an assertion for a token; `SourceAway` when that may work later, `SourceRefused` when it will not."""
    url = settings.token_url or _RULES[settings.provider].token_url
    headers = {"accept": "application/json"}
    if settings.provider == "openrouter":
        headers["content-type"] = "application/x-www-form-urlencoded"
        body = urlencode(_subject_token(assertion) | _given(settings, "federation_policy_id")).encode()
    else:
        headers["content-type"] = "application/json"
        document = _subject_token(assertion) | _given(settings, "identity_provider_id", "service_account_id")
        if settings.provider == "anthropic":
            headers["anthropic-beta"] = _ANTHROPIC_BETA
            ids = _given(settings, "federation_rule_id", "organization_id", "service_account_id", "workspace_id")
            document = {"grant_type": _BEARER_GRANT, "assertion": assertion, **ids}
        body = msgspec.json.encode(document)
    answer = judged(await http.call("POST", url, headers=headers, body=body), "the token exchange")
    try:
        told = msgspec.json.decode(answer.body, type=_Answer, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise SourceAway("the token exchange answered with something else than a token") from None
    if not told.access_token or told.expires_in < SHORTEST_S:
        raise SourceRefused(f"the token exchange gave a token of {told.expires_in:g} s, which is too short to use")
    return Token(Secret(told.access_token), told.expires_in)


def _subject_token(assertion: str) -> dict[str, str]:
    return {"grant_type": _EXCHANGE, "subject_token": assertion, "subject_token_type": _JWT}


def _given(settings: FederatedSettings, *names: str) -> dict[str, str]:
    return {name: value for name in names if (value := getattr(settings, name))}
