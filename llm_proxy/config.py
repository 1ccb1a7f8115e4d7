"""Reads the familiar pool document and works out the keys that it means. Pure.

    {"providers": [{"name": "openai-primary", "api_key": "…", "weight": 50, "rate_limit": 3000}, …],
     "strategy": "weighted_round_robin", "failover": True}

The shape is that of the gateway's pool import. `rate_limit` is requests a minute, or an object of limits. The provider
is `provider`, or else what the key's name or beginning says. Every problem is reported at once, each with its mend.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from auth.errors import Invalid
from auth.secret import Secret
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.fallback import FAILURES, Cause, Rung
from gateway.balancing.quota import Limits as QuotaLimits
from gateway.balancing.quota import Quota
from gateway.balancing.strategies.registry import canonical_name
from gateway.upstream.guard import EgressPolicy, UnsafeUrl, check_base_url
from gateway.upstream.providers import PROVIDERS, Target, resolve
from llm_proxy.errors import ConfigurationError
from llm_proxy.keyshape import NAME_RULE, is_name, key_problem, provider_by_key, provider_by_name

MAX_KEYS: Final = 500
DEFAULT_STRATEGY: Final = "rate_limit_aware"
EGRESS: Final = EgressPolicy(allow_private=True)
"""The configuration is the program's own: it may name servers inside. Metadata services stay closed."""

Problem: TypeAlias = tuple[str, str]
_PositiveInt = Annotated[int, msgspec.Meta(gt=0, le=10**12)]


class _ModelLimits(msgspec.Struct, forbid_unknown_fields=True):
    rpm: _PositiveInt | None = None
    tpm: _PositiveInt | None = None
    itpm: _PositiveInt | None = None
    otpm: _PositiveInt | None = None
    rpd: _PositiveInt | None = None
    tpd: _PositiveInt | None = None
    concurrency: _PositiveInt | None = None


class _Limits(_ModelLimits, forbid_unknown_fields=True):
    models: Annotated[dict[str, _ModelLimits], msgspec.Meta(max_length=32)] = {}


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    api_key: str
    weight: Annotated[int, msgspec.Meta(ge=0, le=10000)] = 1
    rate_limit: _PositiveInt | _Limits | None = None
    provider: str | None = None
    base_url: str | None = None
    region: str | None = None
    tier: Annotated[int, msgspec.Meta(ge=0, le=9)] = 0
    models: Annotated[list[str], msgspec.Meta(max_length=500)] = []
    max_in_flight: _PositiveInt | None = None
    quota: str | None = None


class _Fallback(msgspec.Struct, forbid_unknown_fields=True):
    pool: str | None = None
    model: str | None = None
    models: dict[str, str] = {}
    on: frozenset[Cause] = FAILURES
    after_s: float = 0.0


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    providers: list[dict[str, Any]]
    strategy: str | None = None
    failover: bool = True
    fallbacks: list[_Fallback] = []
    name: str = "main"
    is_default: bool = False


@dataclass(frozen=True, slots=True)
class Face:
    """One key as an API dialect sees it: where requests go, and its credential as header lines."""

    target: Target
    fixed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Key:
    """One usable key; `endpoint` and `quota` are the balancer's view of it. Keys of one quota have the same."""

    name: str
    provider: str
    secret: Secret
    endpoint: Endpoint
    quota: Quota
    faces: Mapping[str, Face]


@dataclass(frozen=True, slots=True)
class Configuration:
    """A document that was found good. `strategy` is the canonical name; `keys` by name, in the document's order.

    `rungs` are the models that stand in for others, in order.
    """

    name: str
    strategy: str
    failover: bool
    keys: Mapping[str, Key]
    rungs: tuple[Rung, ...] = ()


