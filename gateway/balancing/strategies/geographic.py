"""The nearest region that has room; inside it the least loaded key.

Nearness is the measured time to first byte of the region's keys. Where none was measured yet it is the table's round
trip plus what the measured regions take beyond theirs, so that a known region and an unknown one compare fairly. When
the nearest is full or out the next one serves: spilling is what the filters do. Residency is not this strategy's
business: it was enforced before, for every strategy alike.
"""

from __future__ import annotations

from random import Random

from gateway.balancing.ready import Candidate, Ready
from gateway.balancing.regions import round_trip_s
from gateway.balancing.strategy import least

SAMPLE = 3
REORDER_S = 0.25
_MAX_ORIGINS = 256
_MEASURED_KEYS = 4
"""So many keys of a region are looked at for its latency."""


class Geographic:
    """Orders regions by nearness to the caller (`ask.region`), else to the gateway's `home_region`."""

    name = "geographic"

    def __init__(self, home_region: str | None = None) -> None:
        self.home_region = home_region

    def choose(self, ready: Ready, rng: Random) -> Candidate | None:
        regions = self._regions(ready)
        for region in self._order(ready, regions):
            found = ready.first_of(regions[region], SAMPLE, rng)
            if found:
                return least([(each.load, each) for each in found], rng)
        return None

    def _order(self, ready: Ready, regions: dict[str | None, list[int]]) -> list[str | None]:
        """Give the regions from the nearest, reckoned anew at most every `REORDER_S` a caller's region."""
        orders: dict[str | None, tuple[float, list[str | None]]]
        orders = ready.level.cache.setdefault("geographic order", {})
        here = ready.ask.region
        known = orders.get(here)
        if known is not None and known[0] <= ready.now < known[0] + REORDER_S:
            return known[1]
        nearness = self._nearness(ready, regions)
        order = sorted(regions, key=nearness.__getitem__)
        if len(orders) >= _MAX_ORIGINS:
            orders.clear()
        orders[here] = (ready.now, order)
        return order

    def _regions(self, ready: Ready) -> dict[str | None, list[int]]:
        regions: dict[str | None, list[int]] | None = ready.level.cache.get(self.name)
        if regions is None:
            regions = {}
            for index, candidate in enumerate(ready.candidates):
                regions.setdefault(candidate.endpoint.region, []).append(index)
            ready.level.cache[self.name] = regions
        return regions

    def _nearness(self, ready: Ready, regions: dict[str | None, list[int]]) -> dict[str | None, float]:
        """Give seconds to the first byte by region."""
        here = ready.ask.region or self.home_region
        table = {region: round_trip_s(here, region) for region in regions}
        measured: dict[str | None, float] = {}
        # What was measured is the way from this gateway: it says nothing about a caller elsewhere.
        if self.home_region is None or here == self.home_region:
            for region, indexes in regions.items():
                known = [
                    latency
                    for index in indexes[:_MEASURED_KEYS]
                    if (latency := ready.candidates[index].state.latency.read(ready.now)) is not None
                ]
                if known:
                    measured[region] = sum(known) / len(known)
        if not measured:
            return table
        service_s = sum(max(0.0, seconds - table[region]) for region, seconds in measured.items()) / len(measured)
        for region, indexes in regions.items():
            if region not in measured:
                idle = ready.candidates[indexes[0]].state.in_flight == 0
                # Half of it while idle: a region is found out by one request before a slow one is put up with.
                table[region] += service_s / 2 if idle else service_s
        return table | measured

    def score(self, candidate: Candidate, ready: Ready, /) -> float:
        return self._nearness(ready, self._regions(ready))[candidate.endpoint.region]
