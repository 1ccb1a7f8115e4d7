"""Keys that others publish: clients' `jwks_uri` and the issuers of federated workloads, fetched and kept for a while.

Fetching happens outside any database transaction: authentication that lacks keys says so with `KeysNeeded`, the server
fetches and authenticates again, once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from auth.errors import Unavailable

FRESH_S = 300.0
STALE_S = 86_400.0
"""Keys are used this long when their publisher does not answer; it is the publisher who rotates them, slowly."""

RETRY_S = 30.0
"""Between two fetches of one URI at the least, whatever unknown `kid` somebody sends."""

MAX_KEYS = 64
MAX_URIS = 1_000


class JwksFetcher(Protocol):
    """Gets a JWK Set over HTTPS; the implementation guards against internal addresses, redirects and large bodies."""

    async def fetch(self, uri: str) -> Mapping[str, Any]:
        """Return the decoded document; raises `Unavailable` when there is none to be had."""


class InMemoryJwks:
    """The twin for tests: documents by URI, and how often each was asked for."""

    def __init__(self) -> None:
        self.documents: dict[str, Mapping[str, Any]] = {}
        self.fetched: list[str] = []

    async def fetch(self, uri: str) -> Mapping[str, Any]:
        """Return the document that a test put there."""
        self.fetched.append(uri)
        if uri not in self.documents:
            raise Unavailable("The key set does not answer.", debug=uri)
        return self.documents[uri]


class KeysNeeded(Exception):
    """Authentication needs the keys at `uri`, which are not in memory."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.uri = uri


@dataclass(frozen=True, slots=True)
class _Held:
    keys: tuple[Mapping[str, Any], ...]
    fetched_at: float
    tried_at: float


class RemoteKeys:
    """A bounded cache of published keys; one fetch at a time for each URI."""

    def __init__(self, fetcher: JwksFetcher | None) -> None:
        self._fetcher = fetcher
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._locks: dict[str, asyncio.Lock] = {}

    def keys(self, uri: str, kid: str | None, *, now: float) -> Sequence[Mapping[str, Any]]:
        """Return the keys at `uri`, or raise `KeysNeeded` if they are old, or lack `kid` and may be asked for again."""
        held = self._held.get(uri)
        if held is None:
            raise KeysNeeded(uri)
        known = kid is None or any(key.get("kid") == kid for key in held.keys)
        fresh = now - held.fetched_at < FRESH_S
        if (fresh and known) or now - held.tried_at < RETRY_S:
            return held.keys if now - held.fetched_at < STALE_S else ()
        raise KeysNeeded(uri)

    async def load(self, uri: str, *, now: float) -> None:
        """Fetch the keys at `uri`; a failure keeps what is there and is not retried at once."""
        lock = self._locks.setdefault(uri, asyncio.Lock())
        async with lock:
            held = self._held.get(uri)
            if held is not None and now - held.tried_at < RETRY_S:
                return
            keys: tuple[Mapping[str, Any], ...] = held.keys if held else ()
            fetched_at = held.fetched_at if held else 0.0
            try:
                if self._fetcher is not None:
                    document = await self._fetcher.fetch(uri)
                    found = document.get("keys")
                    if isinstance(found, list):
                        keys = tuple(key for key in found[:MAX_KEYS] if isinstance(key, Mapping))
                        fetched_at = now
            except Unavailable:
                pass  # the publisher is away: what is held serves until it is stale
            self._held[uri] = _Held(keys, fetched_at, now)
            self._held.move_to_end(uri)
            if len(self._held) > MAX_URIS:
                dropped, _ = self._held.popitem(last=False)
                self._locks.pop(dropped, None)
