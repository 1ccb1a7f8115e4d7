"""What stands of what several processes say: in any order, however often, and nothing for good."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.leases.facts import FACT_S, MAX_FACTS, PEAK_S, Fact, heard_by, join, join_all, opened, say

TOLD, SEEN = "told||rpm", "peak||rpm"
figures = st.one_of(st.none(), st.integers(0, 9), st.lists(st.integers(0, 3), max_size=3))
facts = st.builds(Fact, st.sampled_from([0.0, 1.0, 60.0, 500.0]), st.sampled_from("ab"), figures)
names = st.sampled_from([TOLD, SEEN, "cool|", "a later version's"])
tables = st.dictionaries(names, facts, max_size=4)


@pytest.mark.parametrize(
    ("name", "one", "other", "stands"),
    [
        (TOLD, Fact(1.0, "a", 100), Fact(2.0, "b", 90), 90),
        (TOLD, Fact(2.0, "a", 100), Fact(2.0, "b", 90), 100),
        (SEEN, Fact(1.0, "a", 100), Fact(2.0, "b", 90), 100),
        (SEEN, Fact(1.0, "a", 100), Fact(1.0 + PEAK_S, "b", 90), 90),
        ("breaker|k", Fact(1.0, "a", [9.0, 1, False]), Fact(2.0, "b", None), None),
    ],
    ids=["later", "at one moment", "peak", "peak gone by", "closed again"],
)
def test_which_of_two_stands(name: str, one: Fact, other: Fact, stands: Any) -> None:
    assert join(name, one, other).value == stands
    assert join(name, other, one).value == stands


@given(tables, tables)
def test_two_tables_are_one_whichever_comes_first_and_however_often(one: Any, other: Any) -> None:
    both = join_all(one, other)
    assert both == join_all(other, one)
    assert join_all(both, one) == join_all(both, other) == both
    assert join_all(one, one) == one


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=1, max_size=4, unique_by=lambda r: r[0]))
def test_the_order_of_words_at_different_times_does_not_matter(words: list[tuple[str, int]]) -> None:
    said = [{TOLD: Fact(float(at), by, value)} for at, (by, value) in enumerate(words)]
    found = []
    for order in permutations(said):
        table: dict[str, Fact] = {}
        for each in order:
            table = join_all(table, each)
        found.append(table)
    assert all(table == said[-1] for table in found)


@given(st.lists(st.tuples(names, figures, st.floats(0.0, 1e4)), max_size=8))
def test_a_word_is_never_displaced_by_an_older_one_and_ends_by_itself(rows: list[tuple[str, Any, float]]) -> None:
    table: dict[str, Fact] = {}
    now = 0.0
    for name, value, span_s in rows:
        before, now = table, now + span_s
        table = say(table, {name: value}, "a", now)
        for known, fact in table.items():
            assert known not in before or fact.at >= before[known].at or known == SEEN
            assert now - fact.at < FACT_S
    assert say(table, {}, "b", now + 2.0 * FACT_S) == {}


def test_they_are_bounded_and_the_latest_stay() -> None:
    table: dict[str, Fact] = {}
    for second in range(MAX_FACTS + 50):
        table = say(table, {f"named|{second}": "x"}, "a", float(second))
    assert len(table) == MAX_FACTS
    assert f"named|{MAX_FACTS + 49}" in table
    assert heard_by(table, "a") == {}
    assert heard_by(table, "b") == table


@pytest.mark.parametrize("value", [None, 3, "x", [], ["a", 1, True], [1.0, "x", False], [float("inf"), 1, False], {}])
def test_a_breakers_word_that_is_not_understood_says_nothing(value: Any) -> None:
    assert opened(value) is None
