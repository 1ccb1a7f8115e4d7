"""The ledger: what is charged by each provider's rules, and how headers and outcomes correct it."""

from __future__ import annotations

from math import inf

import pytest

from gateway.balancing.charging import Dimension
from gateway.balancing.cooldown import BLIND_COOLDOWN_S, COOLDOWN_CAP_S, COOLDOWN_MIN_S
from gateway.balancing.decision import Ask
from gateway.balancing.hints import Hint, WindowHint, parse_hint
from gateway.balancing.ledger import Ledger
from gateway.balancing.outcome import Outcome, OutcomeKind, TokenUsage
from gateway.balancing.quota import Limits
from gateway.balancing.semantics import SEMANTICS, model_family, semantics_of
from gateway.simulation.limits.model import Cost, Rejected
from gateway.simulation.limits.openai import OpenAILimits


def ledger(provider: str = "unheard-of", **limits: int) -> Ledger:
    return Ledger(Limits(**limits), semantics_of(provider), 0.0)


def left(account: Ledger, dimension: Dimension, now: float = 0.0) -> float:
    meter = account.meter(dimension)
    assert meter is not None
    return meter.available(now)


def ok(inp: int, out: int, cached: int = 0) -> Outcome:
    return Outcome(OutcomeKind.OK, 200, usage=TokenUsage(inp, out, cached))


def test_nothing_known_means_no_limit() -> None:
    account = ledger()
    assert account.ready_at(10**9, 10**9, 0.0) <= 0.0
    assert account.headroom(0.0) == 1.0


RPM, TPM, ITPM, OTPM = Dimension.RPM, Dimension.TPM, Dimension.ITPM, Dimension.OTPM

# provider, limits, reserved (in, out), outcome, then what is left by dimension
SETTLED: list[tuple[str, str, dict[str, int], tuple[int, int], Outcome, dict[Dimension, float]]] = [
    ("the actual is charged", "unheard-of", {"rpm": 10, "tpm": 1000}, (100, 400), ok(90, 60), {RPM: 9, TPM: 850}),
    ("an overrun is owed", "unheard-of", {"tpm": 1000}, (100, 100), ok(100, 1100), {TPM: -200}),
    ("OpenAI charges the larger estimate", "openai", {"tpm": 1000}, (100, 400), ok(90, 60), {TPM: 600}),
    ("OpenAI charges a long prompt", "openai", {"tpm": 1000}, (700, 400), ok(90, 60), {TPM: 300}),
    ("Bedrock settles", "bedrock", {"tpm": 1000}, (100, 400), ok(90, 60), {TPM: 850}),
    (
        "Anthropic leaves cached input out",
        "anthropic",
        {"itpm": 1000, "otpm": 500},
        (400, 100),
        ok(400, 30, 300),
        {ITPM: 900, OTPM: 470},
    ),
    ("Gemini counts input alone", "gemini", {"tpm": 1000}, (100, 400), ok(120, 300), {TPM: 880}),
    (
        "a failed connection costs nothing",
        "openai",
        {"rpm": 10, "tpm": 1000},
        (100, 400),
        Outcome(OutcomeKind.CONNECT_FAILED),
        {RPM: 10, TPM: 1000},
    ),
    (
        "a refused request is counted, its tokens are not",
        "openai",
        {"rpm": 10, "tpm": 1000},
        (100, 400),
        Outcome(OutcomeKind.RATE_LIMITED),
        {RPM: 9, TPM: 1000},
    ),
    (
        "Gemini does not count a refused request",
        "gemini",
        {"rpm": 10},
        (1, 1),
        Outcome(OutcomeKind.RATE_LIMITED),
        {RPM: 10},
    ),
    (
        "an abandoned request may have cost it all",
        "unheard-of",
        {"tpm": 1000},
        (100, 400),
        Outcome(OutcomeKind.ABANDONED),
        {TPM: 500},
    ),
    (
        "a timeout may have cost it all",
        "unheard-of",
        {"tpm": 1000},
        (100, 400),
        Outcome(OutcomeKind.TIMEOUT),
        {TPM: 500},
    ),
    (
        "an abandoned stream costs what it said",
        "unheard-of",
        {"tpm": 1000},
        (100, 400),
        Outcome(OutcomeKind.ABANDONED, usage=TokenUsage(100, 20)),
        {TPM: 880},
    ),
    ("what was used of an estimate above the limit stays", "groq", {"tpm": 1000}, (100, 4000), ok(90, 60), {TPM: 850}),
    ("and where the output is posted", "unheard-of", {"tpm": 1000}, (100, 4000), ok(90, 60), {TPM: 850}),
    (
        "and of output alone",
        "anthropic",
        {"itpm": 9000, "otpm": 500},
        (400, 4000),
        ok(400, 70),
        {ITPM: 8600, OTPM: 430},
    ),
]


