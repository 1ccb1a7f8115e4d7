"""What a provider key looks like: enough to catch a paste gone wrong and to guess whose key it is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

MIN_CHARACTERS: Final = 8
MAX_CHARACTERS: Final = 8192

KEY_PREFIXES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "sk-ant-": "anthropic",
        "sk-or-": "openrouter",
        "sk-proj-": "openai",
        "sk-svcacct-": "openai",
        "gsk_": "groq",
        "AIza": "gemini",
        "AQ.": "gemini",
        "xai-": "xai",
        "ABSK": "bedrock",
    }
)
"""The beginnings that only one provider's keys have. A bare `sk-` is used by several."""

NAME_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "openai": "openai",
        "azure": "azure",
        "anthropic": "anthropic",
        "claude": "anthropic",
        "gemini": "gemini",
        "google": "gemini",
        "mistral": "mistral",
        "groq": "groq",
        "openrouter": "openrouter",
        "bedrock": "bedrock",
        "aws": "bedrock",
        "vllm": "vllm",
        "ollama": "ollama",
        "xai": "xai",
        "grok": "xai",
        "simulated": "simulated",
    }
)
"""Words in a key's name that say whose it is, beside the names of the catalogue itself."""


def key_problem(value: str) -> str | None:
    """Return a sentence when `value` cannot be a provider key, else None; the sentence never shows the value."""
    if not value:
        return "is empty; paste the provider's key"
    if value.strip() != value or any(character.isspace() for character in value):
        return "contains spaces or line ends; paste the key alone"
    if not value.isascii() or not value.isprintable():
        return "contains characters that no provider key has; paste the key alone"
    if value.lower().startswith("bearer"):
        return "starts with 'Bearer'; leave that word out"
    if value.startswith(("$", "<", "{")) or value.endswith("..."):
        return "is a placeholder; put the key itself here"
    if not MIN_CHARACTERS <= len(value) <= MAX_CHARACTERS:
        return f"must be {MIN_CHARACTERS} to {MAX_CHARACTERS} characters long; paste the whole key"
    return None


def provider_by_key(value: str) -> str | None:
    """Return the provider whose keys begin like this, or None when several do."""
    return next((provider for prefix, provider in KEY_PREFIXES.items() if value.startswith(prefix)), None)


def provider_by_name(name: str, known: Mapping[str, object]) -> str | None:
    """Return the provider that a key's name begins with (`openai-primary`, `azure_eu`), or None."""
    words = name.lower().replace("_", "-").replace(".", "-").replace(" ", "-").split("-")
    for word in words:
        if word in known:
            return word
        if word in NAME_WORDS:
            return NAME_WORDS[word]
    return None
