"""From outcomes to exceptions: what the caller is told when a call has no good answer. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from auth.secret import Secret
from gateway.balancing.decision import Refusal
from gateway.balancing.error_hints import parse_error_hint
from gateway.balancing.hints import parse_retry_after
from gateway.balancing.outcome import OutcomeKind
from gateway.balancing.steps import Failure
from gateway.upstream.errors import UpstreamError, UpstreamTimeout
from llm_proxy.errors import (
    AllKeysRejected,
    LLMProxyError,
    ModelNotServed,
    ProviderError,
    ProviderUnreachable,
    RateLimited,
    RequestTooLarge,
    Timeout,
)

BODY_CHARACTERS = 16_384
"""How much of a provider's error body is kept."""
SENTENCE_CHARACTERS = 500


def full(pool: str, model: str, retry_after_s: float | None) -> RateLimited:
    """Say that every key is at its limit."""
    return RateLimited(
        f"Every key of {pool!r} that serves {model!r} is at its limit.",
        hint="Try again later, raise max_wait_s, or add keys.",
        retry_after_s=retry_after_s,
    )


def as_error(failure: Failure, pool: str, model: str, attempts: int) -> LLMProxyError:
    """Turn a failure without any answer into its exception."""
    kind, tried = failure.kind, f" after {attempts} attempts" if attempts > 1 else ""
    if kind is Refusal.NO_MODEL:
        return ModelNotServed(
            f"No key of {pool!r} serves {model!r} in this API.", hint="Add the model to a key's models, or a key."
        )
    if kind is Refusal.TOO_LARGE:
        return RequestTooLarge(
            f"The request needs more tokens than any key of {pool!r} may use in a whole minute.",
            hint="Shorten it, lower its maximum of output tokens, or raise rate_limit.",
        )
    if kind is OutcomeKind.RATE_LIMITED:
        return full(pool, model, failure.retry_after_s)
    if kind in (OutcomeKind.AUTH_REJECTED, Refusal.EXHAUSTED, Refusal.NO_ENDPOINTS, Refusal.RESIDENCY):
        return AllKeysRejected(
            f"No key of {pool!r} that was tried is accepted by its provider at the moment{tried}.",
            hint="Check the keys and their accounts: stats() says which were rejected.",
        )
    if kind in (OutcomeKind.TIMEOUT, "deadline"):
        return Timeout(f"No provider of {pool!r} answered in time{tried}.", hint="Try again, or allow more time.")
    reached = "could not be reached" if kind is OutcomeKind.CONNECT_FAILED else "broke off"
    return ProviderUnreachable(f"The provider {reached}{tried}.", hint="Check base_url and the network, or try again.")


def broken_off(error: UpstreamError, *, partial: bool) -> LLMProxyError:
    """Say that an answer ended before its end."""
    if isinstance(error, UpstreamTimeout):
        return Timeout("The provider stopped sending before the time was over.", hint="Try again, or allow more time.")
    return ProviderUnreachable("The provider broke off its answer.", hint="Try again.", partial=partial)


def provider_error(
    kind: OutcomeKind,
    status: int,
    body: bytes,
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
    now_unix: float = 0.0,
    key: str,
    provider: str,
    secret: Secret,
) -> LLMProxyError:
    """Turn the provider's own error into its exception; a key that it quotes is blotted out.

    `now_unix` (seconds) turns a date in `headers` into a delay.
    """
    if kind is OutcomeKind.AUTH_REJECTED:
        # Such answers quote parts of the key.
        return AllKeysRejected(f"{provider} rejected {key!r} in the middle of its answer.", hint="Check the key.")
    text = body.decode("utf-8", "replace").replace(secret.reveal(), "[key]")[:BODY_CHARACTERS]
    sentence = f"{provider} answered {status}: {_sentence(text)}"
    if kind is OutcomeKind.RATE_LIMITED:
        return RateLimited(sentence, retry_after_s=_retry_after(headers, body, now_unix))
    return ProviderError(sentence, status=status, body=text, key=key, provider=provider)


def _sentence(text: str) -> str:
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        found = text
    for name in ("error", "message"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    return str(found)[:SENTENCE_CHARACTERS]


def _retry_after(headers: Sequence[tuple[bytes, bytes]], body: bytes, now_unix: float) -> float | None:
    told = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    delay_s = parse_retry_after(told, now_unix=now_unix)
    if delay_s is None and (said := parse_error_hint(body)) is not None:
        delay_s = said.retry_after_s
    return delay_s
