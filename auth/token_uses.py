"""When long-lived tokens were last used: noted in memory by every request, written in batches behind them."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Final

from auth.storage import Connections

log = logging.getLogger(__name__)

FLUSH_EVERY_S: Final = 10.0
MAX_NOTED: Final = 50_000
"""Tokens that are told apart between two flushes; the uses of further ones are noted by their next request."""

# Short-lived tokens have no row and cost an index look-up. To the minute, so that busy tokens are not always written.
_UPDATE: Final = """
update api_token set last_used_at = used.at
from unnest($1::text[], $2::timestamptz[]) as used (jti, at)
where api_token.jti = used.jti
  and (api_token.last_used_at is null or api_token.last_used_at < used.at - interval '1 minute')
"""


class TokenUses:
    """The uses of one process since its last flush; `run` as a task, `close` at the end. Times are Unix seconds."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._noted: dict[str, float] = {}

    def note(self, token_id: str, at: float) -> None:
        """Note that a token was used."""
        noted = self._noted
        if token_id in noted or len(noted) < MAX_NOTED:
            noted[token_id] = at

    async def flush(self) -> None:
        """Write what was noted; raises what the database does, and then keeps it."""
        noted, self._noted = self._noted, {}
        if not noted:
            return
        try:
            async with self._connections.platform() as connection:
                await connection.execute(
                    _UPDATE, list(noted), [datetime.fromtimestamp(at, UTC) for at in noted.values()]
                )
        except BaseException:
            self._noted = {**noted, **self._noted}
            raise

    async def run(self) -> None:
        """Flush for ever."""
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            await self._try()

    async def close(self) -> None:
        """Write what is left, once."""
        await self._try()

    async def _try(self) -> None:
        try:
            await self.flush()
        except Exception as error:  # noqa: BLE001 - a loop's boundary: what was noted is written later
            log.warning("uses of tokens not written", extra={"reason": type(error).__name__})
