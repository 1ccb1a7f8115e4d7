"""What a trace does not say, assumed: `max_tokens`, priorities, deadlines, patience, estimates a bit off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from gateway.simulation.trace import Arrival

UNSET_OUTPUT_TOKENS = 512
"""What the gateway reserves when the caller set no limit."""


@dataclass(frozen=True, slots=True)
class Class:
    """A class of requests: its share, when it should have started, and when its caller gives up (seconds)."""

    priority: int
    share: float
    deadline_s: float
    patience_s: float


@dataclass(frozen=True, slots=True)
class Assumptions:
    """How a trace becomes demand. Per tenant: `unset_share` sets no `max_tokens`, `wide_share` sets 2,048 or 4,096,
    the rest sets a tight one. Input estimates are off by up to `estimate_error`.
    """

    unset_share: float = 0.40
    wide_share: float = 0.35
    estimate_error: float = 0.08
    classes: tuple[Class, ...] = (
        Class(0, 0.25, 1.0, 10.0),
        Class(1, 0.55, 5.0, 60.0),
        Class(2, 0.20, 300.0, 600.0),
    )


@dataclass(frozen=True, slots=True)
class Demand:
    """One request as the gateway gets it, with what only the simulator knows (`output_tokens`).

    `affinity` names what its prompt begins with: the conversation, else the tenant. Empty: nothing is known.
    """

    at: float
    tenant: str
    model: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    est_input_tokens: int
    max_tokens: int | None
    priority: int
    deadline_at: float
    patience_until: float
    affinity: str = ""

    @property
    def est_output_tokens(self) -> int:
        """What the gateway reserves for the answer."""
        return UNSET_OUTPUT_TOKENS if self.max_tokens is None else self.max_tokens


def make_demands(arrivals: Sequence[Arrival], rng: Random, assumptions: Assumptions | None = None) -> list[Demand]:
    """Turn a trace into demand; the same generator state makes the same demand."""
    assume = assumptions or Assumptions()
    habits: dict[str, str] = {}
    weights = [each.share for each in assume.classes]
    demands: list[Demand] = []
    for each in arrivals:
        habit = habits.get(each.tenant)
        if habit is None or not each.tenant:
            draw = rng.random()
            wide = assume.unset_share + assume.wide_share
            habit = "unset" if draw < assume.unset_share else "wide" if draw < wide else "tight"
            habits[each.tenant] = habit
        kind = rng.choices(assume.classes, weights)[0]
        error = 1 + rng.uniform(-assume.estimate_error, assume.estimate_error)
        demands.append(
            Demand(
                at=each.t,
                tenant=each.tenant,
                model=each.model,
                input_tokens=each.input_tokens,
                output_tokens=each.output_tokens,
                cached_tokens=min(each.cached_tokens, each.input_tokens),
                est_input_tokens=max(1, round(each.input_tokens * error)),
                max_tokens=_limit(habit, each.output_tokens, rng),
                priority=kind.priority,
                deadline_at=each.t + kind.deadline_s,
                patience_until=each.t + kind.patience_s,
                affinity=each.conversation or each.tenant,
            )
        )
    return demands


def _limit(habit: str, output_tokens: int, rng: Random) -> int | None:
    if habit == "unset":
        return None
    if habit == "wide":
        # A limit below the recorded answer would contradict the trace.
        return max(output_tokens, rng.choice((2_048, 4_096)))
    return max(64, math.ceil(output_tokens * rng.uniform(1.0, 1.3)))
