"""Short-lived provider tokens for keys that have no secret: got before they are needed, held in memory only.

One token for each source, whatever number of keys and requests want it. A token is renewed after about two thirds of
its life; while that fails the old one serves on, and it is tried again with a growing pause. When a token ends without
a new one its keys are out of service until there is one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Final
from uuid import UUID

from uuid_utils.compat import uuid7

from auth.errors import Unavailable
from auth.secret import Secret
from tenants.federation import Token, claims_of, exchange
from tenants.snapshot import FederatedSource, TenantSnapshot
from tenants.sources.protocol import Assertions, HttpCalls, SourceAway, SourceRefused

logger = logging.getLogger(__name__)

EVERY_S: Final = 0.25
RENEW_AT: Final = (0.6, 0.75)
"""Between these shares of its life a token is renewed, drawn anew each time: processes must not all ask at once."""
MARGIN_S: Final = 5.0
"""So long before its end a token is given to no new request: clocks differ, and requests travel."""
RETRY_FIRST_S: Final = 1.0
RETRY_MOST_S: Final = 60.0
EXCHANGE_S: Final = 20.0


def nobody(_: UUID) -> None:
    """Stand in until somebody wants to be told."""


@dataclass(slots=True)
class Held:
    """What is held for one source; moments on the keeper's monotonic clock."""

    tenant_id: UUID
    source: FederatedSource
    secret: Secret | None = None
    ends_at: float = -inf
    due_at: float = -inf
    got_at: float = -inf
    failures: int = 0
    task: asyncio.Task[None] | None = None
    tried: asyncio.Event = field(default_factory=asyncio.Event)


class TokenKeeper:
    """The tokens of one process. `run` as a task; `changed` is told of each tenant whose keys got or lost a token.

    `clock` is monotonic seconds, `unix_clock` Unix seconds.
    """

    def __init__(
        self,
        http: HttpCalls,
        assertions: Assertions,
        *,
        issuer: str,
        clock: Callable[[], float],
        unix_clock: Callable[[], float],
        rng: Random,
    ) -> None:
        self._http = http
        self._assertions = assertions
        self._issuer = issuer
        self._clock = clock
        self._unix_clock = unix_clock
        self._rng = rng
        self._held: dict[UUID, Held] = {}
        self.changed: Callable[[UUID], None] = nobody
        self.exchanges = 0
        self.failures = 0

    @property
    def wanted(self) -> int:
        """How many tokens the keys in memory need."""
        return len(self._held)

    @property
    def missing(self) -> int:
        """How many of them are not there: their keys are out of service."""
        return sum(held.secret is None for held in self._held.values())

    def want(self, snapshot: TenantSnapshot) -> bool:
        """Take in which tokens a tenant's keys need, and get those not held yet; tells whether they need any."""
        sources = {
            key.source.source_id: key.source for pool in snapshot.pools for key in pool.keys if key.source is not None
        }
        for source_id in [key for key, held in self._held.items() if held.tenant_id == snapshot.tenant_id]:
            if source_id not in sources:
                self._drop(source_id)
        for source_id, source in sources.items():
            held = self._held.get(source_id)
            if held is None:
                held = self._held[source_id] = Held(snapshot.tenant_id, source)
                self._begin(held)
            held.source = source
        return bool(sources)

    def forget(self, tenant_id: UUID) -> None:
        """Drop what a tenant that is gone needed."""
        for source_id in [key for key, held in self._held.items() if held.tenant_id == tenant_id]:
            self._drop(source_id)

    def secret(self, source_id: UUID) -> Secret | None:
        """Return the token of a source, None while there is none."""
        held = self._held.get(source_id)
        return None if held is None else held.secret

    def refused(self, source_id: UUID) -> None:
        """Take in that the provider refuses the token: a new one is got, once for each that was got before."""
        held = self._held.get(source_id)
        if held is not None and held.failures == 0 and self._clock() - held.got_at > RETRY_FIRST_S:
            held.due_at = -inf

    async def settled(self, tenant_id: UUID | None = None) -> None:
        """Return when each token (of one tenant) was tried for; bound it with a timeout."""
        for held in list(self._held.values()):
            if tenant_id is None or held.tenant_id == tenant_id:
                await held.tried.wait()

    async def run(self) -> None:
        """Renew for ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            self.round()

    def round(self) -> None:
        """Begin what is due, and put tokens that have ended out of service."""
        now = self._clock()
        for held in list(self._held.values()):
            if held.secret is not None and now >= held.ends_at:
                held.secret = None
                logger.error("a federated token ended without a new one", extra=_names(held))
                self.changed(held.tenant_id)
            if held.task is None and now >= held.due_at:
                self._begin(held)

    async def close(self) -> None:
        """Stop what is under way."""
        for source_id in list(self._held):
            held = self._held[source_id]
            self._drop(source_id)
            if held.task is not None:
                with suppress(asyncio.CancelledError):
                    await held.task

    def _drop(self, source_id: UUID) -> None:
        held = self._held.pop(source_id)
        if held.task is not None:
            held.task.cancel()

    def _begin(self, held: Held) -> None:
        held.task = asyncio.create_task(self._renew(held), name="token exchange")

    async def _renew(self, held: Held) -> None:
        try:
            try:
                async with asyncio.timeout(EXCHANGE_S):
                    token = await self._exchange(held)
            except (SourceAway, SourceRefused, Unavailable, TimeoutError) as error:
                self._failed(held, error)
            except Exception as error:  # a loop's boundary: counted and logged like any other failure
                logger.exception("a token exchange broke", extra=_names(held))
                self._failed(held, error)
            else:
                now = self._clock()
                held.secret, held.failures, held.got_at = token.secret, 0, now
                held.ends_at = now + token.lifetime_s - MARGIN_S
                held.due_at = now + token.lifetime_s * self._rng.uniform(*RENEW_AT)
                self.changed(held.tenant_id)
        finally:
            held.task = None
            held.tried.set()

    async def _exchange(self, held: Held) -> Token:
        self.exchanges += 1
        source = held.source
        claims = claims_of(
            source.settings,
            issuer=self._issuer,
            tenant_id=held.tenant_id,
            source_id=source.source_id,
            token_id=str(uuid7()),
            now=self._unix_clock(),
        )
        assertion = await self._assertions.sign(claims, algorithm=source.settings.algorithm)
        return await exchange(self._http, source.settings, assertion)

    def _failed(self, held: Held, error: Exception) -> None:
        self.failures += 1
        held.failures += 1
        pause_s = min(RETRY_FIRST_S * 2.0 ** min(held.failures - 1, 16), RETRY_MOST_S)
        held.due_at = self._clock() + pause_s * self._rng.uniform(0.8, 1.2)
        serves = "the old token serves on" if held.secret is not None else "its keys are out of service"
        level = logging.WARNING if held.failures == 1 else logging.INFO
        logger.log(level, "a token exchange failed: %s", serves, extra={**_names(held), "reason": str(error)})


def _names(held: Held) -> dict[str, str]:
    return {
        "tenant_id": str(held.tenant_id),
        "source_id": str(held.source.source_id),
        "provider": held.source.settings.provider,
    }
