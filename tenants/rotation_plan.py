"""What a rotation does next: one table from the state of a version to an action. Pure.

pending    CREATE; RECOVER when a creation was begun before and its end is not known; GIVE_UP after a day
created    PROBE
probing    PROBE until N successes in a row, then PROMOTE; GIVE_UP when the deadline passes first
current    ENABLE when it came back or was never tried, then WATCH while its predecessor could take over
draining   LOOK whether anything is still under way on it; DISABLE then, or at its deadline
disabled   REVOKE at its deadline
orphaned, revoked with a key left at the provider    CLEAN until it is gone
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from tenants.lifecycle import VersionState
from tenants.schedule import ScheduleIn

CREATE_DEADLINE: Final = timedelta(days=1)
DELAYED: Final = timedelta(minutes=15)
DELAYED_TRIES: Final = 8
"""A person is told of a step that failed so often (about four minutes), or could not be tried for so long."""
WATCH_S: Final = 5.0
"""How often a new version is tried at first."""
WATCH_MOST_S: Final = 60.0
WATCH_FOR_S: Final = 900.0
"""How long it is tried at least, if its predecessor lives: a provider may take a new key and then refuse it."""
CHECK_S: Final = 120.0
CHECK_AGAIN_S: Final = 30.0
"""How often tokens for keys without a secret are tried, and how soon after a failure."""
CHECKS_FAILED: Final = 2
"""Failures in a row of which a person is told."""
LOOK_FIRST_S: Final = 1.0
LOOK_MOST_S: Final = 15.0
REFUSALS: Final = 2
"""Refusals in a row after which the predecessor does: a single one may be a provider's slow replication."""
STEP_RETRY_FIRST_S: Final = 2.0
STEP_RETRY_MOST_S: Final = 600.0


class RotationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a key is rotated, as stored and as the API takes it; times in seconds.

    `drain_s` bounds a drain, which ends with the last request that began with the old secret: it must outlast the
    longest one. `retain_s` is how long a drained version can be rolled back to before it is revoked.
    """

    schedule: ScheduleIn | None = None
    probes: Annotated[int, Meta(ge=1, le=20)] = 3
    probe_interval_s: Annotated[float, Meta(ge=0, le=600)] = 2.0
    probe_deadline_s: Annotated[float, Meta(ge=1, le=86400)] = 600.0
    drain_s: Annotated[float, Meta(ge=0, le=86400)] = 900.0
    retain_s: Annotated[float, Meta(ge=0, le=30 * 86400)] = 86400.0


class Do(StrEnum):
    """The next action for a version."""

    CREATE = "create"
    RECOVER = "recover"
    PROBE = "probe"
    PROMOTE = "promote"
    ENABLE = "enable"
    WATCH = "watch"
    LOOK = "look"
    DISABLE = "disable"
    REVOKE = "revoke"
    CLEAN = "clean"
    GIVE_UP = "give_up"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is stored about a version."""

    state: VersionState
    attempts: int
    successes: int
    provider_ref: str | None
    state_changed_at: datetime


def next_do(facts: Facts, settings: RotationSettings, *, now: datetime) -> Do:
    """Return the action that the table of the module gives."""
    match facts.state:
        case VersionState.PENDING:
            if now - facts.state_changed_at >= CREATE_DEADLINE:
                return Do.GIVE_UP
            return Do.RECOVER if facts.attempts else Do.CREATE
        case VersionState.CREATED:
            return Do.PROBE
        case VersionState.PROBING:
            if facts.successes >= settings.probes:
                return Do.PROMOTE
            late = now - facts.state_changed_at >= timedelta(seconds=settings.probe_deadline_s)
            return Do.GIVE_UP if late else Do.PROBE
        case VersionState.CURRENT:
            return Do.WATCH if facts.successes else Do.ENABLE
        case VersionState.DRAINING:
            late = now - facts.state_changed_at >= timedelta(seconds=settings.drain_s)
            return Do.DISABLE if late else Do.LOOK
        case VersionState.DISABLED:
            return Do.REVOKE
        case VersionState.ORPHANED:
            return Do.CLEAN
        case VersionState.REVOKED if facts.provider_ref is not None:
            return Do.CLEAN
        case _:
            return Do.NOTHING


def look_s(age: timedelta) -> float:
    """Return how long to wait before a drain of that age is looked at again: a quarter of it, 1 to 15 s."""
    return min(max(age.total_seconds() / 4, LOOK_FIRST_S), LOOK_MOST_S)


def watch_s(age: timedelta, *, drains: bool) -> float | None:
    """Return when a version that is current for `age` is tried again, None for no more.

    Every 5 s in its first minute, then after a twelfth of its age, up to 60 s; for 15 minutes, and while its
    predecessor drains.
    """
    if not drains and age.total_seconds() >= WATCH_FOR_S:
        return None
    return min(max(age.total_seconds() / 12, WATCH_S), WATCH_MOST_S)


def is_delayed(attempts: int, waits: timedelta) -> bool:
    """Tell whether a step has failed for long enough that a person should know; `waits`: since its state began."""
    return attempts >= DELAYED_TRIES if attempts else waits >= DELAYED


def step_retry_s(attempts: int) -> float:
    """Return how long to wait after a step that found the provider away: 2 s, doubled up to 10 min."""
    return min(STEP_RETRY_FIRST_S * 2.0 ** min(max(attempts - 1, 0), 16), STEP_RETRY_MOST_S)


def load_settings(stored: dict[str, Any]) -> RotationSettings:
    """Read the settings of a key."""
    return msgspec.convert(stored, RotationSettings)


def tag_of(version_id: object) -> str:
    """Return the idempotency tag of a version: what its key is called at the provider."""
    return f"llm-proxy-{version_id}"
