"""Answers `GET /pools/{name}/state`: what this process believes of a pool's keys, quotas and queue just now. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.proxy.runtime import PoolRuntime

_SHOWN_KEYS = 1_000


def state_body(pool: PoolRuntime, *, now: float, process: str) -> bytes:
    """Write it as JSON; `now` is on the balancers' clock, all times are relative to it, in seconds."""
    view, queue = pool.balancer.view(now), pool.queue.view()
    keys = [
        {"key": target.name, "key_id": target.key_id, "version": target.version, **_plain(each)}
        for each in view.endpoints[:_SHOWN_KEYS]
        if (target := pool.targets.get(each.id)) is not None
    ]
    document: dict[str, Any] = {
        "pool": pool.name,
        "process": process,
        "strategy": view.strategy,
        "in_flight": view.in_flight,
        "queue": {**_plain(queue), **_plain(pool.queue.tally), "max_waiting": pool.settings.max_waiting},
        "keys": keys,
        "quotas": [_plain(each) for each in view.quotas],
        "outages": view.outages,
    }
    if pool.hedging is not None:
        hedging = pool.hedging
        document["hedging"] = {
            "sent": hedging.sent,
            "won": hedging.won,
            "lost": hedging.lost,
            "failed": hedging.failed,
            "est_input_tokens": hedging.est_input_tokens,
            "est_output_tokens": hedging.est_output_tokens,
            "est_cost_usd": hedging.est_cost_nanos / 1e9,
        }
    if pool.sizing is not None:
        document["right_size"] = {"sized": pool.sizing.sized, "truncated": pool.sizing.truncated}
    return msgspec.json.encode(document)


def _plain(view: object) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(view, str_keys=True)
    return found
