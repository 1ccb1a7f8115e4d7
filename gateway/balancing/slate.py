"""Who may serve a kind of request at all: model, dialect and residency, decided once and kept until reconfigured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random

from gateway.balancing.decision import Ask, Refusal, Wait
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.ledger import Ledger
from gateway.balancing.ready import Candidate, EndpointState, Level

SlateKey = tuple[str, str, frozenset[str]]
LedgerOf = Callable[[EndpointState, str], Ledger]
Priced = Callable[[Endpoint, str], Endpoint]
"""Gives a key with its prices for a model; prices are by model, and an `Endpoint` has but one."""


PREMIUM_RESERVE = 0.1
"""Of the premium tier's headroom so much is kept for critical requests, where a pool has more than one tier."""


class Slate:
    """The candidates of one (model, dialect, residency), in levels of equal rank.

    Keys with weight come before standbys. Where they have tiers, critical requests (priority 0) start at the premium
    tier, all others at the lowest; the latter leave `reserve` of the premium tier's headroom untouched.
    `full` remembers, by critical or not, that nothing was ready: (version of the balancer, ask, answer).
    While that stands, a request of at least that size need not look again before its `until`.
    """

    __slots__ = ("_critical", "_others", "full")

    def __init__(self, tiers: Sequence[Level], standby: Sequence[Level], reserve: float) -> None:
        floors = [reserve if len(tiers) > 1 and rank == 0 else 0.0 for rank in range(len(tiers))]
        spare = [(level, 0.0) for level in standby]
        self._critical = [(level, 0.0) for level in tiers] + spare
        self._others = [*reversed(list(zip(tiers, floors, strict=True))), *spare]
        self.full: dict[bool, tuple[int, Ask, Wait]] = {}

    def levels(self, *, critical: bool) -> Sequence[tuple[Level, float]]:
        """Give (level, headroom to be left) in the order in which they are looked at."""
        return self._critical if critical else self._others


def build_slate(
    states: Iterable[EndpointState],
    ask: Ask,
    ledger_of: LedgerOf,
    rng: Random,
    priced: Priced | None = None,
    *,
    reserve: float = PREMIUM_RESERVE,
) -> Slate | Refusal:
    """Filter by model and dialect, then residency; the order within a level is drawn, so that none is favoured."""
    serving = [state for state in states if state.endpoint.serves(ask.model, ask.dialect)]
    if not serving:
        return Refusal.NO_MODEL
    if ask.residency:
        serving = [state for state in serving if state.endpoint.region in ask.residency]
        if not serving:
            return Refusal.RESIDENCY
    candidates = [Candidate(state, ledger_of(state, ask.model)) for state in serving]
    if priced is not None:
        for candidate in candidates:
            candidate.endpoint = priced(candidate.endpoint, ask.model)
    rng.shuffle(candidates)
    key = slate_key(ask)
    tiers: dict[int, list[Candidate]] = {}
    standby: list[Candidate] = []
    for candidate in candidates:
        if candidate.endpoint.weight > 0:
            tiers.setdefault(candidate.endpoint.tier, []).append(candidate)
        else:
            standby.append(candidate)
    return Slate(
        [Level((*key, tier), f"tier {tier}", tiers[tier]) for tier in sorted(tiers)],
        [Level((*key, "standby"), "standby", standby)] if standby else [],
        reserve,
    )


def is_as_large(ask: Ask, other: Ask) -> bool:
    """Tell whether `ask` needs at least as much as `other` from every provider."""
    return (
        ask.est_input_tokens >= other.est_input_tokens
        and ask.est_output_tokens >= other.est_output_tokens
        and ask.output_unset is other.output_unset
    )


def slate_key(ask: Ask) -> SlateKey:
    """Give what a slate depends on."""
    return ask.model, ask.dialect, ask.residency
