"""Reads the familiar pool file and plans the pool that it means. Pure.

    {"providers": [{"name": "openai-primary", "api_key": "…", "weight": 50, "rate_limit": 3000}, …],
     "strategy": "weighted_round_robin", "failover": true, "fallbacks": [{"pool": "azure"}]}

`rate_limit` is requests a minute, or an object of limits. The provider is `provider`, or else what the key's name or
beginning says. Every problem of the whole file is reported at once, each with the entry and the mend.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET

from auth.errors import Invalid
from auth.secret import Secret
from tenants.catalogue import Catalogue
from tenants.checks import located
from tenants.keyshape import key_problem, provider_by_key, provider_by_name
from tenants.names import NAME_RULE, is_name
from tenants.pool_schemas import Fallback, InFlight, Limits, PoolSettings, PositiveInt, Tier, Weight

MAX_KEYS: Final = 500
DEFAULT_POOL_NAME: Final = "main"


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    api_key: str
    weight: Weight = 1
    rate_limit: PositiveInt | Limits | None = None
    provider: str | None = None
    base_url: str | None = None
    region: str | None = None
    tier: Tier = 0
    models: Annotated[list[str], msgspec.Meta(max_length=500)] = []
    max_in_flight: InFlight | None = None
    quota: str | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    providers: list[dict[str, Any]]
    strategy: str | None = None
    failover: bool = True
    fallbacks: Annotated[list[Fallback], msgspec.Meta(max_length=8)] = []
    name: str = DEFAULT_POOL_NAME
    is_default: bool = False


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """One key to create."""

    name: str
    provider: str
    secret: Secret
    weight: int
    limits: Mapping[str, Any]
    base_url: str | None = None
    region: str | None = None
    tier: int = 0
    models: tuple[str, ...] = ()
    max_in_flight: int | None = None
    quota: str | None = None
    """The name of the quota that it shares with others, whose limits `limits` are then; None: its own."""


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """The pool to create; `strategy` is the canonical name."""

    name: str
    strategy: str
    is_default: bool
    settings: PoolSettings
    keys: tuple[KeyPlan, ...] = field(default=())

    @property
    def failover(self) -> bool:
        """Tell whether a request may be tried on a second key."""
        return self.settings.failover is True


def plan_import(document: object, catalogue: Catalogue) -> PoolPlan:
    """Turn a decoded JSON document into a plan; `Invalid` lists every problem by JSON pointer."""
    try:
        file = msgspec.convert(document, _File, str_keys=True)
    except msgspec.ValidationError as error:
        raise _refuse([located(error, _File)]) from None
    problems: list[tuple[str, str]] = []
    if not is_name(file.name):
        problems.append(("/name", NAME_RULE))
    strategy = file.strategy or catalogue.default_strategy
    if (problem := catalogue.strategy_problem(strategy)) is not None:
        problems.append(("/strategy", problem))
    if not file.providers:
        problems.append(("/providers", "is empty; list at least one key"))
    if len(file.providers) > MAX_KEYS:
        raise _refuse([("/providers", f"has more than {MAX_KEYS} entries; split it into several pools")])
    keys: dict[int, KeyPlan] = {}
    for index, raw in enumerate(file.providers):
        pointer = f"/providers/{index}"
        try:
            entry = msgspec.convert(raw, _Entry, str_keys=True)
        except msgspec.ValidationError as error:
            problems.append(located(error, _Entry, pointer))
            continue
        found = _plan_key(entry, pointer, catalogue)
        if isinstance(found, KeyPlan):
            keys[index] = found
        else:
            problems.extend(found)
    problems.extend(_repeated(file.providers))
    keys = _shared(keys, problems)
    settings = PoolSettings(failover=file.failover, fallbacks=file.fallbacks or UNSET)
    if problems:
        raise _refuse(problems)
    return PoolPlan(file.name, catalogue.strategies[strategy], file.is_default, settings, tuple(keys.values()))


def _plan_key(entry: _Entry, pointer: str, catalogue: Catalogue) -> KeyPlan | list[tuple[str, str]]:
    problems = []
    if not is_name(entry.name):
        problems.append((f"{pointer}/name", NAME_RULE))
    if (problem := key_problem(entry.api_key)) is not None:
        problems.append((f"{pointer}/api_key", problem))
    if entry.quota is not None and not is_name(entry.quota):
        problems.append((f"{pointer}/quota", NAME_RULE))
    provider = _provider_of(entry, catalogue)
    if provider is None:
        known = ", ".join(sorted(catalogue.providers))
        problems.append((f"{pointer}/provider", f"neither the name nor the key says whose it is; add one of {known}"))
    elif isinstance(provider, _Unclear):
        problems.append((f"{pointer}/provider", provider.sentence))
    elif (trouble := catalogue.provider_problem(provider, entry.base_url)) is not None:
        problems.append((f"{pointer}/{trouble[0]}", trouble[1]))
    if problems or not isinstance(provider, str):
        return problems
    return KeyPlan(
        name=entry.name,
        provider=provider,
        secret=Secret(entry.api_key),
        weight=entry.weight,
        limits=_limits(entry.rate_limit),
        base_url=entry.base_url,
        region=entry.region,
        tier=entry.tier,
        models=tuple(entry.models),
        max_in_flight=entry.max_in_flight,
        quota=entry.quota,
    )


def _shared(keys: Mapping[int, KeyPlan], problems: list[tuple[str, str]]) -> dict[int, KeyPlan]:
    """Give keys of one quota the limits that one of them gives; several must give the same."""
    given: dict[str, KeyPlan] = {}
    for index, key in keys.items():
        if key.quota is None:
            continue
        known = given.setdefault(key.quota, key)
        if known.provider != key.provider:
            problems.append((f"/providers/{index}/quota", f"is one of {known.provider} by an earlier entry"))
        elif key.limits and known.limits != key.limits:
            if known.limits:
                problems.append((f"/providers/{index}/rate_limit", "is another one than the quota has; give it once"))
            given[key.quota] = key
    return {
        index: key if key.quota is None else replace(key, limits=given[key.quota].limits) for index, key in keys.items()
    }


@dataclass(frozen=True, slots=True)
class _Unclear:
    sentence: str


def _provider_of(entry: _Entry, catalogue: Catalogue) -> str | _Unclear | None:
    if entry.provider is not None:
        return entry.provider
    by_name = provider_by_name(entry.name, catalogue.providers)
    by_key = provider_by_key(entry.api_key)
    if by_name and by_key and by_name != by_key:
        return _Unclear(f'the name says {by_name} and the key looks like one of {by_key}; add "provider"')
    # A bare `sk-` began as OpenAI's, and servers that speak its API copy it; those come with a base URL.
    bare = "openai" if entry.api_key.startswith("sk-") and entry.base_url is None else None
    return by_name or by_key or bare


def _limits(rate_limit: int | Limits | None) -> dict[str, Any]:
    if rate_limit is None:
        return {}
    if isinstance(rate_limit, int):
        return {"rpm": rate_limit}
    found: dict[str, Any] = msgspec.to_builtins(rate_limit)
    return found


def _repeated(entries: list[dict[str, Any]]) -> list[tuple[str, str]]:
    problems = []
    for member, sentence in (
        ("name", "is used by an earlier entry; give each key its own name"),
        ("api_key", "is the key of an earlier entry; list each key once, with the sum of the weights"),
    ):
        seen: Counter[str] = Counter()
        for index, entry in enumerate(entries):
            value = entry.get(member)
            if isinstance(value, str):
                seen[value] += 1
                if seen[value] > 1:
                    problems.append((f"/providers/{index}/{member}", sentence))
    return problems


def _refuse(problems: list[tuple[str, str]]) -> Invalid:
    count = "one thing" if len(problems) == 1 else f"{len(problems)} things"
    return Invalid(
        f"The pool cannot be imported: {count} in it must be mended first.",
        hint="Nothing was created. Mend the listed entries and import again.",
        errors=tuple(problems),
    )
