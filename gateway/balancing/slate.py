"""Who may serve a kind of request at all: model, dialect and residency, decided once and kept until reconfigured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random

from gateway.balancing.decision import Ask, Refusal, Wait
from gateway.balancing.ledger import Ledger
from gateway.balancing.ready import Candidate, EndpointState, Level

SlateKey = tuple[str, str, frozenset[str]]
LedgerOf = Callable[[EndpointState, str], Ledger]


class Slate:
    """The candidates of one (model, dialect, residency), in levels: those with weight, then standbys.

    `full` remembers that nothing was ready: (version of the balancer, tokens asked for, answer). While that stands,
    a request of at least that size need not look again before its `until`.
    """

    __slots__ = ("full", "levels")

    def __init__(self, levels: Sequence[Level]) -> None:
        self.levels = tuple(levels)
        self.full: tuple[int, int, Wait] | None = None


def build_slate(states: Iterable[EndpointState], ask: Ask, ledger_of: LedgerOf, rng: Random) -> Slate | Refusal:
    """Filter by model and dialect, then residency; the order within a level is drawn, so that none is favoured."""
    serving = [state for state in states if state.endpoint.serves(ask.model, ask.dialect)]
    if not serving:
        return Refusal.NO_MODEL
    if ask.residency:
        serving = [state for state in serving if state.endpoint.region in ask.residency]
        if not serving:
            return Refusal.RESIDENCY
    candidates = [Candidate(state, ledger_of(state, ask.model)) for state in serving]
    rng.shuffle(candidates)
    key = slate_key(ask)
    ranks = (
        ("active", [candidate for candidate in candidates if candidate.endpoint.weight > 0]),
        ("standby", [candidate for candidate in candidates if candidate.endpoint.weight <= 0]),
    )
    return Slate([Level((*key, name), name, members) for name, members in ranks if members])


def slate_key(ask: Ask) -> SlateKey:
    """Give what a slate depends on."""
    return ask.model, ask.dialect, ask.residency
