"""Which models share one account of a quota, and which accounts are forgotten when callers name too many models."""

from __future__ import annotations

from collections.abc import Container, Mapping
from fnmatch import fnmatchcase

from gateway.balancing.ledger import Ledger
from gateway.balancing.quota import Quota
from gateway.balancing.semantics import Semantics, model_family, undated

MAX_FAMILIES = 64
"""Model names come from callers: what is remembered by name is bounded."""


def family_of(quota: Quota, model: str, semantics: Semantics) -> str:
    """Give the family that `model` counts in: the declared one that fits it best, else as the provider counts.

    A name fits better than a pattern, a longer pattern better than a shorter one.
    """
    if quota.families:
        plain = undated(model)
        for name in (model, plain):
            if name in quota.families:
                return name
        fitting = [each for each in quota.families if fnmatchcase(model, each) or fnmatchcase(plain, each)]
        if fitting:
            return max(fitting, key=lambda each: (len(each), each))
    return model_family(model, semantics)


def crowded_out(ledgers: Mapping[str, Ledger], declared: Container[str]) -> list[str]:
    """Give the families to forget before another is remembered, so that no more than `MAX_FAMILIES` are.

    Those with requests in flight stay, since what is in flight must be counted to its end, and so do declared ones.
    Those that no answer was ever good for go first: else whoever makes up names would have real accounts begin anew.
    """
    surplus = len(ledgers) + 1 - MAX_FAMILIES
    if surplus <= 0:
        return []
    idle = [name for name, ledger in ledgers.items() if not ledger.concurrency.in_flight and name not in declared]
    return sorted(idle, key=lambda name: (ledgers[name].cooldown.served, ledgers[name].used_at))[:surplus]
