"""What a provider limits: an organisation, project or deployment. Keys only draw on it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Limits:
    """A provider's limits; None = not limited, or not known.

    `rpm`/`rpd` requests a minute/day, `tpm`/`tpd` tokens in and out together, `itpm` input tokens, `otpm` output tokens
    a minute, `concurrency` requests in flight. All but the last count for each model family by itself where the
    provider counts so (`Semantics.per_model`); requests in flight count over all families together.
    """

    rpm: int | None = None
    tpm: int | None = None
    itpm: int | None = None
    otpm: int | None = None
    rpd: int | None = None
    tpd: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """A bucket of limits that one or more endpoints share."""

    id: str
    limits: Limits = field(default_factory=Limits)
    provider: str = ""
