"""What a balancer knows of its keys at one moment, as plain values."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gateway.balancing.view import BalancerView, QuotaView


class KeyStats(msgspec.Struct, frozen=True):
    """One key. `requests` counts attempts, `outcomes` how they ended ("ok", "rate_limited", …).

    `health` is closed (in use), open or ejected (left out for `health_s` more), or half_open (on trial). `headroom` is
    the free share of the tightest limit, 0..1 (1: no limit known). `first_byte_s` is a moving average, None: not seen.
    """

    name: str
    provider: str
    requests: int
    in_flight: int
    outcomes: Mapping[str, int]
    health: str
    health_s: float
    headroom: float
    first_byte_s: float | None


class Stats(msgspec.Struct, frozen=True):
    """The whole balancer; `waiting` calls stand in line because every key is full."""

    strategy: str
    in_flight: int
    waiting: int
    open_connections: int
    idle_connections: int
    keys: tuple[KeyStats, ...]

    def key(self, name: str) -> KeyStats:
        """Return the key of this name; KeyError when there is none."""
        for key in self.keys:
            if key.name == name:
                return key
        raise KeyError(name)


def make_stats(view: BalancerView, *, waiting: int, open_connections: int, idle_connections: int) -> Stats:
    """Write a balancer's view as stats."""
    quotas = {quota.id: quota for quota in view.quotas}
    return Stats(
        strategy=view.strategy,
        in_flight=view.in_flight,
        waiting=waiting,
        open_connections=open_connections,
        idle_connections=idle_connections,
        keys=tuple(
            KeyStats(
                name=key.id,
                provider=key.provider,
                requests=key.picks,
                in_flight=key.in_flight,
                outcomes=dict(key.outcomes),
                health=key.breaker,
                health_s=key.breaker_s,
                headroom=_headroom(key.quota_id, quotas),
                first_byte_s=key.first_byte_s,
            )
            for key in view.endpoints
        ),
    )


def _headroom(quota_id: str, quotas: Mapping[str, QuotaView]) -> float:
    quota = quotas.get(quota_id)
    if quota is not None and quota.counted_as is not None:
        quota = quotas.get(quota.counted_as, quota)
    return min((ledger.headroom for ledger in quota.ledgers), default=1.0) if quota else 1.0
