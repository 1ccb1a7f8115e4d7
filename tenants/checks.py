"""What a request's types cannot say: every problem at once, by JSON pointer, with the mend. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from auth.errors import Invalid
from tenants.catalogue import Catalogue
from tenants.keyshape import key_problem
from tenants.members import members_at
from tenants.names import NAME_RULE, SLUG, is_name
from tenants.pool_schemas import Fallback, PoolSettings
from tenants.schemas import KeyIn, KeyPatch, PoolIn, PoolPatch, QuotaIn, QuotaPatch, RotateIn, TenantIn

Problem = tuple[str, str]
S = TypeVar("S", bound=msgspec.Struct)

MOST_AHEAD = timedelta(days=366)
_TEXT_RULE = "must be 1 to 200 printable characters"


def refuse(problems: Iterable[Problem]) -> None:
    """Raise `Invalid` if there is any problem."""
    found = tuple(problems)
    if found:
        pointer, sentence = found[0]
        raise Invalid(
            f"{pointer.lstrip('/').replace('/', '.') or 'The request'} {sentence}.",
            hint="Mend what `errors` lists and send the request again; nothing was changed.",
            errors=found,
        )


def tenant_problems(data: TenantIn, catalogue: Catalogue) -> list[Problem]:
    """Check a new tenant."""
    problems = settings_problems(data.settings, catalogue)
    if not re.fullmatch(SLUG, data.slug):
        rule = "must be 1 to 63 lower-case letters, digits or hyphens, and start with a letter or digit"
        problems.append(("/slug", rule))
    problems += tenant_name_problems(data.name)
    if not _is_text(data.client_name):
        problems.append(("/client_name", _TEXT_RULE))
    return problems


def tenant_name_problems(name: str | UnsetType | None) -> list[Problem]:
    """Check the words that a tenant is called by."""
    return [("/name", _TEXT_RULE)] if isinstance(name, str) and not _is_text(name) else []


def settings_problems(settings: Mapping[str, Any], catalogue: Catalogue) -> list[Problem]:
    """Check those of a tenant's settings that mean something; others are notes."""
    problems = []
    strategy = settings.get("default_strategy")
    if strategy is not None:
        problem = catalogue.strategy_problem(strategy) if isinstance(strategy, str) else "must be a strategy's name"
        if problem is None and strategy == "default":
            problem = "cannot be 'default', which is what pools say that leave it to this setting"
        if problem is not None:
            problems.append(("/settings/default_strategy", problem))
    regions = settings.get("residency", [])
    if not isinstance(regions, list) or not all(isinstance(each, str) and each for each in regions):
        problems.append(("/settings/residency", 'must be a list of regions or globs, such as ["eu-*"]'))
    return problems


def pool_problems(data: PoolIn | PoolPatch, catalogue: Catalogue) -> list[Problem]:
    """Check a new or changed pool."""
    problems = _name_problems(data.name)
    if isinstance(data.strategy, str) and (problem := catalogue.strategy_problem(data.strategy)):
        problems.append(("/strategy", problem))
    return problems


def fallback_problems(settings: PoolSettings, own: str, pools: Collection[str]) -> list[Problem]:
    """Check where pool `own` falls back to; `pools` are the names of the tenant's pools."""
    problems = []
    seen: list[Fallback] = []
    for index, each in enumerate(() if isinstance(settings.fallbacks, UnsetType) else settings.fallbacks):
        pointer = f"/settings/fallbacks/{index}"
        pool = own if isinstance(each.pool, UnsetType) else each.pool
        if isinstance(each.model, UnsetType) and not each.models and pool == own:
            problems.append((pointer, "leads back to the pool itself with the same model; name another pool or model"))
        elif pool != own and pool not in pools:
            there = ", ".join(sorted(name for name in pools if name != own)[:20]) or "no other"
            problems.append((f"{pointer}/pool", f"{pool[:63]!r} is no pool of the tenant; there is {there}"))
        elif each in seen:
            problems.append((pointer, "stands in the list twice; it would never be reached"))
        for name, stand_in in {} if isinstance(each.models, UnsetType) else each.models.items():
            if not _is_text(name) or not _is_text(stand_in):
                problems.append((f"{pointer}/models", f"names of models {_TEXT_RULE}"))
            elif name == stand_in and pool == own:
                problems.append((f"{pointer}/models", f"{name[:63]!r} stands in for itself in the same pool"))
        if isinstance(each.model, str) and not _is_text(each.model):
            problems.append((f"{pointer}/model", _TEXT_RULE))
        seen.append(each)
    return problems


