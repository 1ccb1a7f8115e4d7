"""Finished requests as metrics."""

from __future__ import annotations

from gateway.telemetry import Metrics
from gateway.traffic_metrics import TrafficMetrics
from tests.metering.rows import usage_row


def test_rows_are_counted_under_their_labels() -> None:
    metrics = Metrics()
    traffic = TrafficMetrics(metrics)
    for _ in range(3):
        traffic.record(
            usage_row(operation="messages", status=200, outcome="ok", attempts=2, input_tokens=7, output_tokens=5)
        )
    traffic.record(
        usage_row(operation="messages", status=429, outcome="rate_limited", provider=None, first_byte_ms=None)
    )
    text = metrics.render().decode()
    for line in (
        'llm_proxy_requests_total{operation="messages",outcome="ok",status="200"} 3.0',
        'llm_proxy_requests_total{operation="messages",outcome="rate_limited",status="429"} 1.0',
        'llm_proxy_attempts_total{provider="openai"} 6.0',
        'llm_proxy_request_seconds_count{operation="messages"} 4.0',
        'llm_proxy_first_byte_seconds_count{operation="messages"} 3.0',
    ):
        assert line in text


def test_times_fall_into_their_buckets() -> None:
    metrics = Metrics()
    traffic = TrafficMetrics(metrics)
    for total_ms in (5.0, 5.1, 999.0, 400_000.0):
        traffic.record(usage_row(operation="messages", total_ms=total_ms, first_byte_ms=None))
    text = metrics.render().decode()
    for line in (
        'llm_proxy_request_seconds_bucket{le="0.005",operation="messages"} 1.0',
        'llm_proxy_request_seconds_bucket{le="0.01",operation="messages"} 2.0',
        'llm_proxy_request_seconds_bucket{le="1.0",operation="messages"} 3.0',
        'llm_proxy_request_seconds_bucket{le="300.0",operation="messages"} 3.0',
        'llm_proxy_request_seconds_bucket{le="+Inf",operation="messages"} 4.0',
        'llm_proxy_request_seconds_sum{operation="messages"} 401.0091',
    ):
        assert line in text
