"""One pool's right-sizing of `max_tokens`: what is sent in place of what was asked, and what came of it.

The rule is `gateway.balancing.rightsizing`: whose answers are remembered by client and model, so that one application's
short answers do not cut another one's long ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gateway.balancing.outcome import TokenUsage
from gateway.balancing.rightsizing import RightSizer, reserved_by
from gateway.balancing.semantics import Semantics
from gateway.proxy.output_limit import is_structured


class Sizing:
    """The sizes of one pool's answers; `sized` requests were lowered, `truncated` of them ended at their limit."""

    __slots__ = ("_clock", "_semantics", "_sizer", "sized", "truncated")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sizer = RightSizer()
        self._semantics: Semantics | None = None
        self.sized = self.truncated = 0

    def configure(self, providers: Iterable[str]) -> None:
        """Take over whose keys the pool has."""
        self._semantics = reserved_by(providers)

    def begin(self, client_id: str, model: str, requested: int | None, body: bytes) -> Sized | None:
        """Return how this request's answer is to be limited and watched; None where sizing means nothing."""
        semantics = self._semantics
        if semantics is None:
            return None
        now = self._clock()
        limit = self._sizer.suggest(client_id, model, requested, semantics, structured=False, now=now)
        if limit is not None and is_structured(body):
            limit = None
        return Sized(self, client_id, model, limit)

    def observe(self, answer: Sized, output_tokens: int, *, truncated: bool) -> None:
        """Take in a whole answer."""
        sized = answer.limit is not None
        self._sizer.observe(
            answer.client_id, answer.model, output_tokens, self._clock(), sized=sized, truncated=truncated
        )
        self.sized += sized
        self.truncated += sized and truncated


class Sized:
    """One request whose answer is watched; `limit` is what its output was lowered to, None: it was left alone."""

    __slots__ = ("_sizing", "client_id", "limit", "model")

    def __init__(self, sizing: Sizing, client_id: str, model: str, limit: int | None) -> None:
        self._sizing = sizing
        self.client_id = client_id
        self.model = model
        self.limit = limit

    def ended(self, usage: TokenUsage, *, truncated: bool) -> None:
        """Take in the whole answer."""
        if usage.reported:
            self._sizing.observe(self, usage.output, truncated=truncated)
