"""What became of an attempt, in words that are the same for every path: HTTP, stream, SDK and simulator."""

from __future__ import annotations

from enum import StrEnum

from gateway.balancing.hints import Hint
from gateway.balancing.value_type import value_type


class OutcomeKind(StrEnum):
    """The classes that the balancer treats differently."""

    OK = "ok"
    CLIENT_ERROR = "client_error"
    """The caller's own fault (400, 404, 413, 422 …): relayed, never retried, not held against the key."""
    RATE_LIMITED = "rate_limited"
    AUTH_REJECTED = "auth_rejected"
    """401/403 or a billing stop: the key is out until a probe succeeds."""
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CONNECT_FAILED = "connect_failed"
    ABANDONED = "abandoned"
    """The caller went away, its own deadline was too short, or a hedge lost: nothing is learned about the key."""


@value_type(frozen=True, slots=True)
class TokenUsage:
    """Tokens as the provider counted them; `cached_input` is the part of `input` read from a prompt cache.

    `reported` is False when the gateway had to estimate (a stream that carried no usage, an aborted request).
    `cache_write` is the part of `input` that was written to the cache, `cache_write_1h` the part of that which is kept
    for an hour: providers charge for it.
    """

    input: int = 0
    output: int = 0
    cached_input: int = 0
    reported: bool = True
    cache_write: int = 0
    cache_write_1h: int = 0


@value_type(frozen=True, slots=True)
class Outcome:
    """The end of one attempt; times in seconds from the moment the attempt was sent."""

    kind: OutcomeKind
    status: int | None = None
    first_byte_s: float | None = None
    total_s: float = 0.0
    usage: TokenUsage | None = None
    hint: Hint | None = None


HUNG_S = 5.0
"""A key that has answered nobody for so long may have hung, though those who ask have less patience than its pool."""


def late_kind(had_s: float, *, has_answered: bool) -> OutcomeKind:
    """Say what an attempt is that its caller's deadline ended after `had_s`; `has_answered`: the key, others meanwhile.

    Callers may be as impatient as they like: that a key cannot answer in a tenth of its time is nothing against it. One
    that has hung is still found out where all who ask name deadlines.
    """
    return OutcomeKind.TIMEOUT if had_s >= HUNG_S and not has_answered else OutcomeKind.ABANDONED
