"""What is asked of the balancer and what it answers: values, never exceptions."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from gateway.balancing.endpoint import Endpoint
from gateway.balancing.value_type import value_type


@value_type(frozen=True, slots=True)
class Ask:
    """One request, as the balancer needs to know it. `deadline` is on the caller's monotonic clock, seconds.

    `model` is the name after the pool's aliases. `residency` lists the only regions allowed (empty = any); it is a hard
    rule. `priority` 0 is critical, larger is later. `excluded` are endpoint ids this request has already failed on.
    `output_unset`: the caller set no limit on the output, so `est_output_tokens` is a guess; providers that reserve a
    default of their own then have that reserved. `falls_back`: another pool stands by should all keys here be broken.
    """

    model: str
    dialect: str = "openai"
    est_input_tokens: int = 0
    est_output_tokens: int = 0
    region: str | None = None
    residency: frozenset[str] = frozenset()
    priority: int = 1
    deadline: float = float("inf")
    affinity: str | None = None
    excluded: frozenset[str] = frozenset()
    output_unset: bool = False
    falls_back: bool = False


class Lease(NamedTuple):
    """Permission to send one attempt on `endpoint`, with the tokens that were reserved for it.

    `probe`: it goes above a limit, to find out whether that holds, so that its answer's head is news, whatever it says.

    Every lease is given back exactly once through `Balancer.observe`. A tuple, like `Picked`: one of each is made for
    every attempt, and a frozen dataclass costs three times as much to make.
    """

    id: int
    endpoint: Endpoint
    reserved_input_tokens: int
    reserved_output_tokens: int
    started_at: float
    probe: bool = False


class Refusal(StrEnum):
    """Why no endpoint can serve the ask, now or later."""

    NO_ENDPOINTS = "no_endpoints"
    """The pool has no enabled key at all."""
    NO_MODEL = "no_model"
    """No key of the pool serves this model in this dialect."""
    RESIDENCY = "residency"
    """Keys serve it, none in an allowed region."""
    TOO_LARGE = "too_large"
    """The estimate is larger than every eligible quota's whole window: waiting cannot help."""
    EXHAUSTED = "exhausted"
    """Every eligible key was already tried by this request, or is out of service."""


class Picked(NamedTuple):
    """Send on `lease.endpoint`."""

    lease: Lease
    reason: str = ""


@value_type(frozen=True, slots=True)
class Wait:
    """Everything eligible is full or cooling down; `until` is the earliest moment that can change by itself."""

    until: float
    reason: str = ""


@value_type(frozen=True, slots=True)
class Refused:
    """Waiting does not help."""

    reason: Refusal


Decision = Picked | Wait | Refused
