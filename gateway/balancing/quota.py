"""What a provider limits: an organisation, project or deployment, and in it each model family. Keys only draw on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace


@dataclass(frozen=True, slots=True)
class Limits:
    """A provider's limits; None = not limited, or not known.

    `rpm`/`rpd` requests a minute/day, `tpm`/`tpd` tokens in and out together, `itpm` input tokens, `otpm` output tokens
    a minute, `concurrency` requests in flight.
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
    """A bucket of limits that one or more endpoints share.

    `limits` hold for each model family by itself where the provider counts so (`Semantics.per_model`), else for all
    models together; `limits.concurrency` always holds for all together. `families` are families with limits of their
    own, by the name of a model or a pattern of several (`claude-opus-4*`) that share them: each counts by itself with
    every provider, `concurrency` included, and takes from `limits` what it leaves out.
    """

    id: str
    limits: Limits = field(default_factory=Limits)
    provider: str = ""
    families: Mapping[str, Limits] = field(default_factory=dict, hash=False)

    def limits_of(self, family: str) -> Limits:
        """Give the limits that one family counts by itself."""
        own = self.families.get(family)
        common = replace(self.limits, concurrency=None)
        if own is None:
            return common
        given = {each.name: value for each in fields(Limits) if (value := getattr(own, each.name)) is not None}
        return replace(common, **given)
