"""The providers' side of a replay: true limits that drift and are shared with others, and what they answer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from gateway.balancing.error_hints import with_body
from gateway.balancing.hints import Hint, parse_hint
from gateway.balancing.outcome import TokenUsage
from gateway.simulation.demand import Demand
from gateway.simulation.limits.azure import AzureLimits
from gateway.simulation.limits.model import Admitted, LimitModel, Ticket
from gateway.simulation.limits.registry import make_limit_model
from gateway.simulation.scenario import Scenario, SimulatedKey, cost_of, scaled

START_UNIX = 1_767_225_600.0
"""2026-01-01 00:00 UTC: the moment that second 0 of a replay stands for."""
_OUTSIDE_STEP_S = 0.5
_OUTSIDE_KEPT_S = 120.0
WARM_S = 300.0
"""How long a provider keeps a prompt's beginning that nobody asks for (OpenAI: 5 to 10 minutes, Anthropic: 5)."""
CACHED_PRICE = 0.5
"""What a cached input token costs, as a share of the price."""
_HINT_STYLES: Mapping[str, str] = {
    **{style: style for style in ("openai", "azure", "anthropic", "mistral", "groq")},
    "paced": "generic",
}


@dataclass(frozen=True, slots=True)
class Taken:
    """The provider answers: the head after `first_byte_s`, the end after `total_s`, both from now."""

    hint: Hint | None
    ticket: Ticket
    first_byte_s: float
    total_s: float
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """A 429, with what its headers and its body tell."""

    hint: Hint | None


class _Quota:
    """One true quota with its drift and its other users."""

    __slots__ = ("_drifts", "_key", "_outside_at", "_phase_s", "_warm", "model")

    def __init__(self, key: SimulatedKey, rng: Random) -> None:
        self.model: LimitModel = (
            AzureLimits(key.limits, organisation=key.quota_id, phase_s=rng.uniform(0.0, 60.0))
            if key.style == "azure"
            else make_limit_model(key.style, key.limits, organisation=key.quota_id)
        )
        self._key = key
        self._warm: dict[str, float] = {}
        self._drifts = sorted(key.drift, reverse=True)
        self._outside_at = 0.0
        self._phase_s = rng.uniform(0.0, 2 * key.outside_period_s)

    def is_warm(self, demand: Demand, now: float) -> bool:
        """Tell whether the request's beginning is in the prompt cache."""
        return bool(demand.cached_tokens) and now - self._warm.get(demand.affinity, -math.inf) <= WARM_S

    def warmed(self, demand: Demand, now: float) -> None:
        """Take in that the prompt was read."""
        if demand.affinity:
            self._warm[demand.affinity] = now

    def advance(self, name: str, now: float) -> None:
        """Bring drift and outside load up to date."""
        while self._drifts and self._drifts[-1][0] <= now:
            self.model.resize(scaled(self._key.limits, self._drifts.pop()[1]), START_UNIX + now)
        key = self._key
        if not key.outside_share:
            return
        # Nothing of longer ago than two periods is left in any window of theirs.
        self._outside_at = max(self._outside_at, now - max(_OUTSIDE_KEPT_S, 2 * key.outside_period_s))
        share = key.outside_share * _OUTSIDE_STEP_S / 60.0
        limits = self.model.limits
        tokens = limits.tpm or limits.itpm or limits.otpm or 0
        # Step by step at its own time: what others took before a window ended is no charge on the next.
        while (at := self._outside_at + _OUTSIDE_STEP_S) <= now:
            self._outside_at = at
            if not ((at + self._phase_s) // key.outside_period_s) % 2:
                self.model.drain(name, share * (limits.rpm or 0), share * tokens, START_UNIX + at)


class World:
    """All keys of a scenario; `now` is seconds from the start of the trace and never goes back.

    `tells=False` keeps every header and body from the balancer, for the baseline that looks at nothing.
    """

    def __init__(self, scenario: Scenario, rng: Random, *, tells: bool = True) -> None:
        self._tells = tells
        self.keys = {key.name: key for key in scenario.keys}
        self._quotas = {key.quota_id: _Quota(key, rng) for key in scenario.keys}
        self._of_key = {key.name: self._quotas[key.quota_id] for key in scenario.keys}

    def send(self, key_name: str, demand: Demand, now: float) -> Taken | Refused:
        """Ask a provider."""
        key, quota = self.keys[key_name], self._of_key[key_name]
        quota.advance(demand.model, now)
        unix = START_UNIX + now
        warm = quota.is_warm(demand, now)
        answer = quota.model.admit(cost_of(demand, warm=warm), unix)
        style = _HINT_STYLES.get(key.style)
        hint = None
        if answer.headers and style is not None and self._tells:
            # Through the wire format and back: the balancer gets what a real one would, rounding included.
            hint = parse_hint(dict(answer.headers), style, now_unix=unix)
        if isinstance(answer, Admitted):
            quota.warmed(demand, now)
            first_byte_s = key.first_byte_s
            total_s = first_byte_s + key.token_s * demand.output_tokens
            return Taken(hint, answer.ticket, first_byte_s, total_s, demand.cached_tokens if warm else 0)
        if self._tells:
            # The gateway reads a refusal's body too, where some providers say all that they say.
            hint = with_body(hint, json.dumps(answer.body).encode())
        return Refused(hint)

    def end(self, key_name: str, demand: Demand, taken: Taken, now: float) -> TokenUsage:
        """Settle an answered request."""
        usage = TokenUsage(demand.input_tokens, demand.output_tokens, taken.cached_tokens)
        quota = self._of_key[key_name]
        quota.advance(demand.model, now)
        quota.model.settle(taken.ticket, usage, START_UNIX + now)
        return usage

    def fits_in(self, key_name: str, demand: Demand, now: float) -> float:
        """Return seconds until the key would take the request: the truth, for the oracle alone."""
        quota = self._of_key[key_name]
        quota.advance(demand.model, now)
        return quota.model.would_fit_in(cost_of(demand, warm=quota.is_warm(demand, now)), START_UNIX + now)

    def room(self, key_name: str, demand: Demand, now: float) -> float:
        """Return the smallest free share of a dimension that is left after the request (the oracle's measure)."""
        quota = self._of_key[key_name]
        model = quota.model
        charges = model.charges(cost_of(demand, warm=quota.is_warm(demand, now)))
        capacities = model.capacities(demand.model)
        left = model.available(demand.model, START_UNIX + now)
        return min(((left[name] - charges[name]) / capacities[name] for name in left), default=math.inf)

    def price(self, key_name: str, usage: TokenUsage) -> float:
        """Return what an answer costs on this key, in the price list's currency."""
        key = self.keys[key_name]
        input_tokens = usage.input - (1.0 - CACHED_PRICE) * usage.cached_input
        return (input_tokens * key.input_price + usage.output * key.output_price) / 1e6