@pytest.mark.parametrize(
    ("provider", "limits", "size", "outcome", "expected"), [row[1:] for row in SETTLED], ids=[row[0] for row in SETTLED]
)
def test_settled(
    provider: str,
    limits: dict[str, int],
    size: tuple[int, int],
    outcome: Outcome,
    expected: dict[Dimension, float],
) -> None:
    account = ledger(provider, **limits)
    account.settle(account.reserve(*size, 0.0), outcome, 0.0)
    assert {dimension: left(account, dimension) for dimension in expected} == pytest.approx(expected)


def test_too_large_is_never_ready_where_the_provider_refuses_on_the_estimate() -> None:
    assert ledger("openai", tpm=1000).ready_at(100, 1001, 0.0) == inf
    assert ledger("anthropic", otpm=500).ready_at(100, 1000, 0.0) <= 0.0
    assert ledger("anthropic", itpm=5000, otpm=500).ready_at(501, 1000, 0.0) <= 0.0, "input is none of its output"
    assert ledger("anthropic", itpm=500).ready_at(501, 10, 0.0) == inf


@pytest.mark.parametrize(
    ("provider", "reserved"),
    [("openai", 0), ("azure", 1_000), ("bedrock", 64_000), ("unheard-of", 512), ("mistral", 512)],
)
def test_an_unset_output_reserves_what_the_provider_does(provider: str, reserved: int) -> None:
    account = ledger(provider)
    assert account.output_of(Ask("m", est_output_tokens=512, output_unset=True)) == reserved
    assert account.output_of(Ask("m", est_output_tokens=512)) == 512


def test_azure_requests_are_limited_in_ten_seconds() -> None:
    account = ledger("azure", rpm=120)
    for _ in range(20):
        account.reserve(1, 1, 0.0)
    assert 10.0 <= account.ready_at(1, 1, 0.0) <= 11.0


def test_a_day_ends_at_midnight_in_california() -> None:
    midnight_in_summer = 20_719 * 86_400.0 + 7 * 3600
    account = Ledger(Limits(rpd=1), SEMANTICS["gemini"], 0.0, unix_offset_s=midnight_in_summer - 50.0)
    account.reserve(1, 1, 0.0)
    assert account.ready_at(1, 1, 0.0) == pytest.approx(50.0)


def test_a_header_corrects_the_level_and_tells_unknown_limits() -> None:
    account = ledger("openai")
    first = account.reserve(100, 0, 0.0)
    account.learn(first, Hint(tokens=WindowHint(60_000, 500), requests=WindowHint(60, 30)), 0.0)
    assert left(account, Dimension.TPM) == 500
    assert account.limits(0.0)["rpm"] == (60.0, 30.0)
    second = account.reserve(200, 0, 0.0)
    account.reserve(100, 0, 0.0)
    account.learn(second, Hint(tokens=WindowHint(60_000, 900)), 0.0)
    assert left(account, Dimension.TPM) == 800


def test_an_older_answer_does_not_overrule_a_newer() -> None:
    account = ledger("openai", tpm=60_000)
    old, new = account.reserve(10, 0, 0.0), account.reserve(10, 0, 1.0)
    account.learn(new, Hint(tokens=WindowHint(60_000, 100)), 1.0)
    account.learn(old, Hint(tokens=WindowHint(60_000, 50_000)), 1.0)
    assert left(account, Dimension.TPM, 1.0) == 100


def test_a_configured_cap_below_the_providers_limit_stays() -> None:
    account = ledger("openai", rpm=10)
    account.learn(account.reserve(1, 1, 0.0), Hint(requests=WindowHint(5000, 4999)), 0.0)
    assert account.limits(0.0)["rpm"] == (10.0, 9.0)
    account.learn(account.reserve(1, 1, 0.0), Hint(requests=WindowHint(5000, 2)), 0.0)
    assert account.limits(0.0)["rpm"] == (10.0, 2.0)
    assert account.misconfigured() == {}


def test_a_configured_limit_above_the_providers_is_reported_and_not_believed() -> None:
    account = ledger("openai", rpm=5000)
    account.learn(account.reserve(1, 1, 0.0), Hint(requests=WindowHint(60, 59)), 0.0)
    assert account.limits(0.0)["rpm"] == (60.0, 59.0)
    assert account.misconfigured() == {"rpm": (5000, 60)}


