"""The table of key version states, as named cases and as rules over the whole table."""

from __future__ import annotations

from itertools import pairwise

import pytest

from auth.errors import Conflict
from tenants.lifecycle import ERASED, IN_FLIGHT, NEXT, USABLE, VersionState, follow, may_follow

S = VersionState


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a minted key's whole life", "pending created probing current draining disabled revoked"),
        ("a supplied key", "created current draining disabled revoked"),
        ("roll back while draining", "created current draining current"),
        ("roll back after it was disabled", "current draining disabled current"),
        ("emergency revoke", "current revoked"),
        ("the provider never made it", "pending failed"),
        ("the probe says no", "pending created probing failed"),
        ("the answer was lost, found later", "pending orphaned created probing current"),
        ("found and not wanted", "pending orphaned revoked"),
    ],
)
def test_paths_that_happen(name: str, path: str) -> None:
    states = [S(word) for word in path.split()]
    for old, new in pairwise(states):
        assert follow(old, new) is new, f"{name}: {old} -> {new}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (S.REVOKED, S.CURRENT),
        (S.FAILED, S.CREATED),
        (S.PENDING, S.CURRENT),
        (S.DRAINING, S.PROBING),
        (S.CURRENT, S.CREATED),
    ],
)
def test_steps_that_must_not_happen(old: S, new: S) -> None:
    with pytest.raises(Conflict) as refused:
        follow(old, new)
    assert f"A {old} key version cannot become {new}." == refused.value.public
    assert "What may follow" in refused.value.hint


def test_the_table_is_total_and_ends() -> None:
    assert set(NEXT) == set(S)
    assert {state for state in S if not NEXT[state]} == {S.REVOKED, S.FAILED} == ERASED
    assert not any(may_follow(state, state) for state in S)


def test_every_state_can_end() -> None:
    def reach(state: S, seen: frozenset[S]) -> frozenset[S]:
        for following in NEXT[state] - seen:
            seen = reach(following, seen | {following})
        return seen

    for state in S:
        assert state in ERASED or reach(state, frozenset()) & ERASED, state


def test_groups_do_not_overlap() -> None:
    assert not USABLE & IN_FLIGHT
    assert not USABLE & ERASED
