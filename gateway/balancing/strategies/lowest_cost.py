"""The cheapest key for this request's expected tokens; among equals the least loaded."""

from __future__ import annotations

from math import inf
from random import Random

from gateway.balancing.decision import Ask
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.ready import Candidate, Ready
from gateway.balancing.strategy import least

SAMPLE = 3


def expected_cost(endpoint: Endpoint, ask: Ask) -> float:
    """Give the price of the estimated tokens (currency of the prices); inf when no price is known.

    Without an estimate the sum of the prices stands in, so that the order is still that of the price list.
    """
    if endpoint.input_price is None and endpoint.output_price is None:
        return inf
    input_price, output_price = endpoint.input_price or 0.0, endpoint.output_price or 0.0
    if ask.est_input_tokens + ask.est_output_tokens == 0:
        return input_price + output_price
    return (ask.est_input_tokens * input_price + ask.est_output_tokens * output_price) / 1e6


class LowestCost:
    """Goes through the distinct prices from the cheapest for this request; keys without a price come last."""

    name = "lowest_cost"

    def choose(self, ready: Ready, rng: Random) -> Candidate | None:
        for _, indexes in self._by_cost(ready):
            found = ready.first_of(indexes, SAMPLE, rng)
            if found:
                return least([(each.load, each) for each in found], rng)
        return None

    def _by_cost(self, ready: Ready) -> list[tuple[float, list[int]]]:
        groups: dict[tuple[float | None, float | None], list[int]] | None = ready.level.cache.get(self.name)
        if groups is None:
            groups = {}
            for index, candidate in enumerate(ready.candidates):
                prices = (candidate.endpoint.input_price, candidate.endpoint.output_price)
                groups.setdefault(prices, []).append(index)
            ready.level.cache[self.name] = groups
        costs = [
            (expected_cost(ready.candidates[indexes[0]].endpoint, ready.ask), indexes) for indexes in groups.values()
        ]
        costs.sort(key=lambda row: row[0])
        return costs

    def score(self, candidate: Candidate, ready: Ready, /) -> float:
        return expected_cost(candidate.endpoint, ready.ask)
