"""Levels in between: what they lend is never more than what they hold, and demand at the bottom is heard at the top."""

from __future__ import annotations

import pytest

from bench.leases import Tree, converged


@pytest.mark.parametrize("fan_outs", [[4], [3, 4], [2, 3, 4]])
def test_a_limit_is_used_and_never_overrun_however_many_levels_there_are(fan_outs: list[int]) -> None:
    leaves = 1
    for each in fan_outs:
        leaves *= each
    tree = Tree(60_000.0, fan_outs, 1.5 * 1_000.0 / leaves, seed=1)
    assert converged(tree, 970.0) < 20.0
    assert tree.run(20.0) == pytest.approx(1_000.0, rel=0.02)
    assert tree.over == 0.0


def test_demand_that_moves_to_another_branch_is_followed_within_seconds() -> None:
    tree = Tree(60_000.0, [2, 4], 1_500.0 / 8, seed=1)
    tree.run(20.0)
    for number, leaf in enumerate(tree.leaves):
        leaf.rps = 375.0 if number < 4 else 0.0
    assert converged(tree, 970.0) <= 6.0
    assert tree.over == 0.0
