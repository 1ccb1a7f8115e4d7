"""What processes tell each other beside amounts: facts under names, each with who said it and when. Pure.

Of two facts under one name the later stands; under a name that begins with `PEAK` the larger one does, while it is not
older than the other by more than `PEAK_S`: what one process has seen at most is no limit of what all have. `join` is
commutative and idempotent, and nothing older ever displaces what is newer. Facts end `FACT_S` after they were said last
(`PEAK_S` for peaks), and there are at most `MAX_FACTS` under a row: a mistake passes, and names that somebody makes up
cost no more than that. Names that a process does not know (a later version's) are kept and passed on as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import msgspec

FACT_S = 3600.0
PEAK_S = 180.0
STALE_S = 30.0
"""A breaker whose time was over so lately when it is heard of is half open here, too: one request at a time tries."""
MAX_FACTS = 512
PEAK = "peak|"


class Fact(msgspec.Struct, array_like=True):
    """Something one process (`by`) has learned and all should know; `at` by the store's clock, Unix seconds."""

    at: float
    by: str
    value: Any


def join(name: str, one: Fact, other: Fact) -> Fact:
    """Give the fact that stands of two under one name."""
    first, second = sorted((one, other), key=_order)
    if name.startswith(PEAK) and second.at - first.at < PEAK_S and _figure(first) > _figure(second):
        return first
    return second


def _order(fact: Fact) -> tuple[float, float, str, str]:
    # Two at one moment: any order will do that is everybody's.
    return fact.at, _figure(fact), fact.by, repr(fact.value)


def _figure(fact: Fact) -> float:
    return float(fact.value) if isinstance(fact.value, int | float) else 0.0


def join_all(one: Mapping[str, Fact], other: Mapping[str, Fact]) -> dict[str, Fact]:
    """Give what is known of two rows' facts."""
    return {**one, **{name: join(name, one[name], fact) if name in one else fact for name, fact in other.items()}}


def opened(value: Any) -> tuple[float, int, bool] | None:
    """Read a breaker's word, [until (Unix seconds), streak, ejected]; None where it is not understood."""
    if not (isinstance(value, list) and len(value) == 3):
        return None
    until, streak, ejected = value
    if not (isinstance(until, int | float) and isfinite(until) and isinstance(streak, int)):
        return None
    return float(until), streak, bool(ejected)


def say(facts: Mapping[str, Fact], said: Mapping[str, Any], by: str, now: float) -> dict[str, Fact]:
    """Give `facts` with what one process says now; what is too old, and the oldest of too many, is left out."""
    found = join_all(facts, {name: Fact(now, by, value) for name, value in said.items()}) if said else dict(facts)
    found = {
        name: fact for name, fact in found.items() if now - fact.at < (PEAK_S if name.startswith(PEAK) else FACT_S)
    }
    if len(found) > MAX_FACTS:
        latest = sorted(found, key=lambda name: (found[name].at, name))[-MAX_FACTS:]
        found = {name: found[name] for name in latest}
    return found


def heard_by(facts: Mapping[str, Fact], lessee: str) -> dict[str, Fact]:
    """Give what the others say."""
    return {name: fact for name, fact in facts.items() if fact.by != lessee}
