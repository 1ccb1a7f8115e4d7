"""How each provider counts: windows, what is charged and when, as documented by the providers themselves.

Sources: platform.openai.com/docs/guides/rate-limits; learn.microsoft.com/azure/ai-services/openai/how-to/quota;
docs.anthropic.com/en/api/rate-limits; ai.google.dev/gemini-api/docs/rate-limits; console.groq.com/docs/rate-limits;
help.mistral.ai 392924; docs.aws.amazon.com/bedrock quotas. A provider that is not listed is counted in the way that no
window semantics can catch out: sliding, settled to the actual usage.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

WindowKind = Literal["continuous", "fixed", "sliding"]
SemanticsOf = Callable[[str], "Semantics"]
"""Gives a provider's way to count by the provider's name."""


@dataclass(frozen=True, slots=True)
class Semantics:
    """A provider's way to count.

    `posts_output`: the answer's tokens count from its end on, not from admission.
    `pacific_day`: days end at midnight in California, else where they are fixed at midnight UTC.
    `settles`: tokens are corrected to the actual usage at the end (else the estimate at admission stands).
    `strict_estimate`: a request whose estimate is above the whole limit is refused by the provider, so it is not sent.
    `total`: what tokens a minute count: input and output, the larger of the two, or input alone. `counts_cached`:
    whether cached input draws on them. `unset_output`: reserved when the caller set no limit; None: as estimated.
    `counts_failed`: whether a refused request costs a request; None: nobody says so. Then it does, which slows down
    whoever is refused again and again, unless limits are learned: there it would only lose what it did not cost.
    `per_model`: whether each model has its own limits.
    `request_window_s`: requests a minute are enforced in windows of this length. `fixed_unknown`: minutes are fixed, in
    a phase that only a refusal's retry-after tells. `rounds_tokens`: remainders of tokens are told rounded to this.
    """

    minute: WindowKind = "sliding"
    day: WindowKind = "continuous"
    pacific_day: bool = False
    request_window_s: float = 60.0
    fixed_unknown: bool = False
    rounds_tokens: int = 0
    settles: bool = True
    posts_output: bool = False
    strict_estimate: bool = False
    total: Literal["sum", "max", "input"] = "sum"
    unset_output: int | None = None
    counts_cached: bool = True
    counts_failed: bool | None = None
    per_model: bool = False


GENERIC = Semantics(posts_output=True)
_OPENAI = Semantics(
    minute="continuous",
    settles=False,
    strict_estimate=True,
    total="max",
    unset_output=0,
    counts_failed=True,
    per_model=True,
)

SEMANTICS: Mapping[str, Semantics] = {
    "openai": _OPENAI,
    # The simulated provider's keys limit all models together, in OpenAI's windows.
    "simulated": Semantics(minute="continuous", settles=False, total="max", unset_output=0, counts_failed=True),
    "azure": Semantics(
        request_window_s=10.0,
        fixed_unknown=True,
        settles=False,
        strict_estimate=True,
        unset_output=1_000,
        per_model=True,
    ),
    "anthropic": Semantics(
        minute="continuous", counts_cached=False, unset_output=4_096, rounds_tokens=1_000, per_model=True
    ),
    "gemini": Semantics(
        minute="fixed",
        day="fixed",
        pacific_day=True,
        total="input",
        counts_failed=False,
        per_model=True,
    ),
    "mistral": Semantics(request_window_s=1.0, posts_output=True),
    "groq": Semantics(minute="continuous", counts_cached=False, per_model=True),
    # Unset reserves the model's maximum, 64,000 or more, until the answer has ended.
    "bedrock": Semantics(minute="fixed", day="fixed", strict_estimate=True, unset_output=64_000, per_model=True),
}

_DATE_SUFFIX = re.compile(r"[-@](?:20[0-9]{2}-?[01][0-9]-?[0-3][0-9]|latest|preview-[0-9]{2}-[0-9]{2}|[0-9]{3,4})\Z")


def semantics_of(provider: str) -> Semantics:
    """Give the row of a provider; `GENERIC` for any that has none, such as servers that merely speak a dialect."""
    return SEMANTICS.get(provider, GENERIC)


def model_family(model: str, semantics: Semantics) -> str:
    """Give the name under which a provider limits `model`: without its date; "" where all models share one limit."""
    return undated(model) if semantics.per_model else ""


def undated(model: str) -> str:
    """Give a model's name without the date of its snapshot."""
    return _DATE_SUFFIX.sub("", model)
