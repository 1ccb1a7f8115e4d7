"""What a token may do on the data path: its scope, and its `authorization_details` against one request. Pure.

`auth.details` says what the members mean; here they meet pools, aliases and the regions of real keys. One object that
admits the request whole suffices (RFC 9396 section 2: objects are alternatives).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from auth.details import Detail, permitting
from auth.globs import matches

DEFAULT_PRIORITY = 1


@dataclass(frozen=True, slots=True)
class Allowed:
    """The request is within the token. `residency` are the only regions that may serve it, empty = any.

    `priority` is the balancer's: 0 is the most urgent. `detail` is the object that admitted it, None = not narrowed.
    """

    residency: frozenset[str] = frozenset()
    priority: int = DEFAULT_PRIORITY
    detail: Detail | None = None


@dataclass(frozen=True, slots=True)
class Denied:
    """No object admits the request; `member` is the one that refuses it: pools, models, regions, expires_at."""

    member: str


UNBOUNDED = Allowed()


def may_use_pool(details: Sequence[Detail], pool: str) -> bool:
    """Tell whether the token reaches `pool` at all, with some model."""
    return not details or any(each.pools is None or pool in each.pools for each in details)


def judge(
    details: Sequence[Detail], *, pool: str, models: Sequence[str], regions: Collection[str], now: float
) -> list[Allowed] | Denied:
    """Judge a request for a model in `pool`, whose keys lie in `regions`; `now` is Unix seconds.

    `models` are the names that the model goes by (as asked, after the pool's aliases): one that is allowed suffices.
    None at all: the request names no model, which a token that is narrowed to models does not admit. Each object that
    admits it gives one answer, in their order; limits may refuse one and not the next.
    """
    if not details:
        return [UNBOUNDED]
    refusal = ""
    admitted: list[Allowed] = []
    for each in details:
        found = _judge_one(each, pool, models, regions, now)
        if isinstance(found, Allowed):
            admitted.append(found)
        else:
            refusal = refusal or found
    return admitted or Denied(refusal)


def _judge_one(detail: Detail, pool: str, models: Sequence[str], regions: Collection[str], now: float) -> Allowed | str:
    if not models and detail.models is not None:
        return "models"
    refusal = ""
    for model in models or ("",):
        found = permitting((detail,), pool=pool, model=model, now=now)
        if isinstance(found, Detail):
            refusal = ""
            break
        refusal = refusal or found
    if refusal:
        return refusal
    residency: frozenset[str] = frozenset()
    if detail.regions is not None:
        residency = frozenset(
            region for region in regions if any(matches(pattern, region) for pattern in detail.regions)
        )
        if not residency:
            return "regions"
    return Allowed(residency, DEFAULT_PRIORITY if detail.priority is None else detail.priority, detail)
