"""The provider's books: its keys, the quotas they draw on, and what each key was used for."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from gateway.balancing.outcome import TokenUsage
from gateway.balancing.quota import Limits
from gateway.simulation.config import KeyConfig, ProviderConfig
from gateway.simulation.faults import FaultPlan
from gateway.simulation.limits.model import LimitModel
from gateway.simulation.limits.registry import make_limit_model
from gateway.simulation.wire import Dialect

_LOG_LENGTH = 1_000


@dataclass(slots=True)
class KeyUse:
    """What one key was used for since the last reset; `by_status` counts answers that got a head."""

    requests: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    streams: int = 0
    caller_left: int = 0
    faulted: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    by_status: Counter[int] = field(default_factory=Counter)

    def charge(self, usage: TokenUsage) -> None:
        """Add the tokens of one answer."""
        self.input_tokens += usage.input
        self.output_tokens += usage.output
        self.cached_tokens += usage.cached_input

    def view(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        numbers = {name: getattr(self, name) for name in self.__slots__ if name != "by_status"}
        return {**numbers, "by_status": {str(status): count for status, count in sorted(self.by_status.items())}}


@dataclass(slots=True)
class Key:
    """One key and its state; refused before `works_from` (Unix seconds), as new keys are, and from `works_until` on."""

    config: KeyConfig
    faults: FaultPlan
    revoked: bool
    works_from: float = 0.0
    works_until: float = inf
    use: KeyUse = field(default_factory=KeyUse)


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it arrived: header *names* only, never a credential."""

    request_id: str
    key: str | None
    method: str
    path: str
    model: str
    streamed: bool
    headers: tuple[str, ...]
    status: int


class Ledger:
    """Finds keys by secret, quotas by key and dialect, and keeps the counts. Not thread-safe by itself."""

    def __init__(self, config: ProviderConfig) -> None:
        self._by_secret: dict[str, Key] = {}
        self._limits: dict[str, Limits] = {}
        self._quotas: dict[tuple[str, str], LimitModel] = {}
        self.log: deque[Seen] = deque(maxlen=_LOG_LENGTH)
        self.unknown_key_requests = 0
        for key in config.keys:
            self.put(key)

    @property
    def keys(self) -> Mapping[str, Key]:
        """Return the keys by name."""
        return {key.config.name: key for key in self._by_secret.values()}

    def put(self, config: KeyConfig) -> None:
        """Add a key, or replace the one with the same name; its counts stay. Raises ValueError for a secret in use."""
        holder = self._by_secret.get(config.secret)
        if holder is not None and holder.config.name != config.name:
            raise ValueError(f"this secret belongs to the key {holder.config.name!r}")
        former = self.keys.get(config.name)
        if former is not None:
            del self._by_secret[former.config.secret]
        key = Key(config, FaultPlan(config.faults), config.revoked)
        if former is not None:
            key.use = former.use
        self._by_secret[config.secret] = key
        self._limits.setdefault(config.quota, config.limits)

    def find(self, secret: str) -> Key | None:
        """Return the key of a secret, revoked or not."""
        return self._by_secret.get(secret)

    def quota(self, key: Key, dialect: Dialect) -> LimitModel:
        """Return the limits that a call draws on; each dialect of an "auto" key is a quota of its own."""
        auto = key.config.style == "auto"
        style = dialect.value if auto else key.config.style
        name = key.config.quota
        model = self._quotas.get((name, style))
        if model is None:
            model = make_limit_model(style, self._limits[name], organisation=name, models_share=auto)
            self._quotas[name, style] = model
        return model

    def resize(self, quota: str, limits: Limits, now: float) -> bool:
        """Change a quota's limits while in use; False when no key draws on it."""
        if quota not in self._limits:
            return False
        self._limits[quota] = limits
        for (name, _), model in self._quotas.items():
            if name == quota:
                model.resize(limits, now)
        return True

    def reset(self) -> None:
        """Forget all counts, quota levels and the log; keys and faults stay."""
        for key in self._by_secret.values():
            # In-flight requests keep counting down the object that they started with.
            key.use = KeyUse()
        self._quotas.clear()
        self.log.clear()
        self.unknown_key_requests = 0

    def view(self) -> dict[str, Any]:
        """Return everything that is counted, by key name, without a secret."""
        return {
            "keys": {
                name: {
                    "organisation": key.config.quota,
                    "revoked": key.revoked,
                    "faults": [fault.kind.value for fault in key.faults.faults],
                    **key.use.view(),
                }
                for name, key in self.keys.items()
            },
            "unknown_key_requests": self.unknown_key_requests,
        }
