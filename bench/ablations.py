"""Who takes part in `strategies.py`: the baselines, the strategies, `predictive` without each of its parts, and with
each of the two opt-in ones.
"""

# ruff: noqa: ARG002 - what a lesser part ignores is the point

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateway.balancing.charging import Dimension, Reservation
from gateway.balancing.predictor import Identification, Learning
from gateway.balancing.ready import Candidate
from gateway.balancing.strategies.predictive import Predictive
from gateway.simulation.contenders import Contender, contender

MAIN = ("plain", "rate_limit_aware", "predictive")
SIMPLE = ("blind", "round_robin")
OTHERS = ("weighted", "least_connections", "lowest_latency", "lowest_cost", "adaptive")


class NoMargin(Identification):
    """No room is kept after refusals."""

    def refused(
        self,
        reservation: Reservation,
        suspects: Mapping[Dimension, float],
        configured: Mapping[Dimension, int],
        now: float,
    ) -> bool:
        """Learn the rest."""
        changed = super().refused(reservation, suspects, configured, now)
        self.margin = 0.0
        return changed


class NoOutside(Identification):
    """Others' use is not followed."""

    def heard(
        self, dimension: Dimension, drop: float, limit: float, per_s: float, *, since: float, now: float
    ) -> float:
        """Answer that nobody else is there."""
        super().heard(dimension, drop, limit, per_s, since=since, now=now)
        return 0.0


class _Deaf(dict[Dimension, float]):
    """Keeps nothing."""

    def __setitem__(self, key: Dimension, value: float) -> None:
        return


class NoPhase(Identification):
    """Fixed windows of unknown phase stay sliding ones."""

    def __init__(self, learning: Learning, now: float) -> None:
        super().__init__(learning, now)
        self.phases = _Deaf()


class NoUntold(Identification):
    """Limits that nobody names stay as they are configured."""

    def may_probe(self, dimensions: Iterable[Dimension], now: float) -> bool:
        """Never."""
        return False

    def refused(
        self,
        reservation: Reservation,
        suspects: Mapping[Dimension, float],
        configured: Mapping[Dimension, int],
        now: float,
    ) -> bool:
        """Take no lower limit from it."""
        return super().refused(reservation, {}, configured, now)


class NoProbes(Identification):
    """Limits that nobody names are lowered, never raised."""

    def may_probe(self, dimensions: Iterable[Dimension], now: float) -> bool:
        """Never."""
        return False


class NoRemainders(Identification):
    """A limit is not read off the remainders."""

    def remained(
        self, dimension: Dimension, remaining: float, held: float, as_of: float, window_s: float, *, refused: bool
    ) -> bool:
        """Ignore them."""
        return False


@dataclass(frozen=True, slots=True)
class Without(Learning):
    """Learning with a lesser `kind` of identification."""

    kind: type[Identification] = Identification

    def identify(self, now: float) -> Identification:
        """Begin to learn a limiter, less well."""
        return self.kind(self, now)


class PlainPlacement(Predictive):
    """What expires is not used first."""

    def _score(self, candidate: Candidate, now: float) -> float:
        return self._aware.score_at(candidate, now)


def _ablated(kind: type[Identification]) -> Predictive:
    strategy = Predictive()
    strategy.learning = Without(kind=kind)
    return strategy


ABLATIONS: Mapping[str, Contender] = {
    each.name: each
    for each in (
        Contender("no margin", lambda: _ablated(NoMargin)),
        Contender("no outside use", lambda: _ablated(NoOutside)),
        Contender("no phase", lambda: _ablated(NoPhase)),
        Contender("no limits from remainders", lambda: _ablated(NoRemainders)),
        Contender("no untold limits", lambda: _ablated(NoUntold)),
        Contender("no probes", lambda: _ablated(NoProbes)),
        Contender("no expiring first", PlainPlacement),
        Contender("+ right-sized max_tokens", Predictive, sizes=True),
        Contender("+ late lane", Predictive, late_lane=True),
    )
}


def participant(name: str) -> Contender:
    """Give an ablation, a baseline or a strategy by name."""
    return ABLATIONS.get(name) or contender(name)
