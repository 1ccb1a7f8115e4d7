"""What a provider key looks like: enough to catch a paste gone wrong and to guess whose key it is. Pure.

The same rules as for the gateway's pool files, so that one file serves both; a test holds the two together.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final

NAME_RULE: Final = "must be 1 to 63 letters, digits, dots, underscores or hyphens, and start with a letter or digit"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

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
"""Words in a key's name that say whose it is, beside the names of the table of providers itself."""


def is_name(value: str) -> bool:
    """Tell whether `value` may name a pool or a key."""
    return _NAME.fullmatch(value) is not None


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
    if not 8 <= len(value) <= 8192:
        return "must be 8 to 8192 characters long; paste the whole key"
    return None


def provider_by_key(value: str) -> str | None:
    """Return the provider whose keys begin like this, or None when several do."""
    return next((provider for prefix, provider in KEY_PREFIXES.items() if value.startswith(prefix)), None)


def provider_by_name(name: str, known: Collection[str]) -> str | None:
    """Return the provider that a key's name begins with (`openai-primary`, `azure_eu`), or None."""
    for word in name.lower().replace("_", "-").replace(".", "-").replace(" ", "-").split("-"):
        if word in known:
            return word
        if word in NAME_WORDS:
            return NAME_WORDS[word]
    return None
