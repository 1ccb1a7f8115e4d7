"""Both ends of the rate-limit headers agree: what a limit model writes, the balancer's parser reads back."""

from __future__ import annotations

import json

import pytest

from gateway.balancing.error_hints import parse_error_hint
from gateway.balancing.hints import Hint, WindowHint, parse_hint
from gateway.balancing.quota import Limits
from gateway.simulation.limits.model import Admitted, Cost, Rejected
from gateway.simulation.limits.registry import LIMIT_MODELS, make_limit_model

NOW = 1_767_225_600.0
LIMITS = Limits(rpm=600, tpm=60_000, itpm=60_000, otpm=60_000, rpd=10_000)


@pytest.mark.parametrize("style", ["openai", "azure", "anthropic", "groq", "mistral"])
def test_an_admission_tells_what_is_left(style: str) -> None:
    model = make_limit_model(style, LIMITS, organisation="org-a")
    for _ in range(4):
        model.admit(Cost("m", 1_000, 1_000), NOW)
    answer = model.admit(Cost("m", 1_000, 1_000), NOW)
    assert isinstance(answer, Admitted)
    hint = parse_hint(dict(answer.headers), style, now_unix=NOW)
    assert hint is not None
    left = model.available("m", NOW)
    if hint.requests is not None:
        assert hint.requests.remaining == left["requests"]
    assert (hint.daily_requests is not None) == (style == "groq")
    if hint.daily_requests is not None:
        assert hint.daily_requests.remaining == left["requests-day"]
    tokens = hint.input_tokens if style == "anthropic" else hint.tokens
    assert tokens is not None
    assert tokens.remaining == left["input-tokens" if style == "anthropic" else "tokens"]
    if style != "azure":
        assert tokens.limit == 60_000
        assert tokens.reset_s is not None


@pytest.mark.parametrize("style", ["openai", "azure", "anthropic", "groq"])
def test_a_refusal_tells_when_to_come_back(style: str) -> None:
    model = make_limit_model(style, Limits(rpm=6), organisation="org-a")
    answer = model.admit(Cost("m"), NOW)
    while isinstance(answer, Admitted):
        answer = model.admit(Cost("m"), NOW)
    hint = parse_hint(dict(answer.headers), style, now_unix=NOW)
    assert hint is not None
    assert hint.retry_after_s is not None
    assert answer.retry_after_s is not None
    assert hint.retry_after_s == pytest.approx(answer.retry_after_s, abs=1)
    assert isinstance(model.admit(Cost("m"), NOW + hint.retry_after_s), Admitted)


@pytest.mark.parametrize("style", ["gemini", "bedrock", "opaque"])
def test_the_silent_ones_tell_nothing(style: str) -> None:
    model = make_limit_model(style, Limits(rpm=1), organisation="org-a")
    for expected in (Admitted, Rejected):
        answer = model.admit(Cost("m"), NOW)
        assert isinstance(answer, expected)
        assert parse_hint(dict(answer.headers), style, now_unix=NOW) is None


@pytest.mark.parametrize(
    ("style", "limits", "cost", "field"),
    [
        ("gemini", Limits(rpm=2), Cost("m"), "requests"),
        ("gemini", Limits(itpm=200), Cost("m", 100, 1), "input_tokens"),
        ("gemini", Limits(rpd=2), Cost("m"), "daily_requests"),
        ("openai", Limits(rpm=2), Cost("m"), "requests"),
        ("openai", Limits(tpm=200), Cost("m", 100, 1), "tokens"),
        ("groq", Limits(rpd=2), Cost("m"), "daily_requests"),
        ("groq", Limits(tpd=200), Cost("m", 100, 0), "daily_tokens"),
    ],
)
def test_a_refusal_names_the_limit_in_its_body(style: str, limits: Limits, cost: Cost, field: str) -> None:
    model = make_limit_model(style, limits, organisation="org-a")
    answer = model.admit(cost, NOW)
    while isinstance(answer, Admitted):
        answer = model.admit(cost, NOW)
    hint = parse_error_hint(json.dumps(answer.body).encode())
    assert hint is not None
    window = getattr(hint, field)
    assert window is not None
    assert window.limit == (2 if "requests" in field else 200)
    assert window.remaining == (None if field == "input_tokens" else 0)
    assert hint.retry_after_s is not None
    if answer.retry_after_s is not None and answer.retry_after_s < 60.0:
        assert hint.retry_after_s == pytest.approx(answer.retry_after_s, abs=1)


def test_bedrock_says_that_the_day_is_spent() -> None:
    model = make_limit_model("bedrock", Limits(tpd=10), organisation="org-a")
    answer = model.admit(Cost("m", 11, 1), NOW)
    assert isinstance(answer, Rejected)
    assert parse_error_hint(json.dumps(answer.body).encode()) == Hint(daily_tokens=WindowHint(None, 0))


def test_every_style_is_covered() -> None:
    assert set(LIMIT_MODELS) == {
        "openai",
        "azure",
        "anthropic",
        "groq",
        "mistral",
        "gemini",
        "bedrock",
        "opaque",
        "paced",
    }
