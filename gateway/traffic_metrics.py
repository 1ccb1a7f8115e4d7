"""Finished requests as Prometheus metrics: counted in plain numbers, turned into metrics when they are scraped.

Labels are bounded words only (operation, provider, outcome, status): never a tenant, model or key.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.metering.event import UsageEvent
from gateway.telemetry import Metrics

_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_BUCKETS_MS = [bucket * 1000.0 for bucket in _BUCKETS_S]
_LABELS = [*map(str, map(float, _BUCKETS_S)), "+Inf"]


class _Times:
    """A histogram of milliseconds: how many fell into each bucket, and their sum."""

    __slots__ = ("counts", "sum_ms")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS_MS) + 1)
        self.sum_ms = 0.0

    def add(self, ms: float) -> None:
        self.counts[bisect_left(_BUCKETS_MS, ms)] += 1
        self.sum_ms += ms


class _Kind:
    """Requests of one operation, status and outcome; their times are those of the operation."""

    __slots__ = ("count", "first", "total")

    def __init__(self, total: _Times, first: _Times) -> None:
        self.total, self.first = total, first
        self.count = 0


class TrafficMetrics(Collector):
    """Counts finished requests from their usage rows: a `Recorder` beside the one that stores them."""

    def __init__(self, metrics: Metrics) -> None:
        self._kinds: dict[tuple[str, int, str], _Kind] = {}
        self._times: dict[str, tuple[_Times, _Times]] = {}
        self._attempts: dict[str, int] = {}
        self._input_tokens = self._output_tokens = 0
        metrics.registry.register(self)

    def record(self, row: UsageEvent) -> None:
        """Count one row."""
        kind = self._kinds.get((row.operation, row.status, row.outcome)) or self._kind_of(row)
        kind.count += 1
        kind.total.add(row.total_ms)
        if row.first_byte_ms is not None:
            kind.first.add(row.first_byte_ms)
        provider = row.provider
        if provider is not None:
            self._attempts[provider] = self._attempts.get(provider, 0) + row.attempts
        self._input_tokens += row.input_tokens
        self._output_tokens += row.output_tokens

    def _kind_of(self, row: UsageEvent) -> _Kind:
        times = self._times.setdefault(row.operation, (_Times(), _Times()))
        kind = self._kinds[row.operation, row.status, row.outcome] = _Kind(*times)
        return kind

    def collect(self) -> Iterator[Metric]:
        """Give what was counted so far; see `Collector`."""
        requests = CounterMetricFamily(
            "llm_proxy_requests",
            "Inference requests answered, by operation, status and outcome.",
            labels=("operation", "status", "outcome"),
        )
        for (operation, status, outcome), kind in list(self._kinds.items()):
            requests.add_metric((operation, str(status), outcome), kind.count)
        yield requests
        yield self._histogram("llm_proxy_request_seconds", "Time from the request head to the end of the answer.", 0)
        first = "Time from the request head to the first byte of the answer."
        yield self._histogram("llm_proxy_first_byte_seconds", first, 1)
        attempts = CounterMetricFamily(
            "llm_proxy_attempts", "Attempts at providers, by the provider that answered last.", labels=("provider",)
        )
        for provider, count in list(self._attempts.items()):
            attempts.add_metric((provider,), count)
        yield attempts
        tokens = CounterMetricFamily("llm_proxy_tokens", "Tokens metered, by direction.", labels=("direction",))
        tokens.add_metric(("input",), self._input_tokens)
        tokens.add_metric(("output",), self._output_tokens)
        yield tokens

    def _histogram(self, name: str, meaning: str, which: int) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, meaning, labels=("operation",))
        for operation, both in list(self._times.items()):
            times = both[which]
            family.add_metric(
                (operation,), list(zip(_LABELS, accumulate(times.counts), strict=True)), times.sum_ms / 1000.0
            )
        return family
