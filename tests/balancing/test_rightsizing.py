"""Right-sizing of `max_tokens`: when it suggests, when never, and how it stops itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.balancing.rightsizing import FACTOR, LEAST, MEMORY_S, MIN_SAMPLES, STOPPED_S, RightSizer
from gateway.balancing.semantics import SEMANTICS


def trained(length: int, count: int = MIN_SAMPLES) -> RightSizer:
    sizer = RightSizer()
    for _ in range(count):
        sizer.observe("t", "m", length, 0.0, sized=False, truncated=False)
    return sizer


def suggest(
    sizer: RightSizer, requested: int | None, provider: str, *, structured: bool = False, now: float = 0.0
) -> int | None:
    return sizer.suggest("t", "m", requested, SEMANTICS[provider], structured=structured, now=now)


CASES: list[tuple[str, int, int | None, str, bool, int | None]] = [
    ("a wide limit is lowered", 400, 4096, "openai", False, 600),
    ("never below the least", 10, 4096, "openai", False, LEAST),
    ("a tight one stays", 400, 500, "openai", False, None),
    ("unset costs OpenAI nothing", 400, None, "openai", False, None),
    ("unset reserves the model's maximum at Bedrock", 400, None, "bedrock", False, 600),
    ("unset reserves a default at Azure", 400, None, "azure", False, 600),
    ("... which is less than what would be needed", 900, None, "azure", False, None),
    ("nothing is reserved for unset at Gemini", 400, None, "gemini", False, None),
    ("not with tools or a schema", 400, 4096, "openai", True, None),
]


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_suggestions(case: tuple[str, int, int | None, str, bool, int | None]) -> None:
    _, length, requested, provider, structured, wanted = case
    assert suggest(trained(length), requested, provider, structured=structured) == wanted


def test_it_needs_samples_of_this_tenant_and_model() -> None:
    assert suggest(trained(400, MIN_SAMPLES - 1), 4096, "openai") is None
    sizer = trained(400)
    assert sizer.suggest("other", "m", 4096, SEMANTICS["openai"], structured=False, now=0.0) is None


def test_cut_answers_stop_it_for_a_day() -> None:
    sizer = trained(400)
    sizer.observe("t", "m", 600, 1.0, sized=True, truncated=True)
    assert suggest(sizer, 4096, "openai", now=1.0) == 1350
    sizer.observe("t", "m", 1350, 2.0, sized=True, truncated=True)
    assert suggest(sizer, 40960, "openai", now=3.0) is None
    seen = sizer.view("t", "m", 3.0)
    assert seen is not None
    assert seen.stopped_s == STOPPED_S - 1.0
    assert suggest(sizer, 40960, "openai", now=3.0 + STOPPED_S) is not None


def test_a_rare_cut_does_not_stop_it() -> None:
    sizer = trained(400)
    for number in range(10_000):
        sizer.observe("t", "m", 400, 1.0, sized=True, truncated=number in (7_000, 9_000))
    assert suggest(sizer, 4096, "openai", now=1.0) is not None


def test_a_single_long_answer_is_forgotten() -> None:
    sizer = trained(100)
    sizer.observe("t", "m", 4000, 0.0, sized=False, truncated=False)
    assert suggest(sizer, 4096, "openai") is None
    assert suggest(sizer, 4096, "openai", now=3 * MEMORY_S) == pytest.approx(FACTOR * 4000 / 20.1, rel=0.01)


def test_memory_is_bounded() -> None:
    sizer = RightSizer(max_tracked=10)
    for number in range(100):
        sizer.observe(f"t{number}", "m", 1, 0.0, sized=False, truncated=False)
    assert [number for number in range(100) if sizer.view(f"t{number}", "m", 0.0)] == list(range(90, 100))


@given(
    st.lists(st.integers(0, 10_000), min_size=MIN_SAMPLES, max_size=120),
    st.none() | st.integers(1, 200_000),
    st.sampled_from(sorted(SEMANTICS)),
)
def test_never_above_what_was_asked_nor_below_what_was_seen(
    lengths: list[int], requested: int | None, provider: str
) -> None:
    sizer = RightSizer()
    for length in lengths:
        sizer.observe("t", "m", length, 0.0, sized=False, truncated=False)
    size = suggest(sizer, requested, provider)
    if size is not None:
        assert size >= max(LEAST, *lengths)
        if requested is not None:
            assert size < requested
