"""Keeps a conversation, or a shared prompt prefix, on the quota whose prompt cache is warm.

Prompt caches belong to a provider's organisation, so the affinity is to a quota and any of its keys. Rendezvous
hashing (Thaler and Ravishankar 1998): each quota's rank for an `ask.affinity` is a hash of both; when a quota goes,
only its own conversations move, and they come back with it. Bounded load (Mirrokni, Thorup, Zadimoghaddam 2018): a
quota that carries more than `load_factor` times its share of what is in flight is passed over, so that one hot prefix
cannot drown it. Large pools are hashed in two steps (cluster, then quota): the cost grows with the root of their size.

A modifier: without an affinity, or when every ranked quota is passed over, the inner strategy decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from math import isqrt, log
from random import Random

from gateway.balancing.predictor import Learning
from gateway.balancing.ready import Candidate, Ready
from gateway.balancing.strategy import Learns, Strategy, least

LOAD_FACTOR = 1.25
SAMPLE = 3
_TRIED_QUOTAS = 3
_FLAT = 64
_MANTISSA = (1 << 52) - 1


def _seed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _rank(seed: int, key: int) -> int:
    """Mix two integers. The hash of a tuple of integers is xxHash in C, and the same in every process.

    The third element is one more round: that hash does not mix its last element into all bits.
    """
    return hash((seed, key, 7))


def _weighted_rank(seed: int, key: int, weight: int) -> float:
    """Rank so that each wins in proportion to its weight (weighted rendezvous: weight / -ln u, u uniform in (0, 1))."""
    uniform = ((_rank(seed, key) & _MANTISSA) + 0.5) / (_MANTISSA + 1)
    return -weight / log(uniform)


@dataclass(slots=True)
class _Member:
    seed: int
    indexes: list[int]


@dataclass(slots=True)
class _Groups:
    clusters: list[tuple[int, list[_Member]]]
    members: int


class CacheAffinity:
    """Wraps any strategy."""

    def __init__(self, inner: Strategy, load_factor: float = LOAD_FACTOR) -> None:
        self._inner = inner
        self._load_factor = load_factor

    @property
    def name(self) -> str:
        return f"{self._inner.name}+cache_affinity"

    @property
    def learning(self) -> Learning | None:
        """What the wrapped strategy wants learned."""
        return self._inner.learning if isinstance(self._inner, Learns) else None

    @property
    def inner(self) -> Strategy:
        """The strategy that decides where affinity does not."""
        return self._inner

    def choose(self, ready: Ready, rng: Random) -> Candidate | None:
        affinity = ready.ask.affinity
        if affinity is not None:
            groups = self._groups(ready)
            mean = (sum_in_flight(ready) + 1) / groups.members
            for member in self._ranked(groups, _seed(affinity)):
                carried = ready.candidates[member.indexes[0]].state.quota.in_flight
                if carried + 1 > self._load_factor * mean + 1.0:
                    continue
                found = ready.first_of(member.indexes, SAMPLE, rng)
                if found:
                    return least([(each.load, each) for each in found], rng)
        return self._inner.choose(ready, rng)

    def _groups(self, ready: Ready) -> _Groups:
        groups: _Groups | None = ready.level.cache.get("cache_affinity")
        if groups is None:
            quotas: dict[str, list[int]] = {}
            for index, candidate in enumerate(ready.candidates):
                quotas.setdefault(candidate.endpoint.quota_id, []).append(index)
            members = [_Member(_seed(quota_id), indexes) for quota_id, indexes in sorted(quotas.items())]
            count = 1 if len(members) <= _FLAT else isqrt(len(members))
            clusters: list[tuple[int, list[_Member]]] = [(_seed(f"cluster {number}"), []) for number in range(count)]
            for member in members:
                # By hash, not by position: a quota that comes or goes leaves the others in their clusters.
                clusters[member.seed % count][1].append(member)
            groups = _Groups([cluster for cluster in clusters if cluster[1]], len(members))
            ready.level.cache["cache_affinity"] = groups
        return groups

    @staticmethod
    def _ranked(groups: _Groups, key: int) -> list[_Member]:
        _, members = max(groups.clusters, key=lambda cluster: _weighted_rank(cluster[0], key, len(cluster[1])))
        return sorted(members, key=lambda member: _rank(member.seed, key), reverse=True)[:_TRIED_QUOTAS]

    def score(self, candidate: Candidate, ready: Ready, /) -> float | None:
        affinity = ready.ask.affinity
        if affinity is None:
            return self._inner.score(candidate, ready)
        return 0.5 - _rank(_seed(candidate.endpoint.quota_id), _seed(affinity)) / 2**64


def sum_in_flight(ready: Ready) -> int:
    """Give the requests in flight over the level; of a large one, estimated from a spread of its keys."""
    candidates = ready.candidates
    step = max(1, len(candidates) // 32)
    seen = candidates[::step]
    return round(sum(candidate.state.in_flight for candidate in seen) * len(candidates) / len(seen))
