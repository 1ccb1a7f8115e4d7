"""The shape of every limit model: a cost comes in, an admission or the provider's own refusal comes out.

A model is a set of `Meter`s per model family and a rule that turns a `Cost` into charges. Each provider's file states
only where it differs: the windows, the charge at admission, what is settled afterwards, and which headers tell of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from gateway.balancing.outcome import TokenUsage
from gateway.balancing.quota import Limits
from gateway.simulation.limits.meters import Meter

Headers = tuple[tuple[str, str], ...]
REQUESTS = "requests"
TOKENS = "tokens"
INPUT = "input-tokens"
OUTPUT = "output-tokens"
REQUESTS_DAY = "requests-day"
TOKENS_DAY = "tokens-day"
CONCURRENCY = "concurrency"


@dataclass(frozen=True, slots=True)
class Cost:
    """One request as a provider sees it at admission; `max_output_tokens` None = the caller set no limit.

    `input_tokens` is the provider's estimate of the whole prompt, `cached_input_tokens` the part it finds in its cache.
    """

    model: str
    input_tokens: int = 0
    max_output_tokens: int | None = None
    cached_input_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Ticket:
    """What an admitted request was charged, to be settled once when its answer ends."""

    model: str
    charges: Mapping[str, float]
    cost: Cost
    at: float


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request runs; `headers` are what the provider sends with its answer."""

    headers: Headers
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Rejected:
    """The provider's refusal as it goes over the wire; `dimension` names the meter that was short.

    `retry_after_s` is when the request would fit (None: never, it is above the whole limit), whether or not the
    provider says so in a header.
    """

    status: int
    headers: Headers
    body: Any
    dimension: str
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class Shortage:
    """What was missing when a request was refused: `amount` of `dimension`, which will fit in `wait_s` (None: never).

    `limit` and `used` are whole numbers of that dimension; `told` are the headers an answer would have carried.
    """

    cost: Cost
    dimension: str
    amount: float
    wait_s: float | None
    limit: int
    used: int
    told: Headers


