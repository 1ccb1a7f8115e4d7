"""Tells the other processes which DPoP proofs were used here, moments later and off the request path.

Within a process a proof is good once, exactly. Between processes it is refused as soon as its use was announced: the
batch that a tenth of a second collects is written to Postgres, which tells everybody. docs/adr/0008 says why this and
not a shared check (RFC 9449 section 11.1). What a process does not hear of, for Postgres is away, it cannot refuse.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final
from uuid import UUID, uuid4

from auth.dpop import DIGEST_BYTES, KEPT_S, ProofCache
from auth.storage import Connections

log = logging.getLogger(__name__)

TABLE: Final = "used_proofs"
COLLECT_S: Final = 0.1
_LOOK_BACK_S: Final = 10.0
"""A batch that was recorded earlier may be committed later."""
_MAX_UNSAID: Final = 500_000


class ProofSharing:
    """Shares `cache` with the other processes; `run` as a task. `poll_s` stands behind lost notices."""

    def __init__(
        self, cache: ProofCache, connections: Connections, *, clock: Callable[[], float], poll_s: float = 15.0
    ) -> None:
        self._cache = cache
        self._connections = connections
        self._clock = clock
        self._poll_s = poll_s
        self._me: UUID = uuid4()
        self._unsaid: list[bytes] = []
        self._read_to = 0.0
        self._wake = asyncio.Event()
        cache.used = self._note

    def changed(self, table: str) -> None:
        """Take a notice of a committed change; "*": anything may have changed."""
        if table in (TABLE, "*"):
            self._wake.set()

    def _note(self, digest: bytes) -> None:
        if len(self._unsaid) < _MAX_UNSAID:
            self._unsaid.append(digest)
            if len(self._unsaid) == 1:
                self._wake.set()

    async def exchange(self) -> None:
        """Say what was used here and learn what was used elsewhere; raises what the database does."""
        said = len(self._unsaid)
        batch = b"".join(self._unsaid[:said])
        async with self._connections.platform() as connection:
            if batch:
                await connection.execute(
                    "insert into used_proofs (process, digests, expires_at)"
                    " values ($1, $2, now() + make_interval(secs => $3))",
                    self._me,
                    batch,
                    KEPT_S,
                )
            rows = await connection.fetch(
                "select digests, extract(epoch from recorded_at)::float8 as recorded_at from used_proofs"
                " where process <> $1 and expires_at > now()"
                # A clock that was set back, or is behind in the server that took over, must hide nothing.
                " and recorded_at > least(to_timestamp($2), now()) - make_interval(secs => $3)",
                self._me,
                self._read_to,
                _LOOK_BACK_S,
            )
        del self._unsaid[:said]
        now = self._clock()
        for row in rows:
            digests: bytes = row["digests"]
            self._cache.learn(
                (digests[place : place + DIGEST_BYTES] for place in range(0, len(digests), DIGEST_BYTES)), now=now
            )
            self._read_to = max(self._read_to, row["recorded_at"])

    async def run(self) -> None:
        """Share for ever; while Postgres is away what was used here is kept and said later."""
        away = False
        while True:
            self._wake.clear()
            try:
                await self.exchange()
                away = False
            except Exception as error:  # noqa: BLE001 - a loop's boundary: what is known refuses on
                if not away:
                    log.warning("used DPoP proofs not shared", extra={"reason": type(error).__name__})
                away = True
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._wake.wait()
            await asyncio.sleep(1.0 if away else COLLECT_S)


async def purge_proofs(connections: Connections) -> None:
    """Forget uses whose proofs are too old anyway."""
    async with connections.platform() as connection:
        await connection.execute("delete from used_proofs where expires_at < now()")
