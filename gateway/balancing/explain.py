"""Why a request would go where it goes: every candidate, what excludes it, and the figure the strategy compares."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.balancing.decision import Ask, Refusal
from gateway.balancing.predictor import BeliefView
from gateway.balancing.ready import Ready, exclusion_of
from gateway.balancing.slate import Slate
from gateway.balancing.strategy import Strategy


@dataclass(frozen=True, slots=True)
class Considered:
    """One key: `excluded` None means ready; `until` is when the exclusion ends, None where no moment is known.

    `score` is the strategy's figure, smaller is better, None where it goes by turns. `headroom` is 0..1.
    """

    endpoint_id: str
    level: str
    excluded: str | None
    until: float | None
    score: float | None
    headroom: float
    in_flight: int
    first_byte_s: float | None
    belief: BeliefView | None = None
    """What was learned of its limiter, where that is in use."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The candidates in the order in which their levels are looked at; `refused` when no key could ever serve."""

    strategy: str
    refused: Refusal | None
    considered: tuple[Considered, ...]


def explain(slate: Slate | Refusal, strategy: Strategy, ask: Ask, now: float) -> Explanation:
    """Evaluate every filter and score for `ask`; changes nothing and takes no turn."""
    if isinstance(slate, Refusal):
        return Explanation(strategy.name, slate, ())
    rows: list[Considered] = []
    for level, floor in slate.levels(critical=ask.priority <= 0):
        ready = Ready(level, ask, now, floor)
        for candidate in level.candidates:
            excluded = exclusion_of(candidate, ask, now, floor)
            until = excluded[1] if excluded is not None else None
            learner = candidate.ledger.learner
            rows.append(
                Considered(
                    endpoint_id=candidate.endpoint.id,
                    level=level.name,
                    excluded=str(excluded[0]) if excluded is not None else None,
                    until=until if until is not None and until < float("inf") else None,
                    score=strategy.score(candidate, ready),
                    headroom=candidate.ledger.headroom(now),
                    in_flight=candidate.state.in_flight,
                    first_byte_s=candidate.state.latency.read(now),
                    belief=learner.view(now) if learner is not None and learner.active else None,
                )
            )
    return Explanation(strategy.name, None, tuple(rows))
