"""When signing keys appear, sign and go: a pure plan over their states.

next     published in the JWKS, signs nothing yet: relying parties' caches learn it ahead of time
active   signs; one for an algorithm
retired  signs nothing, still published until the last token it signed has expired

(nothing) -> active                    the first start
(nothing) -> next                      `publish_ahead_s` before the active key's period is over
next -> active, active -> retired      the period is over and the next key was published long enough
retired -> (gone)                      `keep_s` after it signed last
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from auth.revocations import MAX_TOKEN_LIFETIME_S

State = Literal["next", "active", "retired"]


@dataclass(frozen=True, slots=True)
class KeyState:
    """One stored signing key as the plan sees it; times are Unix seconds."""

    kid: str
    alg: str
    state: State
    created_at: float
    activated_at: float | None = None
    retire_at: float | None = None


@dataclass(frozen=True, slots=True)
class RotationPolicy:
    """All in seconds; `keep_s` covers the longest token, and an hour of JWKS caches on top."""

    period_s: float = 90 * 86_400.0
    publish_ahead_s: float = 86_400.0
    keep_s: float = MAX_TOKEN_LIFETIME_S + 3_600.0


@dataclass(frozen=True, slots=True)
class Create:
    """Make a key for `alg` in `state`."""

    alg: str
    state: Literal["next", "active"]


@dataclass(frozen=True, slots=True)
class Promote:
    """Let the next key `kid` sign; the active one of its algorithm retires and goes at `retire_at`."""

    kid: str
    alg: str
    retire_at: float


@dataclass(frozen=True, slots=True)
class Remove:
    """Take the retired key `kid` out of the JWKS for good."""

    kid: str


Step = Create | Promote | Remove


def plan(keys: Sequence[KeyState], algs: Sequence[str], policy: RotationPolicy, *, now: float) -> list[Step]:
    """Return what is due for the algorithms `algs`; nothing when all is well. Applying it and asking again ends."""
    steps: list[Step] = [
        Remove(key.kid) for key in keys if key.state == "retired" and key.retire_at is not None and key.retire_at <= now
    ]
    for alg in algs:
        active = next((key for key in keys if key.alg == alg and key.state == "active"), None)
        waiting = min(
            (key for key in keys if key.alg == alg and key.state == "next"),
            key=lambda key: key.created_at,
            default=None,
        )
        if active is None:
            steps.append(Promote(waiting.kid, alg, now + policy.keep_s) if waiting else Create(alg, "active"))
            continue
        age_s = now - (active.created_at if active.activated_at is None else active.activated_at)
        if waiting is None:
            if age_s >= policy.period_s - policy.publish_ahead_s:
                steps.append(Create(alg, "next"))
        elif age_s >= policy.period_s and now - waiting.created_at >= policy.publish_ahead_s:
            steps.append(Promote(waiting.kid, alg, now + policy.keep_s))
    return steps
