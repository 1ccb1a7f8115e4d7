"""Exchanges that take long, or are given up though the store took them: the limit is used, and not overrun."""

from __future__ import annotations

from random import Random

import pytest

from gateway.balancing.quota import Limits
from gateway.leases.driver import MAX_SPAN_S, PERIOD_S
from gateway.leases.row import Answer, Report, Row, exchange
from gateway.leases.store import Key
from tests.leases.world import UNIX, Process, World

RPM, PROCESSES, OFFERED = 6_000, 4, 1.5
PUT_BY = 0.05
"""Of a limit about so much lies between exchanges that take 1.2 s."""


class SlowProcess(Process):
    """Exchanges by hand what its driver would: an answer comes `store.takes_s` after the report, or not at all."""

    def __init__(self, world: World, store: SlowStore, number: int) -> None:
        rps = OFFERED * RPM / 60.0 / PROCESSES
        super().__init__(world, f"process {number}", rps, room=3.0 * rps)
        self._store = store
        self._sent: tuple[float, dict[Key, Report]] | None = None
        self._alone_at = self._collected_at = float("-inf")
        self._is_away = False

    async def turn(self, now: float) -> None:
        """Take an answer, give one up, or report."""
        desk, store = self.driver.desk, self._store
        if self._sent is not None:
            sent_at, reports = self._sent
            if now < sent_at + store.takes_s:
                return
            self._sent = None
            answers = {} if store.is_away else {key: store.take(key, report, now) for key, report in reports.items()}
            if store.is_away or store.rng.random() < store.lost:
                desk.away(reports, now, span_s=min(MAX_SPAN_S, max(PERIOD_S, now - max(self._alone_at, sent_at - 1.0))))
                self._alone_at = now
                self._is_away = True
                return
            self._is_away = False
            for key, answer in answers.items():
                desk.granted(key, answer, sent_at=sent_at, now=now, retry_at=self._due)
        elif now - self._collected_at >= (PERIOD_S if self._is_away else 0.02):
            everything = now >= self._due or self._is_away
            if everything:
                self._due = now + PERIOD_S * (0.9 + 0.2 * store.rng.random())
            self._collected_at = now
            if reports := desk.collect(now, everything=everything):
                self._sent = now, reports


class SlowStore:
    """Takes `takes_s` for an exchange, of which a share is `lost`: taken, but given up by who asked."""

    def __init__(self, takes_s: float, lost: float) -> None:
        self.takes_s = takes_s
        self.lost = lost
        self.is_away = False
        self.rng = Random(1)
        self._rows: dict[Key, Row] = {}

    def take(self, key: Key, report: Report, now: float) -> Answer:
        """Exchange; give the answer."""
        return exchange(self._rows.setdefault(key, Row()), report, now - 0.3 * self.takes_s + UNIX)


def world(store: SlowStore) -> World:
    made = World("simulated", Limits(rpm=RPM))
    made.processes = [SlowProcess(made, store, number) for number in range(PROCESSES)]
    return made


@pytest.mark.parametrize(("takes_s", "lost"), [(0.02, 0.0), (0.5, 0.0), (1.4, 0.0), (0.3, 0.1), (1.2, 0.3), (1.4, 0.6)])
async def test_slow_and_lost_exchanges_cost_no_throughput(takes_s: float, lost: float) -> None:
    running = world(SlowStore(takes_s, lost))
    await running.run(130.0)
    refused = running.refused
    assert await running.run(60.0) >= 0.97 * RPM
    assert running.refused - refused <= 0.01 * RPM


async def test_a_store_that_is_back_and_slow_costs_no_throughput() -> None:
    store = SlowStore(0.05, 0.0)
    running = world(store)
    await running.run(130.0)
    store.is_away = True
    assert await running.run(10.0) <= 1.03 * 10.0 * RPM / 60.0
    before = running.meter.available(running.now)
    store.is_away, store.takes_s, store.lost = False, 1.2, 0.2
    seen = await running.run(50.0)
    # The longer exchanges take, the more lies between them: that much is put by once, and not lost.
    put_by = running.meter.available(running.now) - before
    assert put_by <= PUT_BY * RPM
    assert seen + put_by >= 0.99 * 50.0 * RPM / 60.0
    assert running.refused <= 0.01 * RPM
