"""Asks keys whether they work, so that no caller's request has to find out: those that are out of service, and where a
pool wants it (`health_check_s`) all of them at an interval.

A probe is the cheapest authenticated call there is: the provider's list of models. It proves the address and the key,
not that every model may be used; so a key that trips again soon after is asked less and less often.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from uuid import UUID

from gateway.balancing.outcome import OutcomeKind
from gateway.proxy.directory import Directory
from gateway.proxy.headers import with_beta
from gateway.proxy.key_target import KeyTarget
from gateway.proxy.runtime import PoolRuntime
from gateway.unhurried import unhurried
from gateway.upstream.classify import classify
from gateway.upstream.dispatch import Sender
from gateway.upstream.errors import UpstreamError
from gateway.upstream.message import Deadlines, UpstreamRequest
from gateway.upstream.providers import DIALECT_ROOTS

logger = logging.getLogger(__name__)

_DEADLINES = Deadlines(connect_s=5.0, write_s=5.0, first_byte_s=10.0, idle_s=10.0, total_s=20.0)
_WELL = frozenset({OutcomeKind.OK, OutcomeKind.CLIENT_ERROR, OutcomeKind.RATE_LIMITED})
"""The key was let in: a provider that has no such list, or counts the probe against a limit, is well."""
_PEEK_BYTES = 16 * 1024


@dataclass(slots=True)
class _Patient:
    """When to ask next, and how long to wait after that; seconds on the prober's clock."""

    next_at: float
    delay_s: float


class Prober:
    """Probes every `interval_s` the keys that are due: first after `first_s`, then ever less often up to `max_s`.

    `token_refused` is told of the source of a short-lived token that the provider refuses.
    """

    def __init__(
        self,
        directory: Directory,
        upstream: Sender,
        *,
        clock: Callable[[], float],
        interval_s: float = 1.0,
        first_s: float = 5.0,
        max_s: float = 300.0,
        at_once: int = 16,
        token_refused: Callable[[UUID], None] | None = None,
        rng: Random | None = None,
    ) -> None:
        self._directory = directory
        self._upstream = upstream
        self._clock = clock
        self._interval_s = interval_s
        self._first_s = first_s
        self._max_s = max_s
        self._at_once = asyncio.Semaphore(at_once)
        self._patients: dict[str, _Patient] = {}
        self._token_refused = token_refused
        self._rng = rng or Random()  # noqa: S311 - spreads the checks; nothing secret is drawn from it
        self._checks: dict[str, float] = {}
        self.checks = self.probes = 0
        self.revived = 0

    async def run(self) -> None:
        """Probe for ever; run it as a task and cancel it."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.round()
            except Exception as error:  # a loop's boundary: a broken round must not end the probing
                logger.error("probing failed", exc_info=error)

    async def round(self) -> None:
        """Probe what is due now, and forget keys that have been well for as long as they would be waited for."""
        now = self._clock()
        due: list[tuple[PoolRuntime, str, KeyTarget]] = []
        async for tenant in unhurried(self._directory.to_probe()):
            for pool in tenant.pools.values():
                every_s = pool.settings.health_check_s
                out = pool.balancer.out_of_service()
                for endpoint_id in out:
                    target = pool.targets.get(endpoint_id)
                    if target is not None and self._is_due(endpoint_id, now, every_s):
                        due.append((pool, endpoint_id, target))
                if every_s is not None:
                    well = [(key, target) for key, target in pool.targets.items() if key not in out]
                    due += [(pool, key, target) for key, target in well if self._is_checked_now(key, now, every_s)]
        for endpoint_id in [key for key, one in self._patients.items() if now > one.next_at + self._max_s]:
            del self._patients[endpoint_id]
        for endpoint_id in [key for key, at in self._checks.items() if now > at + self._max_s]:
            del self._checks[endpoint_id]
        await asyncio.gather(*(self._probe(*each) for each in due))

    def _is_due(self, endpoint_id: str, now: float, every_s: float | None) -> bool:
        patient = self._patients.get(endpoint_id)
        if patient is None:
            first_s = self._first_s if every_s is None else min(every_s, self._first_s)
            self._patients[endpoint_id] = _Patient(now + first_s, first_s)
            return False
        if now < patient.next_at:
            return False
        patient.delay_s = min(patient.delay_s * 2, self._max_s if every_s is None else max(every_s, self._first_s))
        patient.next_at = now + patient.delay_s
        return True

    def _is_checked_now(self, endpoint_id: str, now: float, every_s: float) -> bool:
        at = self._checks.get(endpoint_id)
        if at is not None and now < at:
            return False
        # The first one comes at some moment of the interval: keys are not checked all at once.
        self._checks[endpoint_id] = now + (every_s * self._rng.random() if at is None else every_s)
        return at is not None

    async def _probe(self, pool: PoolRuntime, endpoint_id: str, target: KeyTarget) -> None:
        async with self._at_once:
            kind = await self._ask(target)
        if endpoint_id not in pool.balancer.out_of_service():
            self.checks += 1
            pool.balancer.checked(endpoint_id, kind, now=self._clock())
            return
        self.probes += 1
        extra = {"pool": pool.name, "key": target.name, "outcome": kind.value}
        if kind in _WELL:
            self.revived += 1
            pool.balancer.revive(endpoint_id)
            logger.info("a key is back in service", extra=extra)
        else:
            if kind is OutcomeKind.AUTH_REJECTED and target.source_id is not None and self._token_refused is not None:
                self._token_refused(target.source_id)
            logger.info("a key stays out of service", extra=extra)

    async def _ask(self, target: KeyTarget) -> OutcomeKind:
        dialect, face = next(iter(target.faces.items()))
        request = UpstreamRequest(
            b"GET",
            face.target.path(f"{DIALECT_ROOTS[dialect]}/models"),
            with_beta([(b"accept", b"application/json"), *face.target.face.defaults], face.beta),
            b"",
            face.fixed,
        )
        try:
            response = await self._upstream.send(face.target.origin, request, _DEADLINES)
            try:
                body = b""
                while len(body) < _PEEK_BYTES and (chunk := await response.read()):
                    body += chunk
            finally:
                response.close()
        except UpstreamError:
            return OutcomeKind.CONNECT_FAILED
        return classify(response.status, body)