class LimitModel(ABC):
    """One quota of a provider. Not thread-safe; `now` is Unix seconds and never goes back.

    `organisation` names the quota in headers and messages. With `models_share`, one set of meters serves all models,
    whatever the provider does.
    """

    style: ClassVar[str] = ""
    charged_when_refused: ClassVar[tuple[str, ...]] = ()
    """Dimensions in which a refused request counts as one, all the same."""

    def __init__(self, limits: Limits, *, organisation: str = "org-simulated", models_share: bool = False) -> None:
        self.limits = limits
        self.organisation = organisation
        self._models_share = models_share
        self._families: dict[str, dict[str, Meter]] = {}
        self._in_flight = 0

    def admit(self, cost: Cost, now: float) -> Admitted | Rejected:
        """Charge the request and let it run, or refuse it as the provider would."""
        meters = self._meters_of(cost.model)
        charges = self.charges(cost)
        if self.limits.concurrency is not None and self._in_flight >= self.limits.concurrency:
            told = self.headers(meters, now)
            return self.rejection(Shortage(cost, CONCURRENCY, 1.0, 1.0, self.limits.concurrency, self._in_flight, told))
        short, wait_s = "", 0.0
        for dimension, meter in meters.items():
            amount = charges[dimension]
            if amount > meter.available(now):
                needs_s = meter.free_in(amount, now)
                if needs_s > wait_s:
                    short, wait_s = dimension, needs_s
        if short:
            for dimension in self.charged_when_refused:
                # Never below zero: hammering keeps the bucket empty, it digs no hole that outlasts the hammering.
                if (counter := meters.get(dimension)) is not None:
                    counter.take(min(1.0, max(0.0, counter.available(now))), now)
            meter = meters[short]
            limit = int(meter.capacity)
            used = limit - max(0, math.floor(meter.available(now)))
            wait = None if math.isinf(wait_s) else wait_s
            told = self.headers(meters, now)
            return self.rejection(Shortage(cost, short, charges[short], wait, limit, used, told))
        for dimension, meter in meters.items():
            meter.take(charges[dimension], now)
        self._in_flight += 1
        return Admitted(self.headers(meters, now), Ticket(cost.model, charges, cost, now))

    def settle(self, ticket: Ticket, usage: TokenUsage | None, now: float) -> None:
        """End a request: charge or return the difference to `usage` (None: nothing was produced, nothing is known).

        Call it exactly once a ticket.
        """
        self._in_flight -= 1
        if usage is None:
            return
        final = self.settled(ticket, usage)
        if not final:
            return
        meters = self._meters_of(ticket.model)
        for dimension, amount in final.items():
            meter = meters.get(dimension)
            if meter is None:
                continue
            difference = amount - ticket.charges[dimension]
            if difference > 0:
                meter.take(difference, now)
            elif difference < 0:
                meter.give(-difference, now, ticket.at)

    def drain(self, model: str, requests: float, tokens: float, now: float) -> None:
        """Charge load that comes from elsewhere: other users of the same organisation."""
        for dimension, meter in self._meters_of(model).items():
            meter.take(requests if dimension.startswith(REQUESTS) else tokens, now)

    def resize(self, limits: Limits, now: float) -> None:
        """Change the limits while in use, as providers do when a usage tier or their load changes."""
        self.limits = limits
        for meters in self._families.values():
            for dimension, fresh in self.meters().items():
                if dimension in meters:
                    meters[dimension].resize(fresh.capacity, now)

    def available(self, model: str, now: float) -> dict[str, float]:
        """Return what is left of each dimension: the truth, which headers may round, delay or withhold."""
        return {dimension: meter.available(now) for dimension, meter in self._meters_of(model).items()}

    def capacities(self, model: str) -> dict[str, float]:
        """Return the limit of each dimension, per its own window."""
        return {dimension: meter.capacity for dimension, meter in self._meters_of(model).items()}

    def would_fit_in(self, cost: Cost, now: float) -> float:
        """Return seconds until the request would be admitted if nothing else came (0: now; infinite: never)."""
        if self.limits.concurrency is not None and self._in_flight >= self.limits.concurrency:
            return math.inf
        charges = self.charges(cost)
        meters = self._meters_of(cost.model)
        return max((meter.free_in(charges[name], now) for name, meter in meters.items()), default=0.0)

    def _meters_of(self, model: str) -> dict[str, Meter]:
        family = "" if self._models_share else self.family(model)
        meters = self._families.get(family)
        if meters is None:
            meters = self._families[family] = self.meters()
        return meters

    # What a provider's file states:

    def family(self, model: str) -> str:
        """Return the name under which models share a limit; the default is each model on its own."""
        return model

    @abstractmethod
    def meters(self) -> dict[str, Meter]:
        """Return fresh meters by dimension for one model family; unlimited dimensions are absent."""

    @abstractmethod
    def charges(self, cost: Cost) -> dict[str, float]:
        """Return the charge at admission for every dimension that `meters` may name."""

    def settled(self, ticket: Ticket, usage: TokenUsage) -> Mapping[str, float]:  # noqa: ARG002 - the default settles nothing
        """Return the final charge of the dimensions that are corrected when the answer has ended."""
        return {}

    @abstractmethod
    def headers(self, meters: Mapping[str, Meter], now: float) -> Headers:
        """Return the headers of an admitted request."""

    @abstractmethod
    def rejection(self, short: Shortage) -> Rejected:
        """Return the refusal in the provider's words."""


def present(pairs: Iterable[tuple[str, Meter | None]]) -> dict[str, Meter]:
    """Keep the dimensions that have a meter."""
    return {dimension: meter for dimension, meter in pairs if meter is not None}


def whole_seconds(wait_s: float) -> str:
    """Write a wait as `Retry-After` does: whole seconds, rounded up, at least one."""
    return str(max(1, math.ceil(wait_s)))


def left(meter: Meter, now: float) -> str:
    """Write what remains as headers do: a whole number, never negative."""
    return str(max(0, math.floor(meter.available(now))))