def read_configuration(document: object) -> Configuration:
    """Turn a document (mappings and lists, as from JSON) into a configuration, or raise `ConfigurationError`."""
    try:
        found = msgspec.convert(document, _Document, str_keys=True)
    except msgspec.ValidationError as error:
        raise ConfigurationError([_located(error, "", _Document)]) from None
    problems: list[Problem] = []
    if not is_name(found.name):
        problems.append(("/name", NAME_RULE))
    strategy = DEFAULT_STRATEGY
    try:
        strategy = canonical_name(found.strategy or DEFAULT_STRATEGY)
    except ValueError as error:
        problems.append(("/strategy", str(error)))
    if not found.providers:
        problems.append(("/providers", "is empty; list at least one key"))
    if len(found.providers) > MAX_KEYS:
        raise ConfigurationError([("/providers", f"has more than {MAX_KEYS} entries; use several balancers")])
    keys: dict[str, Key] = {}
    for index, raw in enumerate(found.providers):
        key = _read_key(raw, f"/providers/{index}", problems)
        if key is not None:
            keys[key.name] = key
    problems.extend(_repeated(found.providers))
    keys = _shared(keys, found.providers, problems)
    rungs = []
    for index, each in enumerate(found.fallbacks):
        if each.pool not in (None, found.name):
            problems.append((f"/fallbacks/{index}/pool", "names another pool; there is but this one, so name a model"))
        elif each.model is None and not each.models:
            problems.append((f"/fallbacks/{index}", "names no model to stand in"))
        rungs.append(Rung(None, each.model, each.on, each.models, each.after_s))
    if problems:
        raise ConfigurationError(problems)
    return Configuration(found.name, strategy, found.failover, keys, tuple(rungs))


def _read_key(raw: dict[str, Any], pointer: str, problems: list[Problem]) -> Key | None:
    try:
        entry = msgspec.convert(raw, _Entry, str_keys=True)
    except msgspec.ValidationError as error:
        problems.append(_located(error, pointer, _Entry))
        return None
    before = len(problems)
    if not is_name(entry.name):
        problems.append((f"{pointer}/name", NAME_RULE))
    if (problem := key_problem(entry.api_key)) is not None:
        problems.append((f"{pointer}/api_key", problem))
    if entry.quota is not None and not is_name(entry.quota):
        problems.append((f"{pointer}/quota", NAME_RULE))
    provider = _provider_of(entry, pointer, problems)
    if provider is None:
        return None
    faces = _faces(entry, provider, pointer, problems)
    if len(problems) > before:
        return None
    return Key(
        name=entry.name,
        provider=provider,
        secret=Secret(entry.api_key),
        endpoint=Endpoint(
            id=entry.name,
            quota_id=_quota_id(entry),
            provider=provider,
            dialects=frozenset(faces),
            region=entry.region,
            tier=entry.tier,
            weight=entry.weight,
            models=tuple(entry.models),
            max_in_flight=entry.max_in_flight,
            address=entry.base_url,
        ),
        quota=_quota(_quota_id(entry), entry.rate_limit, provider),
        faces=faces,
    )


def _provider_of(entry: _Entry, pointer: str, problems: list[Problem]) -> str | None:
    known = ", ".join(sorted(PROVIDERS))
    if entry.provider is not None:
        if entry.provider in PROVIDERS:
            return entry.provider
        # Whoever pasted the key into the wrong field must not find it in a log.
        is_word = entry.provider.isidentifier() and len(entry.provider) <= 32 and not provider_by_key(entry.provider)
        problems.append(
            (
                f"{pointer}/provider",
                f"{entry.provider!r} is not known; use one of {known}"
                if is_word
                else f"is not known; use one of {known}",
            )
        )
        return None
    by_name, by_key = provider_by_name(entry.name, PROVIDERS), provider_by_key(entry.api_key)
    if by_name and by_key and by_name != by_key:
        sentence = f'the name says {by_name} and the key looks like one of {by_key}; add "provider"'
        problems.append((f"{pointer}/provider", sentence))
        return None
    # A bare `sk-` began as OpenAI's, and servers that speak its API copy it; those come with a base URL.
    bare = "openai" if entry.api_key.startswith("sk-") and entry.base_url is None else None
    provider = by_name or by_key or bare
    if provider is None:
        sentence = f"neither the name nor the key says whose it is; add one of {known}"
        problems.append((f"{pointer}/provider", sentence))
    elif provider not in PROVIDERS:
        sentence = f"this looks like {provider}, which is not known; use one of {known}"
        problems.append((f"{pointer}/provider", sentence))
        return None
    return provider


