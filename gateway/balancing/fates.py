"""Which keys of a pool have a breaker in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from gateway.balancing.outage import ADDRESS, QUOTA, CommonBreaker, Fate, address_of
from gateway.balancing.ready import EndpointState


def bind_fates(states: Collection[EndpointState], before: Mapping[str, CommonBreaker]) -> dict[str, CommonBreaker]:
    """Give keys of one address, and of one quota, a breaker in common; return all by name, those of `before` kept."""
    addresses = Counter(address_of(state.endpoint) for state in states)
    quotas = Counter(f"quota {state.quota.quota.id}" for state in states)
    commons: dict[str, CommonBreaker] = {}
    for names, kinds, least in ((addresses, ADDRESS, 1), (quotas, QUOTA, 2)):
        for name, keys in names.items():
            if keys >= least:
                commons[name] = before.get(name) or CommonBreaker(kinds)
                commons[name].keys, commons[name].own = keys, []
    for state in states:
        address, quota = commons[address_of(state.endpoint)], commons.get(f"quota {state.quota.quota.id}")
        state.common = Fate(address, quota)
        for common in (address, quota) if quota is not None else (address,):
            common.own.append(state.breaker)
    return commons
