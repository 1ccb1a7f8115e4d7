"""Says why a request went where it went: for the header `x-llm-proxy-explain`, and to be stored. Pure.

    {"pool": "main", "model": "gpt-4o", "strategy": "weighted", "candidates": [
       {"key": "a", "level": "tier 0", "excluded": "limited", "until_s": 2.5, "score": 0.02, "headroom": 0.0,
        "in_flight": 3, "first_byte_s": 0.4}, …],
     "more": 0, "tried": [{"key": "b", "region": "eu-1", "outcome": "ok", "status": 200}]}

With `predictive` a candidate has its `belief`: the margin, learned limits over the configured ones, what others take,
and for how long beliefs are still set aside. An attempt that was sent beside a late one has `"hedge": true`.

The candidates are as they were when the request came, in the order in which their levels are looked at; `score` is the
strategy's own figure, smaller is better. In the header it is ASCII, and at most `MAX_BYTES`; stored are up to
`MAX_CANDIDATES` of each pool that was tried.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from gateway.balancing.explain import Considered, Explanation
from gateway.balancing.outcome import OutcomeKind
from gateway.balancing.steps import Attempt
from gateway.proxy.key_target import KeyTarget

MAX_BYTES = 4096
MAX_CANDIDATES = 200
NOT_ALLOWED = b'{"refused":"to have requests explained, the token needs the scope usage:read"}'


def explanation_of(
    explained: Explanation,
    attempts: Sequence[Attempt],
    *,
    pool: str,
    model: str,
    targets: Mapping[str, KeyTarget],
    now: float,
) -> dict[str, Any]:
    """Say it as plain JSON values; keys are named by `targets`, times are relative to `now`."""
    candidates = [_candidate(each, targets, now) for each in explained.considered[:MAX_CANDIDATES]]
    return {
        "pool": pool,
        "model": model,
        "strategy": explained.strategy,
        "refused": explained.refused and str(explained.refused),
        "candidates": candidates,
        "more": len(explained.considered) - len(candidates),
        "tried": [_tried(each, targets) for each in attempts],
    }


def explanation_header(document: Mapping[str, Any]) -> bytes:
    """Write what `explanation_of` gave, with as many candidates and attempts as fit."""
    candidates, tried = document["candidates"], document["tried"]
    shown = min(len(candidates), 32)
    while True:
        told = {
            **document,
            "candidates": candidates[:shown],
            "more": document["more"] + len(candidates) - shown,
            "tried": tried[-8:],
        }
        value = json.dumps(told, separators=(",", ":")).encode()
        if len(value) <= MAX_BYTES or not shown:
            return value[:MAX_BYTES]
        shown //= 2


def _tried(each: Attempt, targets: Mapping[str, KeyTarget]) -> dict[str, object]:
    told: dict[str, object] = {
        "key": _name(each.endpoint_id, targets),
        "region": target.region if (target := targets.get(each.endpoint_id)) is not None else None,
        # Its answer may still be on the way: so far it is one.
        "outcome": str(each.kind or OutcomeKind.OK) if each.kind or each.status else None,
        "status": each.status,
    }
    if each.hedge:
        told["hedge"] = True
    return told


def _candidate(each: Considered, targets: Mapping[str, KeyTarget], now: float) -> dict[str, object]:
    told = _figures(each, targets, now)
    if each.belief is not None:
        told["belief"] = {
            "margin": round(each.belief.margin, 3),
            "limits": {name: round(factor, 2) for name, factor in each.belief.factors.items()},
            "outside_per_s": {name: round(rate, 2) for name, rate in each.belief.outside_per_s.items() if rate},
            "aside_s": round(each.belief.fallback_s, 1),
        }
    return told


def _figures(each: Considered, targets: Mapping[str, KeyTarget], now: float) -> dict[str, object]:
    return {
        "key": _name(each.endpoint_id, targets),
        "level": each.level,
        "excluded": each.excluded,
        "until_s": None if each.until is None else round(max(0.0, each.until - now), 3),
        "score": None if each.score is None or not isfinite(each.score) else round(each.score, 6),
        "headroom": round(each.headroom, 3),
        "in_flight": each.in_flight,
        "first_byte_s": None if each.first_byte_s is None else round(each.first_byte_s, 3),
    }


def _name(endpoint_id: str, targets: Mapping[str, KeyTarget]) -> str:
    target = targets.get(endpoint_id)
    return "a key that is gone" if target is None else target.name
