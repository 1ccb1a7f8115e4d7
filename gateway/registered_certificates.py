"""Keeps the TLS listener's trust in step with the self-signed certificates that clients registered."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from typing import Final
from uuid import UUID

from auth.certificates import registered_certificates
from auth.storage import Connections
from gateway.database import EVERYTHING, Change
from gateway.tls import ServerTls

log = logging.getLogger(__name__)

_RETRY_S: Final = 2.0
MAX_PER_TENANT: Final = 500
"""No tenant fills the listener's memory: its clients beyond that are not let in by TLS, and the log says so."""

_QUERY: Final = (
    "select tenant_id, metadata::text as metadata from oauth_client"
    " where auth_method = 'self_signed_tls_client_auth' and status = 'active' order by id"
)


class RegisteredCertificates:
    """Reads them at first, on notices of `oauth_client` and on a poll; `run` is a task."""

    def __init__(self, connections: Connections, tls: ServerTls, *, poll_s: float) -> None:
        self._connections = connections
        self._tls = tls
        self._poll_s = poll_s
        self._wake = asyncio.Event()

    def changed(self, change: Change) -> None:
        """Take one notice of a committed change."""
        if change == EVERYTHING or change.table == "oauth_client":
            self._wake.set()

    async def refresh(self) -> None:
        """Trust what is registered now."""
        async with self._connections.platform() as connection:
            rows = await connection.fetch(_QUERY)
        by_tenant: dict[UUID, list[bytes]] = {}
        for row in rows:
            by_tenant.setdefault(row["tenant_id"], []).extend(registered_certificates(json.loads(row["metadata"])))
        for tenant_id, found in by_tenant.items():
            if len(found) > MAX_PER_TENANT:
                log.warning("a tenant has more certificates than are trusted", extra={"tenant_id": str(tenant_id)})
        trusted = [der for found in by_tenant.values() for der in found[:MAX_PER_TENANT]]
        await asyncio.to_thread(self._tls.trust, trusted)

    async def run(self) -> None:
        """Refresh for ever; while Postgres is away what was trusted last stays so."""
        while True:
            self._wake.clear()
            delay_s = self._poll_s
            try:
                await self.refresh()
            except Exception as error:  # noqa: BLE001 - a loop's boundary: the last ones are trusted on
                log.warning("registered certificates not refreshed", extra={"reason": type(error).__name__})
                delay_s = _RETRY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._wake.wait()
