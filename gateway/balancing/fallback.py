"""Where a request goes when its pool cannot serve it: other pools, providers or models, in order, by cause. Pure.

A ladder is an ordered list of rungs. A request climbs it: from one failure to the next it only moves on, so that the
same pool and model are never asked twice; a rung serves only the causes it names. Residency, deadline and priority of
the request stay what they are: no fallback widens them. What was served is told to the caller (`told`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from gateway.balancing.decision import Ask, Refusal
from gateway.balancing.outcome import OutcomeKind
from gateway.balancing.steps import Failure

MAX_RUNGS = 8
"""Longer ladders are cut: a request that failed so often should tell its caller."""


class Cause(StrEnum):
    """Why a pool could not serve."""

    CAPACITY = "capacity"
    """Limits are spent, here or at the provider, for longer than the request may wait."""
    OUTAGE = "outage"
    """The provider or the way to it is broken, or no key of the pool is usable."""
    CONTEXT_LENGTH = "context_length"
    """The prompt is too long for the model; a larger one may take it."""
    CONTENT_POLICY = "content_policy"
    """The provider's filter refused the prompt; another provider draws the line elsewhere."""


FAILURES = frozenset({Cause.CAPACITY, Cause.OUTAGE})
"""The causes that are nobody's choice: what a rung serves unless it says otherwise."""

_OUTAGES = frozenset(
    {OutcomeKind.SERVER_ERROR, OutcomeKind.TIMEOUT, OutcomeKind.CONNECT_FAILED, OutcomeKind.AUTH_REJECTED}
)
_CAPACITY = frozenset({OutcomeKind.RATE_LIMITED, Refusal.TOO_LARGE})

# Codes and types as the providers document them; messages only where there is no code.
_CONTEXT_CODES = frozenset({"context_length_exceeded", "string_above_max_length", "request_too_large"})
_POLICY_CODES = frozenset(
    {"content_policy_violation", "content_filter", "responsibleaipolicyviolation", "moderation_blocked"}
)
_EVENT_DATA = re.compile(rb"^data:[ ]*(\{.*\"error\".*)$", re.M)
_CONTEXT_MESSAGE = re.compile(
    r"prompt is too long|maximum context length|context window|exceeds? the maximum number of (?:input )?tokens", re.I
)
_POLICY_MESSAGE = re.compile(r"content (?:management )?policy|content filtering|safety (?:system|settings)", re.I)


@dataclass(frozen=True, slots=True)
class Rung:
    """One alternative: another pool, another model, or both (None = as it was); `causes` that it serves.

    `models` maps models to what is asked for in their place; a rung that has it and no `model` serves those alone.
    `after_s`: how long a request waits for capacity where it is before it comes here.
    """

    pool: str | None = None
    model: str | None = None
    causes: frozenset[Cause] = FAILURES
    models: Mapping[str, str] = field(default_factory=dict)
    after_s: float = 0.0

    def model_for(self, *names: str) -> str | None:
        """Give the model to ask for in place of the one that goes by `names`; the last of them where it stays.

        None: the rung does not serve this model.
        """
        if not self.models:
            return self.model or names[-1]
        return next((self.models[name] for name in names if name in self.models), self.model)


def cause_of_failure(failure: Failure) -> Cause | None:
    """Give why there is no answer; None when no other pool would help (the deadline is over, a hard rule)."""
    kind = failure.kind
    if kind in _CAPACITY:
        return Cause.CAPACITY
    if kind in _OUTAGES or kind in (Refusal.EXHAUSTED, Refusal.NO_ENDPOINTS, Refusal.NO_MODEL, Refusal.RESIDENCY):
        return Cause.OUTAGE
    return None


def cause_of_answer(status: int, body: bytes) -> Cause | None:
    """Give why a provider's final answer is an error that another model may not give; None: it is the caller's.

    `body` may be cut short, or anything at all; never raises. Status 200 is of a stream that began with an error event.
    """
    if status == 429:
        return Cause.CAPACITY
    if status >= 500:
        return Cause.OUTAGE
    if status not in (200, 400, 413, 422):
        return None
    event = _EVENT_DATA.search(body) if status == 200 else None
    codes, message = _error_of(body if event is None else event.group(1))
    if codes & _CONTEXT_CODES or _CONTEXT_MESSAGE.search(message):
        return Cause.CONTEXT_LENGTH
    if codes & _POLICY_CODES or _POLICY_MESSAGE.search(message):
        return Cause.CONTENT_POLICY
    return None


def _error_of(body: bytes) -> tuple[frozenset[str], str]:
    """Give the codes and the message of an OpenAI, Azure, Anthropic or Gemini error body."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return frozenset(), ""
    if isinstance(parsed, list) and parsed:
        parsed = parsed[0]
    error = parsed.get("error") if isinstance(parsed, dict) else None
    if not isinstance(error, dict):
        return frozenset(), ""
    inner = error.get("innererror")
    named = [error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, dict) else None]
    message = error.get("message")
    return frozenset(each.lower() for each in named if isinstance(each, str)), message if isinstance(
        message, str
    ) else ""


class Ladder:
    """The climb of one request; starts below the first rung. Invariant: never the same (pool, model) twice."""

    __slots__ = ("_model", "_next", "_pool", "_rungs", "_seen", "cause")

    def __init__(self, rungs: Sequence[Rung], *, pool: str, model: str) -> None:
        self._rungs = tuple(rungs[:MAX_RUNGS])
        self._pool, self._model = pool, model
        self._seen = {(pool, model)}
        self._next = 0
        self.cause: Cause | None = None
        """Why the last move was made; None while the request is where it was sent."""

    def patience_s(self, cause: Cause) -> float | None:
        """Give how long to wait here before climbing for `cause`; None: nothing follows that serves it."""
        for rung in self._rungs[self._next :]:
            if cause in rung.causes and (rung.pool or self._pool, rung.model or self._model) not in self._seen:
                return rung.after_s
        return None

    def climb(self, cause: Cause | None, *, replayable: bool, now: float, deadline: float) -> tuple[str, str] | None:
        """Give (pool, model) to try next; None when there is none for this cause, or no way or time to try again."""
        if cause is None or not replayable or now >= deadline:
            return None
        while self._next < len(self._rungs):
            rung = self._rungs[self._next]
            self._next += 1
            # A rung is read from where the request began: "another model" means of its own pool.
            pool, model = rung.pool or self._pool, rung.model or self._model
            if cause in rung.causes and (pool, model) not in self._seen:
                self._seen.add((pool, model))
                self.cause = cause
                return pool, model
        return None


def ask_again(ask: Ask, model: str) -> Ask:
    """Give the request as another pool is asked: nothing was tried there yet, every other rule stands."""
    return replace(ask, model=model, excluded=frozenset())


def told(pool: str, model: str, cause: Cause) -> str:
    """Write what was served, for the response header; names are reduced to what a header may carry."""
    clean = [re.sub(r"[^A-Za-z0-9._:/@-]", "_", each)[:128] for each in (pool, model)]
    return f"pool={clean[0]}; model={clean[1]}; cause={cause}"
