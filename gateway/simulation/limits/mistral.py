"""Mistral: requests a second, tokens a minute of input and output together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from gateway.balancing.outcome import TokenUsage
from gateway.simulation.limits.meters import FixedWindow, Meter
from gateway.simulation.limits.model import (
    REQUESTS,
    TOKENS,
    Cost,
    Headers,
    LimitModel,
    Rejected,
    Shortage,
    Ticket,
    left,
)

_ALL_MODELS = "*"


class MistralLimits(LimitModel):
    """`rpm` is enforced as requests a second; tokens: the prompt at admission, the output posted when it ends.

    One bucket for the organisation, all models together. Headers: `x-ratelimitbysize-{limit,remaining}-minute`,
    `ratelimitbysize-reset` in seconds. Source: help.mistral.ai article 392924.
    """

    style: ClassVar[str] = "mistral"

    def family(self, model: str) -> str:  # noqa: ARG002 - one bucket for all
        return _ALL_MODELS

    def meters(self) -> dict[str, Meter]:
        meters: dict[str, Meter] = {}
        if self.limits.rpm:
            meters[REQUESTS] = FixedWindow(max(1, math.ceil(self.limits.rpm / 60)), 1.0)
        if self.limits.tpm:
            meters[TOKENS] = FixedWindow(self.limits.tpm)
        return meters

    def charges(self, cost: Cost) -> dict[str, float]:
        return {REQUESTS: 1, TOKENS: cost.input_tokens}

    def settled(self, ticket: Ticket, usage: TokenUsage) -> Mapping[str, float]:  # noqa: ARG002 - usage alone decides
        return {TOKENS: usage.input + usage.output}

    def headers(self, meters: Mapping[str, Meter], now: float) -> Headers:
        tokens = meters.get(TOKENS)
        if tokens is None:
            return ()
        return (
            ("x-ratelimitbysize-limit-minute", str(int(tokens.capacity))),
            ("x-ratelimitbysize-remaining-minute", left(tokens, now)),
            ("ratelimitbysize-limit", str(int(tokens.capacity))),
            ("ratelimitbysize-remaining", left(tokens, now)),
            ("ratelimitbysize-reset", str(math.ceil(tokens.full_in(now)))),
        )

    def rejection(self, short: Shortage) -> Rejected:
        said = "Requests rate limit exceeded" if short.dimension == REQUESTS else "Rate limit exceeded"
        body = {"object": "error", "message": said, "type": "rate_limited", "param": None, "code": "1300"}
        return Rejected(429, short.told, body, short.dimension, short.wait_s)
