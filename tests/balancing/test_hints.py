"""Header parsing, as a table: what each provider documents, and what a hostile upstream might send."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.balancing.hints import (
    HINT_STYLES,
    MAX_COUNT,
    MAX_RESET_S,
    MAX_RETRY_AFTER_S,
    Hint,
    WindowHint,
    header_names,
    parse_hint,
    parse_seconds,
)

NOW_UNIX = 1_790_000_000.0  # 2026-09-21T14:13:20Z

OPENAI = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-limit-tokens": "150000",
    "x-ratelimit-remaining-tokens": "149984",
    "x-ratelimit-reset-tokens": "6m0s",
    "openai-organization": "acme",
    "openai-project": "proj_1",
}

TABLE: list[tuple[str, str, dict[str, str], Hint | None]] = [
    (
        "openai documents requests, tokens, organisation and project",
        "openai",
        OPENAI,
        Hint(
            requests=WindowHint(60, 59, 1.0),
            tokens=WindowHint(150_000, 149_984, 360.0),
            quota_name="acme/proj_1",
        ),
    ),
    (
        "a server that answers under a limit of 0 has none",
        "generic",
        {
            "x-ratelimit-limit-requests": "0",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-limit-tokens": "500",
            "x-ratelimit-remaining-tokens": "400",
        },
        Hint(tokens=WindowHint(500, 400)),
    ),
    (
        "groq's requests are per day",
        "groq",
        {
            "x-ratelimit-limit-requests": "14400",
            "x-ratelimit-remaining-requests": "14370",
            "x-ratelimit-reset-requests": "2m59.56s",
            "x-ratelimit-limit-tokens": "18000",
            "x-ratelimit-remaining-tokens": "17997",
            "x-ratelimit-reset-tokens": "7.66s",
            "retry-after": "2",
        },
        Hint(
            2.0,
            daily_requests=WindowHint(14_400, 14_370, 179.56),
            tokens=WindowHint(18_000, 17_997, 7.66),
        ),
    ),
    (
        "azure gives remainders alone and milliseconds",
        "azure",
        {
            "x-ratelimit-remaining-requests": "19",
            "x-ratelimit-remaining-tokens": "119900",
            "retry-after-ms": "3500",
            "retry-after": "4",
        },
        Hint(3.5, requests=WindowHint(None, 19), tokens=WindowHint(None, 119_900)),
    ),
    (
        "anthropic's resets are RFC 3339 instants",
        "anthropic",
        {
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "49",
            "anthropic-ratelimit-requests-reset": "2026-09-21T14:13:21Z",
            "anthropic-ratelimit-input-tokens-limit": "40000",
            "anthropic-ratelimit-input-tokens-remaining": "39000",
            "anthropic-ratelimit-input-tokens-reset": "2026-09-21T14:13:22.500Z",
            "anthropic-ratelimit-output-tokens-limit": "8000",
            "anthropic-ratelimit-output-tokens-remaining": "8000",
            "anthropic-ratelimit-output-tokens-reset": "2026-09-21T14:13:20Z",
            "anthropic-organization-id": "org-9",
        },
        Hint(
            requests=WindowHint(50, 49, 1.0),
            input_tokens=WindowHint(40_000, 39_000, 2.5),
            output_tokens=WindowHint(8_000, 8_000, 0.0),
            quota_name="org-9",
        ),
    ),
    (
        "mistral limits by size",
        "mistral",
        {
            "x-ratelimitbysize-limit-minute": "500000",
            "x-ratelimitbysize-remaining-minute": "499000",
            "ratelimitbysize-reset": "37",
        },
        Hint(tokens=WindowHint(500_000, 499_000, 37.0)),
    ),
    (
        "generic reads openai's names",
        "generic",
        {"x-ratelimit-limit-requests": "10", "x-ratelimit-remaining-requests": "3"},
        Hint(requests=WindowHint(10, 3)),
    ),
    (
        "generic reads plain names with a reset in Unix milliseconds",
        "generic",
        {"x-ratelimit-limit": "20", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "1790000030000"},
        Hint(requests=WindowHint(20, 0, 30.0)),
    ),
    (
        "generic recognises anthropic",
        "an-unknown-style",
        {"anthropic-ratelimit-requests-limit": "5", "anthropic-ratelimit-requests-remaining": "4"},
        Hint(requests=WindowHint(5, 4)),
    ),
    ("retry-after as a date", "openai", {"retry-after": "Mon, 21 Sep 2026 14:13:50 GMT"}, Hint(30.0)),
    ("retry-after as a date in the past", "openai", {"retry-after": "Mon, 21 Sep 2026 14:13:00 GMT"}, Hint(0.0)),
    ("a long retry-after is clamped", "openai", {"retry-after": "86400"}, Hint(MAX_RETRY_AFTER_S)),
    (
        "a remainder above its limit is the limit",
        "openai",
        {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "99"},
        Hint(requests=WindowHint(60, 60)),
    ),
    ("nothing said", "openai", {"content-type": "application/json"}, None),
    ("most of an hour in milliseconds", "azure", {"retry-after-ms": "3500000", "retry-after": "9"}, Hint(3500.0)),
    ("a month and more in milliseconds", "azure", {"retry-after-ms": "9999999999"}, None),
    ("negative", "openai", {"retry-after": "-5", "x-ratelimit-remaining-requests": "-1"}, None),
    ("not a number", "openai", {"retry-after": "nan", "x-ratelimit-limit-tokens": "NaN"}, None),
    ("infinite", "openai", {"retry-after": "inf", "x-ratelimit-limit-tokens": "Infinity"}, None),
    ("absurd", "openai", {"retry-after": "1e300", "x-ratelimit-limit-tokens": "1" + "0" * 18}, None),
    ("junk", "anthropic", {"retry-after": "soon", "anthropic-ratelimit-requests-limit": "0x10"}, None),
    ("other digits", "openai", {"x-ratelimit-remaining-tokens": "١٢"}, None),
    ("a date of year 9999", "openai", {"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, None),
    ("a reset alone says nothing", "openai", {"x-ratelimit-reset-tokens": "6m0s"}, None),
    ("a quota name with control characters", "openai", {"openai-organization": "a\x00b"}, None),
]


@pytest.mark.parametrize(("style", "headers", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_table(style: str, headers: dict[str, str], expected: Hint | None) -> None:
    assert parse_hint(headers, style, now_unix=NOW_UNIX) == expected


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("6m0s", 360.0),
        ("120ms", 0.12),
        ("1s", 1.0),
        ("1h2m3.5s", 3723.5),
        ("1d", 86400.0),
        ("59.7", 59.7),
        (" 3 ", 3.0),
        ("", None),
        ("s", None),
        ("1.2.3s", None),
        ("5 minutes", None),
        ("9999999999h", None),
        ("1s" * 40, None),
    ],
)
def test_durations(value: str, seconds: float | None) -> None:
    assert parse_seconds(value) == (None if seconds is None else pytest.approx(seconds))


NAMES = sorted({name for _, _, headers, _ in TABLE for name in headers} | {"ratelimit-reset", "ratelimit-limit"})


@settings(max_examples=60, deadline=None)
@given(
    headers=st.dictionaries(st.sampled_from(NAMES), st.one_of(st.text(max_size=80), st.from_regex(r"-?[0-9.smhe]+"))),
    style=st.sampled_from([*HINT_STYLES, "other"]),
)
def test_no_header_raises_or_leaves_the_bounds(headers: dict[str, str], style: str) -> None:
    hint = parse_hint(headers, style, now_unix=NOW_UNIX)
    if hint is None:
        return
    assert hint.retry_after_s is None or 0.0 <= hint.retry_after_s <= MAX_RETRY_AFTER_S
    for window in (hint.requests, hint.tokens, hint.input_tokens, hint.output_tokens):
        if window is not None:
            assert window.limit is None or 0 <= window.limit <= MAX_COUNT
            assert window.remaining is None or 0 <= window.remaining <= MAX_COUNT
            assert window.reset_s is None or (0.0 <= window.reset_s <= MAX_RESET_S and math.isfinite(window.reset_s))


_EVERY_NAME = sorted({name for style in (*HINT_STYLES, "unheard_of") for name in header_names(style).values()})


@given(
    style=st.sampled_from((*HINT_STYLES, "unheard_of")),
    headers=st.dictionaries(
        st.sampled_from(_EVERY_NAME), st.sampled_from(("0", "17", "120ms", "6m0s", "1.5", "2026-01-01T00:01:00Z", "-1"))
    ),
)
def test_header_names_are_all_that_is_looked_at(style: str, headers: dict[str, str]) -> None:
    wanted = header_names(style).values()
    kept = {name: value for name, value in headers.items() if name in wanted}
    assert parse_hint(kept, style, now_unix=NOW_UNIX) == parse_hint(headers, style, now_unix=NOW_UNIX)


@given(st.integers(0, 10**6))
def test_short_forms_read_like_the_long_ones(millis: int) -> None:
    assert parse_seconds(f"{millis}ms") == pytest.approx(parse_seconds(f"{millis / 1000:.3f}s"))
    assert parse_seconds(f"{millis}") == parse_seconds(f"{millis}.0")
