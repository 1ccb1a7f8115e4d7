"""When a pool gets another key, and when one of them goes again. Pure.

    busy  utilisation ≥ grow_above    for grow_after_s     →  grow, up to max_keys
    idle  utilisation ≤ shrink_below  for shrink_after_s   →  retire one that was made, down to min_keys

Utilisation is the largest share of a limit that the last minute took, over all keys of the pool together, and 1 when a
request was refused for want of capacity. A key is only retired when the others would still be below `grow_above`, so
that a pool does not swing. Between two changes there is a pause, in which a new key comes into service.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from tenants.pool_schemas import InFlight, Limits, Tier, Weight

LOOK_S: Final = 10.0
PAUSE_S: Final = 120.0
RETRY_FIRST_S: Final = 300.0
RETRY_MOST_S: Final = 6 * 3600.0
WINDOW_S: Final = 60


class KeyTemplate(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What new keys are like. `quota_id`: they draw on this quota; else each has one of its own with `limits`.

    Keys of one organisation or project share its limits at most providers: there more keys are no more capacity.
    """

    provider: str
    base_url: str | None = None
    region: str | None = None
    tier: Tier = 0
    weight: Weight = 1
    models: Annotated[list[str], Meta(max_length=500)] = []
    model_map: Annotated[dict[str, str], Meta(max_length=500)] = {}
    max_in_flight: InFlight | None = None
    quota_id: UUID | None = None
    limits: Limits | None = None


class ProvisioningSettings(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How far a pool may grow and shrink, as stored and as the API takes it; times in seconds."""

    key: KeyTemplate
    max_keys: Annotated[int, Meta(ge=1, le=100, description="All keys of the pool count")]
    min_keys: Annotated[int, Meta(ge=1, le=100)] = 1
    grow_above: Annotated[float, Meta(gt=0, le=1)] = 0.8
    grow_after_s: Annotated[float, Meta(ge=10, le=86400)] = 120.0
    shrink_below: Annotated[float, Meta(ge=0, lt=1)] = 0.3
    shrink_after_s: Annotated[float, Meta(ge=60, le=30 * 86400)] = 3600.0


@dataclass(frozen=True, slots=True)
class Load:
    """What the last minute took, and what the serving keys may take in a minute; None: not limited."""

    requests: int = 0
    tokens: int = 0
    refused: int = 0
    rpm: int | None = None
    tpm: int | None = None


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """Keys that serve, keys on their way in or out, and how many of the serving ones may be retired."""

    serving: int
    moving: int
    retirable: int
    utilisation: float
    busy_since: datetime | None = None
    idle_since: datetime | None = None
    changed_at: datetime | None = None


class Change(StrEnum):
    """What is to be done with a pool."""

    GROW = "grow"
    RETIRE = "retire"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Plan:
    """The change, and since when the pool has been busy or idle."""

    change: Change
    busy_since: datetime | None
    idle_since: datetime | None


def utilisation(load: Load) -> float:
    """Return how much of its tightest limit a pool uses, 0 to 1 and more; 0 when nothing is limited."""
    if load.refused:
        return 1.0
    shares = [
        used / limit
        for used, limit in ((load.requests, load.rpm), (load.tokens, load.tpm))
        if limit is not None and limit > 0
    ]
    return max(shares, default=0.0)


def plan(facts: PoolFacts, settings: ProvisioningSettings, *, now: datetime) -> Plan:
    """Decide by the table of the module."""
    busy = (facts.busy_since or now) if facts.utilisation >= settings.grow_above else None
    idle = (facts.idle_since or now) if facts.utilisation <= settings.shrink_below else None
    stay = Plan(Change.NOTHING, busy, idle)
    if facts.moving or (facts.changed_at is not None and now - facts.changed_at < timedelta(seconds=PAUSE_S)):
        return stay
    if busy is not None and now - busy >= timedelta(seconds=settings.grow_after_s):
        return Plan(Change.GROW, None, None) if facts.serving < settings.max_keys else stay
    if (
        idle is not None
        and now - idle >= timedelta(seconds=settings.shrink_after_s)
        and facts.retirable
        and facts.serving > max(1, settings.min_keys)
        and facts.utilisation * facts.serving / (facts.serving - 1) < settings.grow_above
    ):
        return Plan(Change.RETIRE, None, idle)
    return stay


def retry_s(failures: int) -> float:
    """Return how long a pool that could not grow waits before it tries again: 5 min, doubled up to 6 h."""
    return min(RETRY_FIRST_S * 2.0 ** min(max(failures - 1, 0), 16), RETRY_MOST_S)


def settings_problems(settings: ProvisioningSettings) -> list[tuple[str, str]]:
    """Return what the types cannot say as (JSON pointer, sentence)."""
    problems = []
    if settings.min_keys > settings.max_keys:
        problems.append(("/min_keys", "must not be above max_keys"))
    if settings.shrink_below >= settings.grow_above:
        problems.append(("/shrink_below", "must be below grow_above, or the pool would swing"))
    if settings.key.quota_id is not None and settings.key.limits is not None:
        problems.append(("/key/limits", "cannot stand beside quota_id; change the quota's own limits instead"))
    return problems


def load_provisioning(stored: dict[str, Any]) -> ProvisioningSettings:
    """Read stored settings."""
    return msgspec.convert(stored, ProvisioningSettings)
