"""Which quotas turn out to be one: providers name in their headers the organisation or project that a request drew on.

Two keys configured with quotas of their own, but answered under one name by one provider, draw on one bucket: counted
apart, each would promise what the other has spent. Of the quotas of one name the one with the smallest id counts; a
quota that is answered under another name from then on (its key was moved) counts for itself again.

Processes tell each other what names they were answered under. Of two words on one quota the later stands (`later`), and
which quota counts follows from the words alone: whoever has heard the same words, in whatever order and however often,
counts on the same quota.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from math import isfinite
from typing import NamedTuple

from gateway.balancing.ledger import Ledger

MAX_NAMES = 8
"""Names remembered of one quota; more would be a provider that makes them up."""


class Named(NamedTuple):
    """Under what name a quota was answered from `at` (Unix seconds) on."""

    at: float
    provider: str
    name: str


def later(one: Named | None, other: Named | None) -> Named | None:
    """Give the word that stands of two on one quota; where they came at one moment the greater name."""
    if one is None or other is None:
        return one or other
    return max(one, other)


class SharedQuotas:
    """Names by quota id, and the quota that stands for each; ids are those of the configuration."""

    __slots__ = ("_known", "_names", "_stands")

    def __init__(self) -> None:
        self._names: dict[str, dict[str, None]] = {}
        self._known: dict[str, Named] = {}
        self._stands: dict[tuple[str, str], str] = {}

    def note(self, quota_id: str, provider: str, name: str, at: float) -> frozenset[str]:
        """Take in that a request on `quota_id` was answered under `name` just now (`at`, Unix seconds).

        Gives the quotas for which another one stands now.
        """
        known = self._known.get(quota_id)
        if known is not None:
            if known.name == name and known.provider == provider:
                return frozenset()
            # What was answered here is later than all that was heard, whatever clocks say.
            at = max(at, known.at)
        return self._take(quota_id, Named(at, provider, name))

    def hear(self, quota_id: str, said: Named) -> frozenset[str]:
        """Take in what another process was answered; gives what `note` gives."""
        known = self._known.get(quota_id)
        if later(known, said) is known:
            return frozenset()
        if known is not None and known[1:] == said[1:]:
            self._known[quota_id] = said
            return frozenset()
        return self._take(quota_id, said)

    def _take(self, quota_id: str, said: Named) -> frozenset[str]:
        names = self._names.setdefault(quota_id, {})
        names.pop(said.name, None)
        while len(names) >= MAX_NAMES:
            del names[next(iter(names))]
        names[said.name] = None
        known = self._known.get(quota_id)
        touched = {said[1:], known[1:]} if known is not None else {said[1:]}
        concerned = {quota_id, *(each for each, other in self._known.items() if other[1:] in touched)}
        before = {each: self.stands_for(each) for each in concerned}
        self._known[quota_id] = said
        self._work_out()
        return frozenset(each for each, stood in before.items() if self.stands_for(each) != stood)

    def _work_out(self) -> None:
        self._stands = {}
        for quota_id, said in self._known.items():
            self._stands[said[1:]] = min(quota_id, self._stands.get(said[1:], quota_id))

    def stands_for(self, quota_id: str) -> str:
        """Give the id of the quota that counts for `quota_id`; most often itself."""
        known = self._known.get(quota_id)
        return quota_id if known is None else self._stands[known[1:]]

    @property
    def words(self) -> Mapping[str, Named]:
        """The word that stands of each quota."""
        return self._known

    def names(self, quota_id: str) -> tuple[str, ...]:
        """Give the provider's names for it, the latest last."""
        return tuple(self._names.get(quota_id, ()))

    def keep(self, quota_ids: Container[str]) -> None:
        """Forget quotas that are no longer configured."""
        self._names = {key: names for key, names in self._names.items() if key in quota_ids}
        self._known = {key: said for key, said in self._known.items() if key in quota_ids}
        self._work_out()


def take_over(mine: Ledger, theirs: Ledger) -> None:
    """Let `mine` know what was known of an account that turned out to be the same: the more that was used counts."""
    now = max(mine.used_at, theirs.used_at)
    for dimension, limit in theirs.told.items():
        if dimension not in mine.told:
            mine.hear_limit(dimension, limit, now)
    for dimension, meter in mine.meters():
        other = theirs.meter(dimension)
        if other is None:
            continue
        surplus = (other.limit - other.available(now)) - (meter.limit - meter.available(now))
        if surplus > 0.0:
            taken = meter.taken
            meter.take(surplus, now)
            # Not taken by a request of this account: no later word of the provider has to be corrected by it.
            meter.taken = taken
    mine.cooldown.hear(theirs.cooldown.until, now)


def name_in(saved: Mapping[str, Mapping[str, object]]) -> Named | None:
    """Give the word that was saved beside a quota's accounts; whatever is not understood is none."""
    said = saved.get("", {}).get("name")
    if isinstance(said, list) and len(said) == 3:
        at, provider, name = said
        if isinstance(at, int | float) and isfinite(at) and isinstance(provider, str) and isinstance(name, str):
            return Named(float(at), provider, name)
    return None
