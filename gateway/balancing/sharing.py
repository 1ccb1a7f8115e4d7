"""Which quotas turn out to be one: providers name in their headers the organisation or project that a request drew on.

Two keys configured with quotas of their own, but answered under one name by one provider, draw on one bucket: counted
apart, each would promise what the other has spent. The first quota seen under a name is the one that counts; a quota
that is answered under another name from then on (its key was moved) counts for itself again.
"""

from __future__ import annotations

from collections.abc import Container

MAX_NAMES = 8
"""Names remembered of one quota; more would be a provider that makes them up."""


class SharedQuotas:
    """Names by quota id, and the quota that stands for each; ids are those of the configuration."""

    __slots__ = ("_first", "_merged", "_names")

    def __init__(self) -> None:
        self._names: dict[str, dict[str, None]] = {}
        self._first: dict[tuple[str, str], str] = {}
        self._merged: dict[str, str] = {}

    def note(self, quota_id: str, provider: str, name: str) -> bool:
        """Take in that a request on `quota_id` was answered under `name`; True when another quota now stands for it."""
        names = self._names.setdefault(quota_id, {})
        if next(reversed(names), None) == name:
            return False
        names.pop(name, None)
        while len(names) >= MAX_NAMES:
            del names[next(iter(names))]
        names[name] = None
        before = self.stands_for(quota_id)
        self._merged.pop(quota_id, None)
        first = self._first.setdefault((provider, name), quota_id)
        if first != quota_id and first not in self._merged:
            self._merged[quota_id] = first
        return self.stands_for(quota_id) != before

    def stands_for(self, quota_id: str) -> str:
        """Give the id of the quota that counts for `quota_id`; most often itself."""
        return self._merged.get(quota_id, quota_id)

    def names(self, quota_id: str) -> tuple[str, ...]:
        """Give the provider's names for it, the latest last."""
        return tuple(self._names.get(quota_id, ()))

    def keep(self, quota_ids: Container[str]) -> None:
        """Forget quotas that are no longer configured."""
        self._names = {key: names for key, names in self._names.items() if key in quota_ids}
        self._first = {name: key for name, key in self._first.items() if key in quota_ids}
        self._merged = {key: first for key, first in self._merged.items() if key in quota_ids and first in quota_ids}
