"""A catalogue as the gateway would pass it in."""

from __future__ import annotations

from tenants.catalogue import Catalogue, ProviderRule


class LoopbackRefused:
    """A base URL guard that knows one bad host."""

    def check(self, url: str) -> str | None:
        if "169.254" in url:
            return "points to a link-local address; use the provider's public address"
        return None if url.startswith(("https://", "http://")) else "must start with https://"


CATALOGUE = Catalogue(
    providers={
        "openai": ProviderRule(),
        "anthropic": ProviderRule(),
        "gemini": ProviderRule(),
        "groq": ProviderRule(),
        "mistral": ProviderRule(),
        "openrouter": ProviderRule(),
        "azure": ProviderRule(needs_base_url=True),
        "vllm": ProviderRule(needs_base_url=True),
    },
    strategies={
        "weighted": "weighted",
        "weighted_round_robin": "weighted",
        "round_robin": "round_robin",
        "rate_limit_aware": "rate_limit_aware",
    },
    base_urls=LoopbackRefused(),
)