def _faces(entry: _Entry, provider: str, pointer: str, problems: list[Problem]) -> dict[str, Face]:
    faces: dict[str, Face] = {}
    row = PROVIDERS[provider]
    for dialect in sorted(row.dialects):
        try:
            _require_tls(entry.base_url, is_own_server=row.needs_base_url and provider != "azure")
            target = resolve(provider, dialect, base_url=entry.base_url, region=entry.region, policy=EGRESS)
            faces[dialect] = Face(target, target.credential_block(Secret(entry.api_key)))
        except UnsafeUrl as error:
            sentence = error.public.removeprefix("base_url ")
            problems.append((f"{pointer}/base_url", f"{sentence}; {_mend(error)}"))
            break
        except Invalid as error:
            field = "region" if "needs region" in error.public else "base_url"
            problems.append((f"{pointer}/{field}", f"{error.public}; {_mend(error)}"))
            break
        except ValueError:
            break  # the key's own problem is reported as such
    return faces


def _require_tls(base_url: str | None, *, is_own_server: bool) -> None:
    """Refuse to send a provider's key in the clear over the internet; servers of one's own may be anywhere."""
    if base_url is None or is_own_server or not base_url.startswith("http://"):
        return
    try:
        check_base_url("https://" + base_url.removeprefix("http://"), EgressPolicy())
    except UnsafeUrl:
        return
    raise UnsafeUrl("is plain http to a public host", hint="Write https://: keys travel over TLS only.")


def _mend(error: Invalid) -> str:
    return error.hint.rstrip(".")[:1].lower() + error.hint.rstrip(".")[1:]


def _quota_id(entry: _Entry) -> str:
    """No name holds a slash, so that a key's own quota is never another's."""
    return entry.name if entry.quota is None else f"quota/{entry.quota}"


def _shared(keys: Mapping[str, Key], entries: Sequence[Mapping[str, Any]], problems: list[Problem]) -> dict[str, Key]:
    """Give keys of one quota the limits that one of them gives; several must give the same."""
    given: dict[str, Quota] = {}
    for index, raw in enumerate(entries):
        key = keys.get(raw["name"]) if isinstance(raw.get("name"), str) else None
        if key is None or raw.get("quota") is None:
            continue
        known = given.setdefault(key.quota.id, key.quota)
        if known.provider != key.provider:
            problems.append((f"/providers/{index}/quota", f"is one of {known.provider} by an earlier entry"))
        elif raw.get("rate_limit") is not None and known != key.quota:
            if known.limits != QuotaLimits() or known.families:
                problems.append((f"/providers/{index}/rate_limit", "is another one than the quota has; give it once"))
            given[key.quota.id] = key.quota
    return {name: replace(key, quota=given.get(key.quota.id, key.quota)) for name, key in keys.items()}


def _quota(name: str, rate_limit: int | _Limits | None, provider: str) -> Quota:
    if rate_limit is None:
        return Quota(name, provider=provider)
    if isinstance(rate_limit, int):
        return Quota(name, QuotaLimits(rpm=rate_limit), provider)
    families = {model: _limits(each) for model, each in rate_limit.models.items()}
    return Quota(name, _limits(rate_limit), provider, families)


def _limits(given: _ModelLimits) -> QuotaLimits:
    return QuotaLimits(**{each: getattr(given, each) for each in _ModelLimits.__struct_fields__})


def _repeated(entries: Sequence[Mapping[str, Any]]) -> list[Problem]:
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


def _located(error: msgspec.ValidationError, pointer: str, shape: type[msgspec.Struct]) -> Problem:
    """Split msgspec's "… - at `$.a.b[0]`" into a JSON pointer and a sentence; `*` is any member.

    A member that is not known is told with those that are.
    """
    sentence, _, path = str(error).partition(" - at `")
    if path.startswith("key` in `"):
        sentence, path = f"{sentence} as the name of a member", path.removeprefix("key` in `")
    steps = (
        path.replace("[...]", "[*]").removesuffix("`").removeprefix("$").replace("[", ".").replace("]", "").split(".")
    )
    if "unknown field" in sentence:
        inside = [_INSIDE[step] for step in steps if step in _INSIDE]
        sentence = f"{sentence}; use {', '.join([shape, *inside][-1].__struct_fields__)}"
    return pointer + "".join(f"/{step}" for step in steps if step), sentence


_INSIDE: Mapping[str, type[msgspec.Struct]] = {"rate_limit": _Limits, "models": _ModelLimits, "fallbacks": _Fallback}
"""What the members of a document and its entries hold, where that is an object too."""
