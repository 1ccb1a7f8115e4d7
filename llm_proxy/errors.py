"""What can go wrong, as exceptions: one tree, so that `except LLMProxyError` catches all of it.

No message, attribute or repr of these ever holds a provider key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


class LLMProxyError(Exception):
    """The root. `hint` says how to mend it, "" when there is nothing to do but to try again."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Callable[..., LLMProxyError], tuple[Any, ...]]:
        # Exceptions are made anew from `args` by default, which are not what these take: a pool of processes would
        # break on one that a worker raised.
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[LLMProxyError], args: tuple[Any, ...], attributes: Mapping[str, Any]) -> LLMProxyError:
    made = kind.__new__(kind)
    made.args = args
    made.__dict__.update(attributes)
    return made


class ConfigurationError(LLMProxyError):
    """The configuration cannot be used; `problems` lists every (JSON pointer, sentence) of it at once."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        count = "One thing" if len(self.problems) == 1 else f"{len(self.problems)} things"
        lines = "".join(f"\n  {pointer or '/'}: {sentence}" for pointer, sentence in self.problems)
        super().__init__(f"{count} in the configuration must be mended:{lines}")


class InvalidRequest(LLMProxyError):
    """The arguments are not what the call takes; nothing was sent."""


class BalancerClosed(LLMProxyError):
    """The balancer was closed before or during the call."""


class MissingPackage(LLMProxyError):
    """An optional package is not installed; the hint says which."""


class ModelNotServed(LLMProxyError):
    """No key of the configuration serves this model in this API."""


class RequestTooLarge(LLMProxyError):
    """The request needs more tokens than any key may use in a whole minute: waiting cannot help."""


class RateLimited(LLMProxyError):
    """Every key is at its limit for longer than the call may wait; trying again after `retry_after_s` may help."""

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class AllKeysRejected(LLMProxyError):
    """The provider rejected every key that could serve the call (401, 403, billing)."""


class Timeout(LLMProxyError, TimeoutError):
    """No provider answered, or went on answering, in the time the call may take."""


class ProviderUnreachable(LLMProxyError):
    """No connection, or it broke before the answer was complete. `partial` tells whether content was delivered."""

    def __init__(self, message: str, *, hint: str = "", partial: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.partial = partial


class ProviderError(LLMProxyError):
    """The provider's own error: its HTTP `status`, its `body` as text (bounded), and the `key` that was asked, by name.

    `status` is 200 for an error that came as an event of a stream.
    """

    def __init__(self, message: str, *, status: int, body: str, key: str, provider: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.key = key
        self.provider = provider
