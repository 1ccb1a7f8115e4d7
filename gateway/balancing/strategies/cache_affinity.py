"""Keeps a conversation, or a shared prompt prefix, on the quota whose prompt cache is warm.

Prompt caches belong to a provider's organisation, so the affinity is to a quota and any of its keys. Rendezvous
hashing (Thaler and Ravishankar 1998), weighted by the keys: each quota's rank for an `ask.affinity` is a hash of both;
when a quota goes, only its own conversations move, and they come back with it. Bounded load (Mirrokni, Thorup,
Zadimoghaddam 2018): a quota that carries more than `load_factor` times its share of what is in flight is passed over,
so that one hot prefix cannot drown it. Large pools are hashed in two steps (cluster, then quota): the cost grows with
the root of their size.

A modifier: without an affinity, or when every ranked quota is passed over, the inner strategy decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import inf, isqrt, log
from random import Random

from gateway.balancing.learns import Learns
from gateway.balancing.predictor import Learning
from gateway.balancing.ready import Candidate, Ready
from gateway.balancing.strategy import Strategy, least

LOAD_FACTOR = 1.25
LOAD_FLOOR = 3
"""So many requests in flight are no load, however idle the others are."""
SAMPLE = 3
_TRIED_QUOTAS = 3
_FLAT = 64
_MANTISSA = (1 << 52) - 1
_UNIT = 1.0 / (_MANTISSA + 1)
_LOWEST = -inf


def _seed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _ranks(seeds: Sequence[int], weights: Sequence[float], key: int) -> list[float]:
    """Rank each for `key`, the largest first, so that each wins in proportion to its weight: ln(u) / weight.

    u is the mix of seed and key as a fraction. The hash of a tuple of integers is xxHash in C, and the same in every
    process; the third element is one more round: that hash does not mix its last element into all bits.
    """
    return [
        log(((hash((seed, key, 7)) & _MANTISSA) + 0.5) * _UNIT) / weight
        for seed, weight in zip(seeds, weights, strict=True)
    ]


@dataclass(slots=True)
class _Cluster:
    """Some of the quotas: by position the seed and weight of each, and where its keys stand among the candidates."""

    seed: int
    seeds: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    indexes: list[list[int]] = field(default_factory=list)


@dataclass(slots=True)
class _Groups:
    clusters: list[_Cluster]
    weight: float
    seeds: list[int]
    weights: list[float]

    def cluster_of(self, key: int) -> _Cluster:
        """Give the one that ranks first for `key`, in proportion to what is in it."""
        if len(self.clusters) == 1:
            return self.clusters[0]
        ranks = _ranks(self.seeds, self.weights, key)
        return self.clusters[ranks.index(max(ranks))]


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
            per_weight = self._load_factor * (sum_in_flight(ready) + 1) / groups.weight
            key = _seed(affinity)
            cluster = groups.cluster_of(key)
            ranks = _ranks(cluster.seeds, cluster.weights, key)
            for _ in range(min(_TRIED_QUOTAS, len(ranks))):
                place = ranks.index(max(ranks))
                ranks[place] = _LOWEST
                indexes = cluster.indexes[place]
                bound = max(LOAD_FLOOR, per_weight * cluster.weights[place])
                if ready.candidates[indexes[0]].state.quota.in_flight > bound:
                    continue
                found = ready.first_of(indexes, SAMPLE, rng)
                if found:
                    return least([(each.load, each) for each in found], rng)
        return self._inner.choose(ready, rng)

    def _groups(self, ready: Ready) -> _Groups:
        groups: _Groups | None = ready.level.cache.get("cache_affinity")
        if groups is None:
            quotas: dict[str, list[int]] = {}
            for index, candidate in enumerate(ready.candidates):
                quotas.setdefault(candidate.endpoint.quota_id, []).append(index)
            count = 1 if len(quotas) <= _FLAT else isqrt(len(quotas))
            clusters = [_Cluster(_seed(f"cluster {number}")) for number in range(count)]
            for quota_id, indexes in sorted(quotas.items()):
                seed = _seed(quota_id)
                # By hash, not by position: a quota that comes or goes leaves the others in their clusters.
                clusters[seed % count].seeds.append(seed)
                clusters[seed % count].weights.append(sum(ready.candidates[index].weight for index in indexes))
                clusters[seed % count].indexes.append(indexes)
            clusters = [cluster for cluster in clusters if cluster.seeds]
            groups = _Groups(
                clusters,
                sum(sum(cluster.weights) for cluster in clusters),
                [cluster.seed for cluster in clusters],
                [sum(cluster.weights) for cluster in clusters],
            )
            ready.level.cache["cache_affinity"] = groups
        return groups

    def score(self, candidate: Candidate, ready: Ready, /) -> float | None:
        affinity = ready.ask.affinity
        if affinity is None:
            return self._inner.score(candidate, ready)
        quota_id = candidate.endpoint.quota_id
        weight = sum(each.weight for each in ready.candidates if each.endpoint.quota_id == quota_id)
        return -_ranks([_seed(quota_id)], [weight], _seed(affinity))[0]


def sum_in_flight(ready: Ready) -> int:
    """Give the requests in flight over the level; of a large one, estimated from a spread of its keys."""
    candidates = ready.candidates
    step = max(1, len(candidates) // 32)
    seen = candidates[::step]
    return round(sum([candidate.state.in_flight for candidate in seen]) * len(candidates) / len(seen))
