"""What a simulated provider is made of: its keys, what they draw on, its models and its speed."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal

import msgspec

from gateway.balancing.quota import Limits
from gateway.simulation.faults import Fault
from gateway.simulation.trust import Trusted

Style = Literal["auto", "openai", "azure", "anthropic", "gemini", "mistral", "groq", "bedrock", "opaque"]
_DEV_KEYS = (("primary", 3_000), ("secondary", 2_000), ("tertiary", 1_000))


class KeyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One key: `secret` is what callers send, `name` what counters are kept under.

    `organisation` is the quota it draws on: keys that name the same one share its limits (those of the first key that
    names it count); empty = the key has a quota of its own. `style` says whose limit semantics; "auto" takes those of
    the API face that is called, with one limit for all models together.
    """

    secret: str
    name: str
    organisation: str = ""
    style: Style = "auto"
    limits: Limits = Limits()
    faults: tuple[Fault, ...] = ()
    revoked: bool = False

    def __post_init__(self) -> None:
        if not self.secret or not self.name:
            raise ValueError("a key needs a `secret` and a `name`")

    @property
    def quota(self) -> str:
        """Return the name of the quota that the key draws on."""
        return self.organisation or f"org-{self.name}"


class Latency(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Seconds: `first_byte_s` until the head, `per_token_s` for each token, both times 1 ± `jitter`."""

    first_byte_s: float = 0.005
    per_token_s: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.first_byte_s < 0 or self.per_token_s < 0 or not 0 <= self.jitter <= 1:
            raise ValueError("latencies are 0 or more seconds, `jitter` is a share from 0 to 1")


class ProviderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole provider. `models` are listed by GET /v1/models; those with a `*` only match.

    `answer_tokens` fixes the length of every prose answer (None: it depends on the prompt). `admin_secret` is the
    credential of the admin APIs; a key that they make is refused for its first `works_after_s` seconds.
    `trusted_issuers` may have their assertions exchanged for tokens.
    """

    keys: tuple[KeyConfig, ...]
    latency: Latency = Latency()
    models: tuple[str, ...] = (
        "gpt-4o",
        "gpt-4o-mini",
        "gpt-4.1",
        "gpt-5",
        "claude-sonnet-5",
        "claude-haiku-5-5",
        "gemini-2.5-flash",
        "text-embedding-3-small",
        "gpt-*",
        "o[0-9]*",
        "claude-*",
        "gemini-*",
        "text-embedding-*",
        "*moderation-*",
        "dall-e-*",
        "whisper-*",
        "tts-*",
        "sim-*",
    )
    answer_tokens: int | None = None
    admin_secret: str = "sim-admin-key"  # noqa: S105 - of a simulation
    works_after_s: float = 0.0
    trusted_issuers: tuple[Trusted, ...] = ()
    max_body_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        for what, values in (("name", [k.name for k in self.keys]), ("secret", [k.secret for k in self.keys])):
            if len(set(values)) < len(values):
                raise ValueError(f"two keys have the same `{what}`")

    def serves(self, model: str) -> bool:
        """Tell whether the provider knows a model."""
        return any(model == glob or fnmatchcase(model, glob) for glob in self.models)

    @property
    def listed_models(self) -> tuple[str, ...]:
        """Return the models with a plain name."""
        return tuple(name for name in self.models if not any(sign in name for sign in "*?["))


def development_config(latency: Latency | None = None) -> ProviderConfig:
    """Return the provider of `llm-proxy dev`: three keys of 3,000, 2,000 and 1,000 requests a minute."""
    keys = tuple(
        KeyConfig(secret=f"sim-key-{name}", name=name, limits=Limits(rpm=rpm, tpm=rpm * 1_000))
        for name, rpm in _DEV_KEYS
    )
    return ProviderConfig(keys=keys, latency=latency or Latency())


def load_config(data: bytes) -> ProviderConfig:
    """Read a configuration from JSON; raises ValueError that names the offending field."""
    try:
        return msgspec.json.decode(data, type=ProviderConfig)
    except msgspec.MsgspecError as error:
        raise ValueError(f"the simulated provider's configuration is not usable: {error}") from error
