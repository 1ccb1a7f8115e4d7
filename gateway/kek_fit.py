"""Holds readiness back while the key-encryption key is not the one that the database's secrets were sealed under.

A process with another's key would load every tenant without a provider key, call itself ready, and take the place of
one that still serves. It stays alive, so that `llm-proxy kek` can be run beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from auth.storage import Connections
from tenants.errors import KekDisabled, KekUnavailable, SealBroken
from tenants.kek_uses import STATUS_TIMEOUT_S, KekUse, kek_uses
from tenants.keyring import KeyWrapper, Wrapped
from tenants.shares.layer import wrap_context

log = logging.getLogger(__name__)

LOOK_S: Final = 2.0
_SHOWN: Final = 3
_TRIED: Final = 3
"""So many data keys of each KEK: one of a tenant whose share was destroyed opens under none."""
_SOME: Final = "select id, tenant_id, kek_uri, wrapped from data_key where kek_uri = $1 limit $2"
_UNKNOWN: Final = "The key-encryption key has not been compared with the database yet."


class KekFit:
    """Whether `wrapper` opens any of the data keys that are there; once it does, what happens later is no matter.

    One that opens some alone is in the midst of a rotation, or has lost a part: the rest is counted and alerted on.
    """

    def __init__(self, connections: Connections, wrapper: KeyWrapper) -> None:
        self._connections = connections
        self._wrapper = wrapper
        self._sentence: str | None = _UNKNOWN

    def check(self) -> str | None:
        """Say why the process is not ready; None when it is."""
        return self._sentence

    async def look(self) -> None:
        """Compare once; what cannot be seen now leaves the last word."""
        try:
            uses = [use for use in await kek_uses(self._connections) if use.role == "wraps"]
            fits = not uses or any(self._wrapper.opens(use.kek_uri) for use in uses) or await self._opens_some(uses)
        except Exception as error:  # noqa: BLE001 - a loop's boundary: the next look may tell
            log.warning("key-encryption key not compared", extra={"reason": f"{type(error).__name__}: {error}"})
            return
        if fits:
            self._sentence = None
            return
        names = ", ".join(use.kek_uri for use in uses[:_SHOWN])
        total = sum(use.data_keys for use in uses)
        sentence = (
            f"LLM_PROXY_KEK opens none of the {total} data keys in the database, which are wrapped under {names};"
            f" it is {self._wrapper.uri}. Name the former key too, or the right database."
        )
        if sentence != self._sentence:
            log.error("not ready: %s", sentence)
        self._sentence = sentence

    async def _opens_some(self, uses: list[KekUse]) -> bool:
        """Try it: the same key may have another name, a KMS's alias or replica, or a Vault that has moved."""
        async with self._connections.platform() as connection:
            rows = [row for use in uses[:_SHOWN] for row in await connection.fetch(_SOME, use.kek_uri, _TRIED)]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                for row in rows:
                    context = wrap_context(row["tenant_id"], row["id"])
                    with contextlib.suppress(SealBroken, KekDisabled, KekUnavailable):
                        await self._wrapper.unwrap(context, Wrapped(row["kek_uri"], bytes(row["wrapped"])))
                        return True
        return False

    async def run(self) -> None:
        """Look until it fits; run it as a task and cancel it."""
        while self._sentence is not None:
            await asyncio.sleep(LOOK_S)
            await self.look()
