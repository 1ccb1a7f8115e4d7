"""Keeps what tokens are verified with fresh in memory: the published signing keys and the deny-list.

Notices bring changes within milliseconds; a poll stands behind them. While Postgres is away the last state serves on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress

from auth.keyset import KeySet, PublicKey
from auth.revocations import Revocation, Revocations
from auth.signing_keys import SigningKeys, load_public
from auth.storage import Connections
from gateway.database import EVERYTHING, Change

log = logging.getLogger(__name__)

_RETRY_S = 0.5
_LONGEST_RETRY_S = 10.0


class Trust:
    """The verification state of one process; `signing` adds the private half where tokens are issued.

    `clock` is Unix seconds. `start` loads once (or notes that Postgres is away), `run` is its task's work.
    """

    def __init__(
        self,
        connections: Connections,
        keys: KeySet,
        revocations: Revocations,
        *,
        clock: Callable[[], float],
        signing: SigningKeys | None = None,
        poll_s: float = 15.0,
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._revocations = revocations
        self._clock = clock
        self._signing = signing
        self._poll_s = poll_s
        self._wake = asyncio.Event()
        self.is_ready = False
        self.failures = 0

    def changed(self, change: Change) -> None:
        """Take one notice of a committed change."""
        if change == EVERYTHING or change.table in ("signing_key", "token_revocation"):
            self._wake.set()

    def adopt(self, keys: Iterable[PublicKey], revocations: Iterable[Revocation]) -> None:
        """Begin with what a sealed state holds; the first refresh that works replaces it."""
        self._keys.replace(keys)
        self._revocations.add(revocations)
        self.is_ready = len(self._keys) > 0

    async def refresh(self) -> None:
        """Load keys and revocations now; where tokens are issued, also do what the rotation plan says is due."""
        # First of all what is refused: a KMS that is away may stop the signing keys, and must not stop this.
        await self._revocations.refresh(self._connections, now=self._clock())
        if self._signing is not None:
            await self._signing.maintain(now=self._clock())
        else:
            await load_public(self._connections, self._keys)
        # A gateway that starts before any control plane has no key yet, and so no token that it could accept.
        self.is_ready = len(self._keys) > 0

    async def run(self, first: asyncio.Event) -> None:
        """Refresh for ever; `first` is set after the first try, whether or not it worked."""
        retry_s = _RETRY_S
        while True:
            self._wake.clear()
            delay_s = self._poll_s
            try:
                await self.refresh()
                if retry_s > _RETRY_S:
                    log.info("token state refreshed again")
                retry_s = _RETRY_S
            except Exception as error:  # noqa: BLE001 - a loop's boundary: the last state serves until the next try
                self.failures += 1
                # One warning an outage: the retries of a long one would bury everything else.
                level = logging.DEBUG if retry_s > _RETRY_S else logging.WARNING
                delay_s, retry_s = retry_s, min(retry_s * 2, _LONGEST_RETRY_S)
                log.log(level, "token state not refreshed, using what is known", extra={"reason": repr(error)})
            first.set()
            if not self.is_ready and delay_s == self._poll_s:
                delay_s = _RETRY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._wake.wait()
