"""Fallback: causes from failures and bodies, the climb, and what it never changes."""

from __future__ import annotations

import json
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.balancing.decision import Ask, Refusal
from gateway.balancing.fallback import (
    MAX_RUNGS,
    Cause,
    Ladder,
    Rung,
    ask_again,
    cause_of_answer,
    cause_of_failure,
    told,
)
from gateway.balancing.outcome import OutcomeKind
from gateway.balancing.steps import Failure


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        (Failure(OutcomeKind.RATE_LIMITED, retry_after_s=9.0), Cause.CAPACITY),
        (Failure(Refusal.TOO_LARGE), Cause.CAPACITY),
        (Failure(OutcomeKind.CONNECT_FAILED), Cause.OUTAGE),
        (Failure(OutcomeKind.TIMEOUT), Cause.OUTAGE),
        (Failure(OutcomeKind.AUTH_REJECTED, 401), Cause.OUTAGE),
        (Failure(Refusal.EXHAUSTED), Cause.OUTAGE),
        (Failure(Refusal.NO_MODEL), Cause.OUTAGE),
        (Failure("deadline"), None),
        (Failure(OutcomeKind.CLIENT_ERROR, 400), None),
    ],
)
def test_causes_of_failures(failure: Failure, cause: Cause | None) -> None:
    assert cause_of_failure(failure) is cause


def error(**members: object) -> bytes:
    return json.dumps({"error": members}).encode()


ANSWERS: list[tuple[str, int, bytes, Cause | None]] = [
    ("429", 429, b"", Cause.CAPACITY),
    ("overloaded", 529, b"", Cause.OUTAGE),
    ("openai context", 400, error(code="context_length_exceeded", message="..."), Cause.CONTEXT_LENGTH),
    (
        "anthropic context",
        400,
        error(type="invalid_request_error", message="prompt is too long: 210000 tokens > 200000 maximum"),
        Cause.CONTEXT_LENGTH,
    ),
    ("anthropic size", 413, error(type="request_too_large", message="Request exceeds"), Cause.CONTEXT_LENGTH),
    (
        "gemini context",
        400,
        error(code=400, message="The input token count (1200000) exceeds the maximum number of tokens allowed"),
        Cause.CONTEXT_LENGTH,
    ),
    ("azure filter", 400, error(code="content_filter", message="The response was filtered"), Cause.CONTENT_POLICY),
    (
        "azure inner",
        400,
        error(code=None, innererror={"code": "ResponsibleAIPolicyViolation"}),
        Cause.CONTENT_POLICY,
    ),
    ("openai images", 400, error(code="content_policy_violation"), Cause.CONTENT_POLICY),
    ("a bad request", 400, error(code="invalid_value", message="temperature"), None),
    ("not found", 404, error(code="model_not_found"), None),
    ("no json", 400, b"<html>prompt is too long", None),
    ("a list", 400, b"[]", None),
]


@pytest.mark.parametrize(("name", "status", "body", "cause"), ANSWERS, ids=[row[0] for row in ANSWERS])
def test_causes_of_answers(name: str, status: int, body: bytes, cause: Cause | None) -> None:
    del name
    assert cause_of_answer(status, body) is cause


@given(st.integers(100, 599), st.binary(max_size=200))
def test_no_body_raises(status: int, body: bytes) -> None:
    cause_of_answer(status, body)
    cause_of_answer(status, b"[" * 5000 + body)


def climb(ladder: Ladder, cause: Cause | None) -> tuple[str, str] | None:
    return ladder.climb(cause, replayable=True, now=0.0, deadline=inf)


def test_gpt_then_azure_then_claude() -> None:
    ladder = Ladder([Rung("azure"), Rung("claude", "claude-sonnet-5")], pool="openai", model="gpt-4o")
    assert climb(ladder, Cause.OUTAGE) == ("azure", "gpt-4o")
    assert climb(ladder, Cause.CAPACITY) == ("claude", "claude-sonnet-5")
    assert climb(ladder, Cause.OUTAGE) is None
    assert ladder.cause is Cause.CAPACITY


def test_a_rung_serves_its_causes_only() -> None:
    long = Rung(model="gpt-4.1", causes=frozenset({Cause.CONTEXT_LENGTH}))
    ladder = Ladder([long, Rung("backup")], pool="main", model="gpt-4o")
    assert climb(ladder, Cause.OUTAGE) == ("backup", "gpt-4o")
    ladder = Ladder([long, Rung("backup")], pool="main", model="gpt-4o")
    assert climb(ladder, Cause.CONTEXT_LENGTH) == ("main", "gpt-4.1")
    assert climb(ladder, Cause.CONTENT_POLICY) is None


def test_no_climb_without_cause_way_or_time() -> None:
    def ladder() -> Ladder:
        return Ladder([Rung("backup")], pool="main", model="m")

    assert climb(ladder(), None) is None
    assert ladder().climb(Cause.OUTAGE, replayable=False, now=0.0, deadline=inf) is None
    assert ladder().climb(Cause.OUTAGE, replayable=True, now=5.0, deadline=5.0) is None


RUNGS = st.lists(
    st.builds(
        Rung,
        st.sampled_from((None, "a", "b", "c")),
        st.sampled_from((None, "x", "y")),
        st.frozensets(st.sampled_from(Cause), min_size=1),
    ),
    max_size=20,
)


@given(RUNGS, st.lists(st.sampled_from(Cause), max_size=40))
def test_no_place_is_asked_twice_and_every_climb_ends(rungs: list[Rung], causes: list[Cause]) -> None:
    ladder = Ladder(rungs, pool="a", model="x")
    places = [("a", "x"), *(place for cause in causes if (place := climb(ladder, cause)) is not None)]
    assert len(set(places)) == len(places) <= MAX_RUNGS + 1


def test_asking_again_keeps_every_rule() -> None:
    ask = Ask("gpt-4o", residency=frozenset({"eu"}), deadline=9.0, priority=0, excluded=frozenset({"k"}), region="eu")
    again = ask_again(ask, "claude")
    assert (again.model, again.excluded) == ("claude", frozenset())
    assert (again.residency, again.deadline, again.priority, again.region) == (frozenset({"eu"}), 9.0, 0, "eu")


def test_a_name_cannot_forge_a_header() -> None:
    assert told("main\r\nset-cookie: x", "m", Cause.OUTAGE) == "pool=main__set-cookie:_x; model=m; cause=outage"
