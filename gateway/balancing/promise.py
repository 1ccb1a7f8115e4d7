"""How soon so many more requests can be sent at the latest, by what is known of limits rather than by what was. Pure.

The pace at which waiting requests were served tells how long the next ones wait, as long as it stays the same. Where
processes share a quota it does not: a process whose part was small a moment ago has what it needs with the next
exchange. What limits it then is what is free of the whole limit, and what of its refill the others leave (max-min fair,
as the last exchange found). So this bounds an estimate that was measured; it never raises one.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from math import inf

from gateway.balancing.charging import SIZES, unit_of
from gateway.balancing.decision import Ask
from gateway.balancing.ready import Candidate, Exclusion, exclusion_of
from gateway.balancing.semantics import SemanticsOf

NEXT_S = 1.0
"""Until the next exchange has taken place."""
MAX_LOOKED = 200
"""So many keys are looked at: fewer promise less, which is no less true."""


def within_s(candidates: Iterable[Candidate], ask: Ask, ahead: int, now: float, semantics_of: SemanticsOf) -> float:
    """Give the seconds within which `ahead` requests like `ask`, and it, can be sent; inf where nothing tells.

    Keys that are broken, cooling down or full of requests in flight promise nothing, nor do keys without limits.
    """
    free, per_s, is_leased = 0.0, 0.0, False
    seen: set[int] = set()
    for candidate in islice(candidates, MAX_LOOKED):
        if id(candidate.ledger) in seen:
            continue
        blocked = exclusion_of(candidate, ask, now)
        if blocked is None or blocked[0] is Exclusion.LIMITED:
            seen.add(id(candidate.ledger))
            is_leased |= candidate.ledger.lease is not None
            fits, pace = room(candidate, ask, now, semantics_of)
            if pace < inf:
                free, per_s = free + fits, per_s + pace
    if per_s <= 0.0:
        return inf
    return (NEXT_S if is_leased else 0.0) + max(0.0, ahead + 1 - free) / per_s


def room(candidate: Candidate, ask: Ask, now: float, semantics_of: SemanticsOf) -> tuple[float, float]:
    """Give how many requests like `ask` a key's limits have room for, and how many more a second; inf: no limit."""
    ledger, quota = candidate.ledger, candidate.state.quota.quota
    semantics = semantics_of(quota.provider or candidate.state.endpoint.provider)
    counted = SIZES[semantics.total](ask.est_input_tokens, ledger.output_of(ask))
    fits = per_s = inf
    for dimension, meter in ledger.meters():
        available, pace = meter.available(now), meter.limit / meter.window_s
        if ledger.lease is not None and (known := ledger.lease.meters.get(dimension)) is not None:
            available = min(available, max(0.0, known[1].balance) + known[1].free)
            pace = min(pace, known[1].pace_per_s)
        amount = min(counted[unit_of(dimension)], meter.limit)
        if amount > 0.0:
            fits, per_s = min(fits, max(0.0, available) / amount), min(per_s, pace / amount)
    return fits, per_s
