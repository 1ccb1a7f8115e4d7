"""What the bodies of 429s say: real ones as a table, anything at all as a property, and what an account makes of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.balancing.charging import Dimension
from gateway.balancing.error_hints import parse_error_hint, with_body
from gateway.balancing.hints import MAX_COUNT, MAX_RETRY_AFTER_S, Hint, WindowHint
from gateway.balancing.ledger import Ledger
from gateway.balancing.outcome import Outcome, OutcomeKind
from gateway.balancing.predictor import Learning
from gateway.balancing.quota import Limits
from gateway.balancing.semantics import semantics_of


def violation(quota_id: str, value: str | None = None, metric: str = "generate_content_free_tier_requests") -> Any:
    found: dict[str, Any] = {
        "quotaMetric": f"generativelanguage.googleapis.com/{metric}",
        "quotaId": quota_id,
        "quotaDimensions": {"location": "global", "model": "gemini-2.5-flash"},
    }
    return found if value is None else found | {"quotaValue": value}


def gemini(*violations: Any, delay: str | None = None, message: str = "You exceeded your current quota.") -> Any:
    details: list[Any] = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": list(violations)},
        {
            "@type": "type.googleapis.com/google.rpc.Help",
            "links": [{"description": "Learn more", "url": "https://ai.google.dev/gemini-api/docs/rate-limits"}],
        },
    ]
    if delay is not None:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    return {"error": {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED", "details": details}}


def openai(message: str, kind: str = "tokens") -> Any:
    return {"error": {"message": message, "type": kind, "param": None, "code": "rate_limit_exceeded"}}


DAY_SPENT = gemini(violation("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "20"), delay="36s")

TABLE: list[tuple[str, Any, Hint | None]] = [
    (
        "gemini: requests a minute",
        gemini(violation("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "10"), delay="34s"),
        Hint(34.0, requests=WindowHint(10, 0)),
    ),
    (
        "gemini: input tokens a minute, paid",
        gemini(
            violation(
                "GenerateContentPaidTierInputTokensPerModelPerMinute",
                "4000000",
                "generate_content_paid_tier_input_token_count",
            ),
            delay="47.434392449s",
        ),
        Hint(47.434392449, input_tokens=WindowHint(4_000_000)),
    ),
    ("gemini: a day, with a delay that is none", DAY_SPENT, Hint(36.0, daily_requests=WindowHint(20, 0))),
    (
        "gemini: several, without values",
        gemini(
            violation("GenerateContentInputTokensPerModelPerMinute-FreeTier"),
            violation("GenerateRequestsPerMinutePerProjectPerModel-FreeTier"),
            violation("GenerateRequestsPerDayPerProjectPerModel-FreeTier"),
        ),
        Hint(daily_requests=WindowHint(None, 0)),
    ),
    (
        "gemini: a list, as it would have streamed",
        [gemini(violation("GenerateRequestsPerMinutePerProjectPerModel", "10"), delay="1s")],
        Hint(1.0, requests=WindowHint(10, 0)),
    ),
    (
        "gemini: the message alone",
        {"error": {"code": 429, "message": "Quota exceeded.\nPlease retry in 11.665902715s.", "status": "X"}},
        Hint(11.665902715),
    ),
    (
        "gemini: the smaller of two for one dimension",
        gemini(
            violation("GenerateRequestsPerDayPerProjectPerModel", "1000"),
            violation("GenerateRequestsPerDayPerUser", "50"),
        ),
        Hint(daily_requests=WindowHint(50, 0)),
    ),
    ("vertex: nothing", {"error": {"code": 429, "message": "Resource exhausted. Please try again later."}}, None),
    (
        "openai: tokens a minute",
        openai(
            "Rate limit reached for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Used 29937, "
            "Requested 385. Please try again in 644ms. Visit https://platform.openai.com/account/rate-limits to "
            "learn more."
        ),
        Hint(0.644, tokens=WindowHint(30_000, 63)),
    ),
    (
        "openai: requests a day",
        openai(
            "Rate limit reached for gpt-4o-mini in organization org-x on requests per day (RPD): Limit 200, Used 200, "
            "Requested 1. Please try again in 7m12s. Visit https://platform.openai.com/account/rate-limits",
            "requests",
        ),
        Hint(432.0, daily_requests=WindowHint(200, 0)),
    ),
    (
        "openai: larger than the whole limit",
        openai(
            "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested "
            "30601. The input or output tokens must be reduced in order to run successfully."
        ),
        Hint(tokens=WindowHint(30_000)),
    ),
    (
        "groq: tokens a day, which no header tells",
        openai(
            "Rate limit reached for model `llama-3.3-70b-versatile` in organization `org_1` service tier `on_demand` "
            "on tokens per day (TPD): Limit 100000, Used 97050, Requested 3619. Please try again in 9m38.016s. "
            "Need more tokens? Upgrade to Dev Tier today"
        ),
        Hint(578.016, daily_tokens=WindowHint(100_000, 2_950)),
    ),
    (
        "groq: used above the limit",
        openai("on tokens per minute (TPM): Limit 7000, Used 7100, Requested ~12903. Please try again in 50.59714s."),
        Hint(50.59714, tokens=WindowHint(7_000, 0)),
    ),
    (
        "anthropic: input tokens",
        {
            "type": "error",
            "error": {
                "type": "rate_limit_error",
                "message": "This request would exceed the rate limit for your organization "
                "(0dccdde6-f924-4f1b-bb3b-92ef846e0a5b) of 20,000 input tokens per minute. For details, refer to: "
                "https://docs.anthropic.com/en/api/rate-limits. Please reduce the prompt length or try again later.",
            },
        },
        Hint(input_tokens=WindowHint(20_000)),
    ),
    (
        "anthropic: as worded since",
        {"error": {"message": "would exceed your organization's rate limit of 30,000 input tokens per minute (org: 8"}},
        Hint(input_tokens=WindowHint(30_000)),
    ),
    (
        "azure: a delay in words",
        {
            "error": {
                "code": "429",
                "message": "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version "
                "2024-08-01-preview have exceeded token rate limit of your current OpenAI S0 pricing tier. Please "
                "retry after 60 seconds.",
            }
        },
        Hint(60.0),
    ),
    (
        "azure: a day, which is clamped",
        {"error": {"code": "429", "message": "Please retry after 86400 seconds."}},
        Hint(MAX_RETRY_AFTER_S),
    ),
    ("azure: in short", {"error": {"message": "Rate limit is exceeded. Try again in 2 seconds"}}, Hint(2.0)),
    (
        "bedrock: the day is spent",
        {"message": "Too many tokens per day, please wait before trying again."},
        Hint(daily_tokens=WindowHint(None, 0)),
    ),
    ("bedrock: too fast", {"message": "Too many requests, please wait before trying again."}, None),
    ("an error that is a text", {"error": "slow down, try again in 3s"}, Hint(3.0)),
    ("no error", {"choices": []}, None),
    ("values out of bounds", gemini(violation("RequestsPerDay", str(MAX_COUNT + 1)), delay="-3s"),
     Hint(daily_requests=WindowHint(None, 0))),
    (
        "anthropic: too many at once",
        {
            "type": "error",
            "error": {
                "type": "rate_limit_error",
                "message": "Number of concurrent connections has exceeded your rate limit. Please try again later or "
                "contact sales to discuss your options for a rate limit increase.",
            },
        },
        Hint(in_flight=WindowHint(None, 0)),
    ),
    (
        "moonshot: too many at once",
        openai(
            "Your account org-1<ak-2> request reached max organization concurrency: 3, please try again after 1 seconds"
        ),
        Hint(1.0, in_flight=WindowHint(3, 0)),
    ),
    (
        "moonshot: requests a minute",
        openai("Your account org-1<ak-2> request reached organization max RPM: 3, please try again after 1 seconds"),
        Hint(1.0, requests=WindowHint(3)),
    ),
    (
        "in other words",
        openai("Too many concurrent requests. Limit: 4 concurrent requests"),
        Hint(in_flight=WindowHint(4, 0)),
    ),
    ("for this model", openai("Too many concurrent requests for this model"), Hint(in_flight=WindowHint(None, 0))),
    (
        "a threshold",
        openai("You exceeded your current threshold of concurrent requests"),
        Hint(in_flight=WindowHint(None, 0)),
    ),
    (
        "advice",
        openai("Rate limit reached on requests per min (RPM): Limit 3. Lower the number of concurrent requests."),
        Hint(requests=WindowHint(3)),
    ),
    ("concurrency is no window", gemini(violation("ConcurrentRequestsPerProject", "8")), None),
]  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_a_body_says(body: Any, expected: Hint | None) -> None:
    assert parse_error_hint(json.dumps(body).encode()) == expected


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"\xff\xfe", b"[" * 16_384, b'{"error":' * 2_000, b"9" * 16_384, b"<html>429</html>"]
)
def test_junk_says_nothing(body: bytes) -> None:
    assert parse_error_hint(body) is None


def test_what_was_cut_off_says_nothing() -> None:
    whole = json.dumps(DAY_SPENT).encode()
    assert all(parse_error_hint(whole[:end]) is None for end in range(len(whole)))


WORDS = st.sampled_from([
    "Limit 5, Used 9", "on tokens per min (TPM): Limit 0", "try again in 1h", "retry after 9999999999 hours",
    "rate limit of 1,,, tokens per day", "PerDay", "RequestsPerMinute", "1e9s", "-1", "Too many requests per day",
])  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | WORDS
NAMES = st.sampled_from(
    ["error", "message", "details", "violations", "quotaId", "quotaMetric", "quotaValue", "retryDelay", "code"]
)
BODIES = st.recursive(
    LEAVES | st.lists(WORDS, max_size=4).map(" ".join),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


@given(BODIES.map(lambda body: json.dumps(body).encode()) | st.binary(max_size=200))
def test_no_body_breaks_it(body: bytes) -> None:
    hint = parse_error_hint(body)
    if hint is None:
        return
    assert hint.retry_after_s is None or 0.0 <= hint.retry_after_s <= MAX_RETRY_AFTER_S
    for window in (hint.requests, hint.tokens, hint.input_tokens, hint.output_tokens, hint.daily_requests):
        if window is not None:
            assert window.limit is None or 0 <= window.limit <= MAX_COUNT
            assert window.remaining is None or 0 <= window.remaining <= MAX_COUNT
    account = Ledger(Limits(rpm=5), semantics_of("gemini"), 0.0)
    refuse(account, hint, 0.0)
    assert account.cooldown.until <= 25 * 3600.0


@given(BODIES.map(lambda body: json.dumps(body).encode()))
def test_what_the_head_told_stands(body: bytes) -> None:
    head = Hint(7.0, requests=WindowHint(60, 1), daily_tokens=WindowHint(9, 2), quota_name="org")
    both = with_body(head, body)
    assert both is not None
    assert (both.retry_after_s, both.requests, both.daily_tokens, both.quota_name) == (
        7.0, head.requests, head.daily_tokens, "org"
    )  # fmt: skip
    assert with_body(None, body) == parse_error_hint(body)


def test_the_body_fills_in_what_the_head_left_out() -> None:
    head = Hint(2.0, tokens=WindowHint(6_000, 5_000), daily_requests=WindowHint(14_400, 9))
    both = with_body(head, json.dumps({"error": {"message": TABLE[11][1]["error"]["message"]}}).encode())
    assert both == Hint(
        2.0,
        tokens=WindowHint(6_000, 5_000),
        daily_requests=WindowHint(14_400, 9),
        daily_tokens=WindowHint(100_000, 2_950),
    )


@given(st.lists(BODIES.map(lambda body: json.dumps(body).encode()), max_size=12))
def test_no_bodies_shut_a_quota_that_learns_for_good(bodies: list[bytes]) -> None:
    account = Ledger(Limits(rpm=50, rpd=5_000, itpm=5_000, tpd=5_000), semantics_of("gemini"), 0.0)
    account.learn_limiter(Learning(), 0.0)
    now = 0.0
    for body in bodies:
        hint = parse_error_hint(body)
        if hint is not None:
            refuse(account, hint, now)
        now += 61.0
    assert all(meter.limit >= 1.0 for _, meter in account.meters())
    now += 2 * 86_400.0
    assert account.ready_at(0, 0, now) <= now


def refuse(account: Ledger, hint: Hint, now: float) -> None:
    reservation = account.reserve(1, 1, now)
    account.learn(reservation, hint, now)
    account.settle(reservation, Outcome(OutcomeKind.RATE_LIMITED, 429, hint=hint), now)


@pytest.mark.parametrize("limits", [Limits(), Limits(rpd=1_000), Limits(rpm=5)], ids=["none", "rpd", "rpm"])
@pytest.mark.parametrize("value", ["20", None], ids=["limit", "no-limit"])
def test_a_spent_day_lasts_until_the_providers_midnight(limits: Limits, value: str | None) -> None:
    began = datetime(2026, 7, 1, 7, 7, tzinfo=ZoneInfo("America/Los_Angeles"))
    midnight_s = (datetime(2026, 7, 2, tzinfo=ZoneInfo("America/Los_Angeles")) - began).total_seconds()
    account = Ledger(limits, semantics_of("gemini"), 0.0, unix_offset_s=began.timestamp())
    answered = account.reserve(1, 1, 0.0)
    body = gemini(violation("GenerateRequestsPerDayPerProjectPerModel-FreeTier", value), delay="36s")
    hint = parse_error_hint(json.dumps(body).encode())
    assert hint is not None
    refuse(account, hint, 0.0)
    # What was under way when the day was spent ends well, and opens nothing.
    account.settle(answered, Outcome(OutcomeKind.OK, 200), 1.0)
    assert account.ready_at(1, 1, 2.0) == pytest.approx(midnight_s)
    assert account.ready_at(1, 1, midnight_s - 1.0) > midnight_s - 1.0
    assert account.ready_at(1, 1, midnight_s) <= midnight_s
    assert account.told == ({} if value is None else {Dimension.RPD: 20})
    if limits.rpd is not None and value is not None:
        assert account.misconfigured() == {"rpd": (1_000, 20)}


def test_spent_days_without_a_limit_do_not_lower_the_believed_one() -> None:
    account = Ledger(Limits(rpd=5_000), semantics_of("gemini"), 0.0)
    account.learn_limiter(Learning(), 0.0)
    for day in range(8):
        refuse(account, Hint(36.0, daily_requests=WindowHint(None, 0)), day * 90_000.0)
    meter = account.meter(Dimension.RPD)
    assert meter is not None
    assert meter.limit == 5_000
    assert account.ready_at(1, 1, 9 * 90_000.0) <= 9 * 90_000.0


def test_bedrocks_day_ends_at_midnight_utc() -> None:
    began = datetime(2026, 7, 1, 20, 30, tzinfo=UTC).timestamp()
    account = Ledger(Limits(), semantics_of("bedrock"), 0.0, unix_offset_s=began)
    refuse(account, Hint(daily_tokens=WindowHint(None, 0)), 0.0)
    assert account.ready_at(1, 1, 1.0) == 3.5 * 3600.0


def test_a_day_that_refills_is_waited_for_as_told() -> None:
    account = Ledger(Limits(), semantics_of("openai"), 0.0)
    refuse(account, Hint(432.0, daily_requests=WindowHint(200, 0)), 0.0)
    assert account.ready_at(1, 1, 1.0) == pytest.approx(432.0)


def test_a_minutes_limit_is_learned_from_a_refusal_alone() -> None:
    account = Ledger(Limits(), semantics_of("gemini"), 0.0)
    refuse(account, Hint(20.0, requests=WindowHint(10, 0)), 40.0)
    assert account.ready_at(1, 1, 41.0) == 60.0
    for _ in range(10):
        assert account.ready_at(1, 1, 61.0) <= 61.0
        account.reserve(1, 1, 61.0)
    assert account.ready_at(1, 1, 61.0) == 120.0


def test_input_tokens_that_were_configured_as_tokens_are_found_out_too() -> None:
    account = Ledger(Limits(tpm=1_000_000), semantics_of("gemini"), 0.0)
    refuse(account, Hint(input_tokens=WindowHint(250_000)), 0.0)
    assert account.misconfigured() == {"tpm": (1_000_000, 250_000)}
