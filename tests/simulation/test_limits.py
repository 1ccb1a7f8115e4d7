"""Each limit model against what its provider documents: charge, window, headers, refusal, settlement."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.balancing.outcome import TokenUsage
from gateway.balancing.quota import Limits
from gateway.simulation.limits.model import Admitted, Cost, LimitModel, Rejected
from gateway.simulation.limits.openai import duration
from gateway.simulation.limits.registry import LIMIT_MODELS, make_limit_model

T0 = 1_700_000_040.0
"""A whole minute: 2023-11-14 22:14:00 UTC."""


def model(style: str, **limits: int) -> LimitModel:
    return make_limit_model(style, Limits(**limits), organisation="org-test")


def admit(limiter: LimitModel, cost: Cost, now: float = T0) -> Admitted:
    answer = limiter.admit(cost, now)
    assert isinstance(answer, Admitted)
    return answer


def refuse(limiter: LimitModel, cost: Cost, now: float = T0) -> Rejected:
    answer = limiter.admit(cost, now)
    assert isinstance(answer, Rejected)
    assert answer.status == 429
    return answer


SMALL = Cost("m", input_tokens=10, max_output_tokens=10)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.12, "120ms"), (1, "1s"), (1.5, "1.5s"), (360, "6m0s"), (179.56, "2m59.56s"), (3723, "1h2m3s")],
)
def test_durations_are_written_as_the_headers_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class TestOpenAI:
    def test_headers_tell_limit_remaining_and_a_duration(self) -> None:
        told = dict(admit(model("openai", rpm=60, tpm=6000), Cost("m", 100, 1000)).headers)
        assert told == {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-reset-requests": "1s",
            "x-ratelimit-limit-tokens": "6000",
            "x-ratelimit-remaining-tokens": "5000",
            "x-ratelimit-reset-tokens": "10s",
        }

    @pytest.mark.parametrize(
        ("cost", "charged"),
        [(Cost("m", 100, 1000), 1000), (Cost("m", 1000, 100), 1000), (Cost("m", 700, None), 700)],
    )
    def test_charges_the_larger_of_max_tokens_and_estimate(self, cost: Cost, charged: int) -> None:
        told = dict(admit(model("openai", tpm=6000), cost).headers)
        assert told["x-ratelimit-remaining-tokens"] == str(6000 - charged)

    def test_refills_continuously(self) -> None:
        limiter = model("openai", rpm=60)
        for _ in range(60):
            admit(limiter, SMALL)
        refused = refuse(limiter, SMALL)
        assert refused.retry_after_s == pytest.approx(1.0)
        assert dict(refused.headers)["retry-after"] == "1"
        assert "Please try again in 1s" in refused.body["error"]["message"]
        admit(limiter, SMALL, T0 + 1.0)

    def test_failed_requests_count(self) -> None:
        limiter = model("openai", rpm=60, tpm=100)
        admit(limiter, Cost("m", 100))
        for _ in range(59):
            refuse(limiter, Cost("m", 100))
        assert limiter.available("m", T0)["requests"] == 0
        refuse(limiter, Cost("m", 100))
        assert limiter.available("m", T0)["requests"] == 0

    def test_larger_than_the_limit_never_fits(self) -> None:
        refused = refuse(model("openai", tpm=100), Cost("m", 101))
        assert refused.retry_after_s is None
        assert "retry-after" not in dict(refused.headers)
        assert refused.body["error"]["message"].startswith("Request too large")
        assert refused.body["error"]["code"] == "rate_limit_exceeded"

    def test_is_per_model(self) -> None:
        limiter = model("openai", rpm=1)
        admit(limiter, Cost("a"))
        admit(limiter, Cost("b"))
        refuse(limiter, Cost("a"))

    def test_settles_nothing(self) -> None:
        limiter = model("openai", tpm=1000)
        ticket = admit(limiter, Cost("m", 10, 500)).ticket
        limiter.settle(ticket, TokenUsage(10, 1), T0)
        assert limiter.available("m", T0)["tokens"] == 500


class TestAzure:
    def test_120_rpm_leave_19_after_one(self) -> None:
        told = dict(admit(model("azure", rpm=120, tpm=6000), SMALL).headers)
        assert told == {"x-ratelimit-remaining-requests": "19", "x-ratelimit-remaining-tokens": "5980"}

    def test_sub_window_refuses_a_burst_that_fits_the_minute(self) -> None:
        limiter = model("azure", rpm=120)
        for _ in range(20):
            admit(limiter, SMALL, T0 + 2)
        refused = refuse(limiter, SMALL, T0 + 2.25)
        assert dict(refused.headers)["retry-after"] == "8"
        assert dict(refused.headers)["retry-after-ms"] == "7750"
        assert "retry after 8 seconds" in refused.body["error"]["message"]
        admit(limiter, SMALL, T0 + 10)

    def test_unset_max_tokens_reserves_a_default(self) -> None:
        limiter = model("azure", tpm=6000)
        admit(limiter, Cost("m", 100, None))
        assert limiter.available("m", T0)["tokens"] == 4900


class TestAnthropic:
    def test_headers_are_rfc3339_and_rounded_to_thousands(self) -> None:
        told = dict(admit(model("anthropic", rpm=60, itpm=40_000, otpm=8_000), Cost("m", 1_400, 2_000)).headers)
        assert told["anthropic-ratelimit-requests-limit"] == "60"
        assert told["anthropic-ratelimit-requests-remaining"] == "59"
        assert told["anthropic-ratelimit-requests-reset"] == "2023-11-14T22:14:01Z"
        assert told["anthropic-ratelimit-input-tokens-remaining"] == "39000"
        assert told["anthropic-ratelimit-output-tokens-remaining"] == "6000"
        assert told["anthropic-ratelimit-output-tokens-reset"] == "2023-11-14T22:14:15Z"
        assert told["anthropic-ratelimit-tokens-limit"] == "48000"

    def test_cache_reads_are_free(self) -> None:
        limiter = model("anthropic", itpm=1_000)
        admit(limiter, Cost("m", 5_000, 10, cached_input_tokens=4_500))
        assert limiter.available("m", T0)["input-tokens"] == 500

    def test_output_is_corrected_when_the_answer_ends(self) -> None:
        limiter = model("anthropic", otpm=1_000)
        ticket = admit(limiter, Cost("m", 10, 900)).ticket
        refused = refuse(limiter, Cost("m", 10, 900))
        assert refused.dimension == "output-tokens"
        assert dict(refused.headers)["retry-after"] == "48"
        limiter.settle(ticket, TokenUsage(10, 50), T0)
        assert limiter.available("m", T0)["output-tokens"] == 950
        admit(limiter, Cost("m", 10, 900))

    def test_error_shape(self) -> None:
        limiter = model("anthropic", rpm=1)
        admit(limiter, SMALL)
        body = refuse(limiter, SMALL).body
        assert body["type"] == "error"
        assert body["error"]["type"] == "rate_limit_error"


class TestGemini:
    def test_minute_ends_on_the_clock(self) -> None:
        limiter = model("gemini", rpm=1)
        assert admit(limiter, SMALL, T0 + 50).headers == ()
        refused = refuse(limiter, SMALL, T0 + 51)
        assert refused.headers == ()
        details = refused.body["error"]["details"]
        assert {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "9s"} in details
        admit(limiter, SMALL, T0 + 60)

    def test_counts_input_only(self) -> None:
        limiter = model("gemini", tpm=100)
        admit(limiter, Cost("m", 100, 100_000))
        assert refuse(limiter, Cost("m", 1)).dimension == "input-tokens"

    @pytest.mark.parametrize(
        ("now", "wait_s"),
        [
            (1_699_999_200.0, 10 * 3600),  # 2023-11-14 14:00 PST
            (1_689_000_000.0, 16 * 3600 + 20 * 60),  # 2023-07-10 07:40 PDT
            (1_699_169_400.0, 24 * 3600 + 30 * 60),  # 2023-11-05 00:30 PDT: a day of 25 hours
            (1_678_609_800.0, 22 * 3600 + 30 * 60),  # 2023-03-12 00:30 PST: a day of 23 hours
        ],
    )
    def test_day_ends_at_midnight_pacific(self, now: float, wait_s: float) -> None:
        limiter = model("gemini", rpd=1)
        admit(limiter, SMALL, now)
        refused = refuse(limiter, SMALL, now)
        assert refused.retry_after_s == wait_s
        until = now + wait_s
        refuse(limiter, SMALL, until - 1)
        admit(limiter, SMALL, until)


class TestMistral:
    def test_requests_are_per_second(self) -> None:
        limiter = model("mistral", rpm=120)
        admit(limiter, SMALL)
        admit(limiter, SMALL)
        assert refuse(limiter, SMALL, T0 + 0.9).dimension == "requests"
        admit(limiter, SMALL, T0 + 1)

    def test_output_is_posted_at_the_end(self) -> None:
        limiter = model("mistral", tpm=1_000)
        admitted = admit(limiter, Cost("m", 100, 800), T0 + 30)
        assert dict(admitted.headers)["x-ratelimitbysize-remaining-minute"] == "900"
        assert dict(admitted.headers)["ratelimitbysize-reset"] == "30"
        limiter.settle(admitted.ticket, TokenUsage(100, 400), T0 + 35)
        assert limiter.available("any", T0 + 35)["tokens"] == 500


class TestGroq:
    def test_requests_header_is_the_day(self) -> None:
        told = dict(admit(model("groq", rpm=30, rpd=14_400, tpm=6_000), Cost("m", 100, 200)).headers)
        assert told["x-ratelimit-limit-requests"] == "14400"
        assert told["x-ratelimit-remaining-requests"] == "14399"
        assert told["x-ratelimit-reset-requests"] == "6s"
        assert told["x-ratelimit-remaining-tokens"] == "5700"
        assert "retry-after" not in told

    def test_cached_tokens_are_free_and_the_rest_is_settled(self) -> None:
        limiter = model("groq", tpm=6_000)
        ticket = admit(limiter, Cost("m", 1_000, 500, cached_input_tokens=400)).ticket
        assert limiter.available("m", T0)["tokens"] == 4_900
        limiter.settle(ticket, TokenUsage(1_000, 100, cached_input=400), T0)
        assert limiter.available("m", T0)["tokens"] == 5_300


class TestBedrock:
    def test_unset_max_tokens_holds_the_models_maximum(self) -> None:
        limiter = model("bedrock", tpm=100_000)
        ticket = admit(limiter, Cost("m", 1_000)).ticket
        refused = refuse(limiter, Cost("m", 40_000, 100))
        assert dict(refused.headers) == {"x-amzn-errortype": "ThrottlingException"}
        limiter.settle(ticket, TokenUsage(1_000, 200), T0 + 5)
        assert limiter.available("m", T0 + 5)["tokens"] == 98_800

    def test_a_settlement_in_the_next_minute_returns_nothing(self) -> None:
        limiter = model("bedrock", tpm=100_000)
        ticket = admit(limiter, Cost("m", 1_000, 9_000)).ticket
        limiter.settle(ticket, TokenUsage(1_000, 200), T0 + 61)
        assert limiter.available("m", T0 + 61)["tokens"] == 100_000


class TestOpaque:
    def test_window_slides(self) -> None:
        limiter = model("opaque", rpm=2)
        admit(limiter, SMALL, T0)
        admit(limiter, SMALL, T0 + 30)
        assert refuse(limiter, SMALL, T0 + 59).retry_after_s == pytest.approx(1)
        admit(limiter, SMALL, T0 + 60)
        assert refuse(limiter, SMALL, T0 + 60).retry_after_s == pytest.approx(30)

    def test_refusal_says_nothing(self) -> None:
        limiter = model("opaque", rpm=1)
        admit(limiter, SMALL)
        assert refuse(limiter, SMALL).headers == ()


def test_unknown_style_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown limit style 'x'.*openai"):
        make_limit_model("x", Limits(), organisation="o")


@pytest.mark.parametrize("style", LIMIT_MODELS)
def test_concurrency_is_given_back_by_settling(style: str) -> None:
    limiter = model(style, concurrency=1)
    ticket = admit(limiter, SMALL).ticket
    assert refuse(limiter, SMALL).dimension == "concurrency"
    limiter.settle(ticket, None, T0)
    admit(limiter, SMALL)


@pytest.mark.parametrize("style", LIMIT_MODELS)
def test_a_changed_limit_keeps_what_was_used(style: str) -> None:
    limiter = model(style, rpm=600, tpm=60_000)
    admit(limiter, SMALL)
    before = limiter.available("m", T0)
    limiter.resize(Limits(rpm=1_200, tpm=120_000), T0)
    after = limiter.available("m", T0)
    assert all(after[name] > before[name] for name in before)
    used = model(style, rpm=1_200, tpm=120_000).available("m", T0)
    assert all(used[name] - after[name] == pytest.approx(used[name] / 2 - before[name]) for name in before)


@pytest.mark.parametrize("style", LIMIT_MODELS)
@settings(max_examples=40)
@given(
    gaps=st.lists(st.floats(0, 20), min_size=1, max_size=40),
    sizes=st.lists(st.integers(1, 1_500), min_size=1, max_size=40),
)
def test_a_refused_request_fits_exactly_when_it_was_told(style: str, gaps: list[float], sizes: list[int]) -> None:
    """Whatever came before: a finite wait is honest, earlier is refused, and `would_fit_in` agrees with `admit`."""
    limiter = model(style, rpm=60, tpm=2_000)
    now = T0
    for gap, size in zip(gaps, sizes, strict=False):
        now += gap
        cost = Cost("m", size // 2, size // 2)
        foretold = limiter.would_fit_in(cost, now)
        answer = limiter.admit(cost, now)
        assert isinstance(answer, Admitted) == (foretold == 0)
        if isinstance(answer, Rejected) and answer.retry_after_s is not None:
            assert answer.retry_after_s == pytest.approx(foretold)
            now += limiter.would_fit_in(cost, now) + 1e-6
            assert isinstance(limiter.admit(cost, now), Admitted)
        assert math.isfinite(sum(limiter.available("m", now).values()))


@pytest.mark.parametrize("style", ["azure", "gemini", "mistral", "bedrock", "opaque"])
@settings(max_examples=15)
@given(data=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 50)), min_size=40, max_size=80))
def test_no_fixed_minute_admits_more_than_the_limit(style: str, data: list[tuple[float, int]]) -> None:
    limiter = model(style, rpm=60)
    admitted: dict[int, int] = {}
    now = T0
    for gap, size in data:
        now += gap / 10
        if isinstance(limiter.admit(Cost("m", size, 1), now), Admitted):
            minute = int(now // 60)
            admitted[minute] = admitted.get(minute, 0) + 1
    assert all(count <= 60 for count in admitted.values())