def quota_problems(data: QuotaIn | QuotaPatch, catalogue: Catalogue) -> list[Problem]:
    """Check a new or changed quota."""
    problems = _name_problems(data.name)
    if isinstance(data, QuotaIn) and data.provider not in catalogue.providers:
        known = ", ".join(sorted(catalogue.providers))
        problems.append(("/provider", f"{data.provider[:63]!r} is not known; use one of {known}"))
    return problems


def key_problems(data: KeyIn | KeyPatch, catalogue: Catalogue) -> list[Problem]:
    """Check a new or changed key."""
    problems = _name_problems(data.name)
    if isinstance(data, KeyIn):
        if data.api_key is None:
            if data.source_id is None:
                problems.append(("/api_key", "is needed, or source_id of a source that makes the key"))
        elif data.source_id is not None:
            problems.append(("/source_id", "cannot stand beside api_key; PUT /api/v1/keys/{id}/rotation sets it later"))
        elif (problem := key_problem(data.api_key)) is not None:
            problems.append(("/api_key", problem))
        if (trouble := catalogue.provider_problem(data.provider, data.base_url)) is not None:
            problems.append((f"/{trouble[0]}", trouble[1]))
        if data.quota_id is not None and data.limits is not None:
            problems.append(("/limits", "cannot stand beside quota_id; change the quota's own limits instead"))
    if isinstance(data.region, str) and not is_name(data.region):
        problems.append(("/region", NAME_RULE))
    if not isinstance(data.models, UnsetType):
        problems += [(f"/models/{index}", _TEXT_RULE) for index, glob in enumerate(data.models) if not _is_text(glob)]
    if not isinstance(data.model_map, UnsetType) and not all(
        _is_text(name) and _is_text(target) for name, target in data.model_map.items()
    ):
        problems.append(("/model_map", f"names and targets {_TEXT_RULE}"))
    return problems


def rotate_problems(data: RotateIn, provider: str, base_url: str | None, catalogue: Catalogue) -> list[Problem]:
    """Check a new secret; `base_url` is the one that the key will have."""
    problems = []
    if data.api_key is None:
        needs = [name for name in ("base_url", "provider_ref") if getattr(data, name) not in (None, UNSET)]
        return [(f"/{name}", "needs api_key beside it: a stored key keeps its URL") for name in needs]
    if (problem := key_problem(data.api_key)) is not None:
        problems.append(("/api_key", problem))
    if data.provider_ref is not None and not _is_text(data.provider_ref):
        problems.append(("/provider_ref", _TEXT_RULE))
    if data.base_url is not UNSET and (trouble := catalogue.provider_problem(provider, base_url)) is not None:
        problems.append((f"/{trouble[0]}", trouble[1]))
    return problems


def moment_problems(at: datetime | None, now: datetime) -> list[Problem]:
    """Check when something is asked to be done."""
    if at is None:
        return []
    if at.tzinfo is None:
        return [("/at", "needs a time zone, as in 2027-01-31T03:00:00Z")]
    if not now < at <= now + MOST_AHEAD:
        return [("/at", f"must be later than now and at most {MOST_AHEAD.days} days ahead")]
    return []


def convert_checked(value: Mapping[str, Any], shape: type[S], pointer: str) -> S:
    """Convert merged JSON into `shape`; `Invalid` points below `pointer`."""
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        refuse([located(error, shape, pointer)])
        raise


def located(error: msgspec.ValidationError, shape: object, pointer: str = "") -> Problem:
    """Split msgspec's "… - at `$.a.b[0]`" into a JSON pointer and a sentence; `*` is any member.

    A member that `shape`, of which the place is a part, does not have is told with those that it has.
    """
    sentence, _, path = str(error).partition(" - at `")
    if path.startswith("key` in `"):
        sentence, path = f"{sentence} as the name of a member", path.removeprefix("key` in `")
    steps = (
        path.replace("[...]", "[*]").removesuffix("`").removeprefix("$").replace("[", ".").replace("]", "").split(".")
    )
    steps = [step for step in steps if step]
    if "unknown field" in sentence and (members := members_at(shape, steps)):
        sentence = f"{sentence}; use {', '.join(members)}"
    return pointer + "".join(f"/{step}" for step in steps), sentence


def _name_problems(name: str | UnsetType) -> list[Problem]:
    return [("/name", NAME_RULE)] if isinstance(name, str) and not is_name(name) else []


def _is_text(value: str) -> bool:
    return 1 <= len(value) <= 200 and value.isprintable() and value.strip() == value