def test_groqs_request_header_is_a_day() -> None:
    account = ledger("groq", rpm=30)
    account.learn(account.reserve(1, 1, 0.0), Hint(daily_requests=WindowHint(14_400, 7)), 0.0)
    assert account.limits(0.0) == {"rpm": (30.0, 29.0), "rpd": (14_400.0, 7.0)}


def test_azures_remainder_is_of_the_sub_window() -> None:
    account = ledger("azure", rpm=120)
    account.learn(account.reserve(1, 1, 0.0), Hint(requests=WindowHint(120, 3)), 0.0)
    assert account.limits(0.0)["rpm"] == (20.0, 3.0)


COOLED: list[tuple[str, Hint | None, float]] = [
    ("retry-after is kept", Hint(retry_after_s=7.0), 7.0),
    ("retry-after is capped", Hint(retry_after_s=3600.0), COOLDOWN_CAP_S),
    ("no delay is still a little", Hint(retry_after_s=0.0), COOLDOWN_MIN_S),
    ("the reset of what is spent", Hint(tokens=WindowHint(10, 0, 3.0), requests=WindowHint(10, 5, 40.0)), 3.0),
    ("nothing said", None, BLIND_COOLDOWN_S),
]


@pytest.mark.parametrize(("hint", "seconds"), [row[1:] for row in COOLED], ids=[row[0] for row in COOLED])
def test_a_429_cools_down(hint: Hint | None, seconds: float) -> None:
    account = ledger()
    account.settle(account.reserve(1, 1, 0.0), Outcome(OutcomeKind.RATE_LIMITED, 429, hint=hint), 0.0)
    assert account.ready_at(1, 1, 0.0) == pytest.approx(seconds)
    assert account.headroom(0.0) == 0.0
    assert account.ready_at(1, 1, seconds) <= seconds


def test_blind_429s_back_off_until_one_succeeds() -> None:
    account, delays, now = ledger(), [], 0.0
    for _ in range(10):
        account.settle(account.reserve(1, 1, now), Outcome(OutcomeKind.RATE_LIMITED), now)
        delays.append(account.cooldown.until - now)
        now = account.cooldown.until
    assert delays[:3] == pytest.approx([0.5, 1.0, 2.0])
    assert delays[-1] == 60.0
    account.settle(account.reserve(1, 1, now), ok(1, 1), now)
    account.settle(account.reserve(1, 1, now), Outcome(OutcomeKind.RATE_LIMITED), now)
    assert account.cooldown.until - now == pytest.approx(BLIND_COOLDOWN_S)


@pytest.mark.parametrize(
    ("model", "provider", "family"),
    [
        ("gpt-4o-2024-08-06", "openai", "gpt-4o"),
        ("gpt-4o", "openai", "gpt-4o"),
        ("claude-sonnet-4-20250514", "anthropic", "claude-sonnet-4"),
        ("claude-3-5-haiku-latest", "anthropic", "claude-3-5-haiku"),
        ("gpt-4-0613", "azure", "gpt-4"),
        ("gpt-4-0613", "openai_compatible", ""),
        ("mistral-large-latest", "mistral", ""),
        ("anything", "unheard-of", ""),
    ],
)
def test_families(model: str, provider: str, family: str) -> None:
    assert model_family(model, semantics_of(provider)) == family


def test_a_quota_that_others_drain_does_not_refuse_for_ever() -> None:
    """OpenAI counts refused requests: who comes as soon as one fits, while others take a share, never gets through."""
    provider, account = OpenAILimits(Limits(rpm=60)), ledger("openai", rpm=60)
    now, served, refused = 0.0, 0, 0
    while now < 600.0:
        began, now = now, max(now + 0.01, account.ready_at(10, 10, now))
        provider.drain("gpt-4o", 0.15 * (now - began), 0.0, now)
        reservation = account.reserve(10, 10, now)
        answer = provider.admit(Cost("gpt-4o", 10, 10, 0), now)
        hint = parse_hint(dict(answer.headers), "openai", now_unix=now)
        assert hint is not None
        account.learn(reservation, hint, now)
        kind = OutcomeKind.RATE_LIMITED if isinstance(answer, Rejected) else OutcomeKind.OK
        account.settle(reservation, Outcome(kind, hint=hint), now)
        served, refused = served + (kind is OutcomeKind.OK), refused + (kind is not OutcomeKind.OK)
    assert served > 0.6 * 600.0
    assert refused < served / 2
