"""Max-min fairness, by its definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.leases.fairness import max_min, part_of_first

WANTS = st.lists(st.floats(0, 1000), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("wants", "capacity", "parts"),
    [
        ([10, 10], 30, [10, 10]),
        ([40, 40], 30, [15, 15]),
        ([4, 40, 40], 30, [4, 13, 13]),
        ([4, 8, 40], 30, [4, 8, 18]),
        ([0, 40], 30, [0, 30]),
        ([40], -3, [0]),
        ([], 30, []),
    ],
)
def test_the_small_get_all_and_the_large_the_same(wants: list[float], capacity: float, parts: list[float]) -> None:
    assert max_min(wants, capacity) == parts


@given(wants=WANTS, capacity=st.floats(0, 5000))
def test_nobody_can_get_more_without_taking_from_one_who_has_no_more(wants: list[float], capacity: float) -> None:
    parts = max_min(wants, capacity)
    assert sum(parts) <= capacity + 1e-6
    assert all(0.0 <= part <= want for part, want in zip(parts, wants, strict=True))
    unmet = [part for part, want in zip(parts, wants, strict=True) if part < want - 1e-6]
    if unmet:
        assert sum(parts) >= capacity - 1e-6
        assert max(parts) <= min(unmet) + 1e-6


@given(wants=WANTS, capacity=st.floats(-10, 5000))
def test_one_part_alone_is_the_same_as_in_the_whole_division(wants: list[float], capacity: float) -> None:
    assert part_of_first(wants[0], wants[1:], capacity) == pytest.approx(max_min(wants, capacity)[0], abs=1e-6)
