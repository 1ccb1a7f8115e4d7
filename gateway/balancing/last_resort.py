"""Whom to ask when every key of a pool is broken: the least bad one that has room. Pure.

All breakers open at once means that the cause is shared (the provider, our network): such an outage is the provider's
to report, so a key is asked rather than the pool shut. Limits hold all the same: they are not what is broken.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from gateway.balancing.decision import Ask
from gateway.balancing.ready import Candidate, Exclusion, room_in


def least_bad(broken: Iterable[Candidate], ask: Ask, now: float) -> tuple[Candidate | None, float, Exclusion | None]:
    """Give the key to ask; where none has room when the first one may have it (inf: not known), and what it lacks."""
    best: Candidate | None = None
    until, why = inf, None
    for candidate in broken:
        lack = room_in(candidate, ask, now)
        if lack is None:
            if best is None or _badness(candidate) < _badness(best):
                best = candidate
        elif lack[0] is not Exclusion.TOO_LARGE and (why is None or lack[1] < until):
            why, until = lack
    return best, until, why


def _badness(candidate: Candidate) -> tuple[int, float]:
    return candidate.state.breaker.streak, candidate.load
