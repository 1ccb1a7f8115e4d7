"""What the gateway lets tenants choose from; passed in, because the tables of providers and strategies live above."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


class BaseUrlGuard(Protocol):
    """The check that keeps a tenant's base URL from reaching what it must not (SSRF)."""

    def check(self, url: str) -> str | None:
        """Return None for a URL that may be used, or a sentence that says what is wrong with it."""
        ...


@dataclass(frozen=True, slots=True)
class ProviderRule:
    """What a key of one provider needs: a base URL of its own, or the provider's fixed one."""

    needs_base_url: bool = False


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Providers by name, strategies by accepted name or alias (→ canonical name), and the URL guard."""

    providers: Mapping[str, ProviderRule]
    strategies: Mapping[str, str]
    base_urls: BaseUrlGuard
    default_strategy: str = "rate_limit_aware"

    def provider_problem(self, provider: str, base_url: str | None) -> tuple[str, str] | None:
        """Return (field, sentence) when this provider cannot be used like this, else None."""
        rule = self.providers.get(provider)
        if rule is None:
            return "provider", f"{provider!r} is not known; use one of {', '.join(sorted(self.providers))}"
        if base_url is None:
            return ("base_url", f"{provider} needs the base URL of your resource") if rule.needs_base_url else None
        problem = self.base_urls.check(base_url)
        return None if problem is None else ("base_url", problem)

    def strategy_problem(self, strategy: str) -> str | None:
        """Return a sentence when the strategy is not known, else None."""
        if strategy in self.strategies:
            return None
        known = sorted(set(self.strategies.values()))
        plain, modified = [name for name in known if "+" not in name], [name for name in known if "+" in name]
        such = f", or such as {modified[0]}" if modified else ""
        return f"{strategy!r} is not known; use one of {', '.join(plain)}{such}"
