"""authorization_details: patterns, narrowing, and the property that no chain of exchanges widens."""

from __future__ import annotations

import fnmatch
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auth.details import (
    Detail,
    DetailsRefused,
    latest_end,
    narrow,
    own_limits,
    parse_details,
    permitting,
    read_details,
    write_details,
)
from auth.globs import matches, within

PATTERNS = st.text("ab*", min_size=1, max_size=5)
WORDS = ["".join(each) for size in range(5) for each in itertools.product("abc", repeat=size)]
POOLS = ("p1", "p2", "p3")
MODELS = ("gpt-4o", "gpt-4o-mini", "o3", "claude-x")


@given(PATTERNS, st.text("abc", max_size=6))
def test_matching_is_what_fnmatch_says(pattern: str, text: str) -> None:
    assert matches(pattern, text) == fnmatch.fnmatchcase(text, pattern)


@settings(max_examples=150)
@given(PATTERNS, PATTERNS)
def test_a_pattern_within_another_matches_no_other_word(narrower: str, wider: str) -> None:
    contained = all(matches(wider, word) for word in WORDS if matches(narrower, word))
    if within(narrower, wider):
        assert contained
    elif len(narrower) <= 4:  # the letter c stands for a star of the narrower one: a word of 4 is witness enough
        assert not matches(wider, narrower.replace("*", "c"))


def test_matching_does_not_explode() -> None:
    assert not matches("*a" * 40 + "b", "a" * 5000)


details = st.builds(
    Detail,
    type=st.just("llm_proxy"),
    pools=st.none() | st.lists(st.sampled_from(POOLS), min_size=1, max_size=3, unique=True).map(tuple),
    models=st.none() | st.lists(st.sampled_from(("gpt-*", "gpt-4o*", "gpt-4o", "*", "o3")), min_size=1).map(tuple),
    regions=st.none() | st.lists(st.sampled_from(("eu-*", "eu-west", "*")), min_size=1).map(tuple),
    priority=st.none() | st.integers(0, 9),
    rpm=st.none() | st.integers(1, 100),
    tpm=st.none() | st.integers(1, 100),
    expires_at=st.none() | st.integers(1, 100),
)
trees = st.lists(details, max_size=3).map(tuple)


def effective(found: Detail, name: str) -> float:
    return min((value for limit in found.limits if (value := getattr(limit, name)) is not None), default=float("inf"))


@settings(max_examples=80)
@given(st.lists(trees, min_size=2, max_size=5), st.integers(0, 100))
def test_no_chain_of_exchanges_ever_widens(chain: list[tuple[Detail, ...]], now: int) -> None:
    held = own_limits(chain[0], "client")
    for step, asked in enumerate(chain[1:]):
        try:
            given_out = narrow(held, asked, f"jti{step}")
        except DetailsRefused:
            continue
        for pool, model, region in itertools.product(POOLS, MODELS, ("eu-west", "us-east")):
            child = permitting(given_out, pool=pool, model=model, region=region, now=now)
            parent = permitting(held, pool=pool, model=model, region=region, now=now)
            if not isinstance(child, Detail):
                continue
            assert isinstance(parent, Detail), "a child reaches what its parent does not"
            if held:
                buckets = {limit.bucket for limit in child.limits}
                assert any(
                    buckets >= {limit.bucket for limit in outer.limits}
                    and effective(child, "rpm") <= effective(outer, "rpm")
                    and effective(child, "tpm") <= effective(outer, "tpm")
                    and (outer.priority or 0) <= (child.priority or 0)
                    for outer in held
                )
        held = given_out
        assert read_details(write_details(held)) == held


@pytest.mark.parametrize(
    ("asked", "member"),
    [
        ({"pools": ["other"]}, "pools"),
        ({"models": ["gpt-*"]}, "models"),
        ({"regions": ["*"]}, "regions"),
        ({"priority": 4}, "priority"),
        ({"rpm": 61}, "rpm"),
        ({"tpm": 1001}, "tpm"),
        ({"budget_usd": 6.0, "budget_period": "day"}, "budget_usd"),
        ({"expires_at": 2001}, "expires_at"),
    ],
)
def test_the_refusal_names_the_member_that_is_too_wide(asked: dict[str, Any], member: str) -> None:
    held = own_limits(
        parse_details(
            [
                {
                    "type": "llm_proxy",
                    "pools": ["prod"],
                    "models": ["gpt-4o*"],
                    "regions": ["eu-*"],
                    "priority": 5,
                    "rpm": 60,
                    "tpm": 1000,
                    "budget_usd": 5.0,
                    "budget_period": "day",
                    "expires_at": 2000,
                }
            ]
        ),
        "c",
    )
    with pytest.raises(DetailsRefused, match=rf"wider than what it would come from: {member}\."):
        narrow(held, parse_details([{"type": "llm_proxy", **asked}]), "j")


def test_what_is_left_out_is_inherited_and_limits_add_up() -> None:
    held = own_limits(parse_details([{"type": "llm_proxy", "pools": ["prod"], "rpm": 60}]), "client")
    (child,) = narrow(held, parse_details([{"type": "llm_proxy", "rpm": 10}]), "jti")
    assert child.pools == ("prod",)
    assert [(limit.bucket, limit.rpm) for limit in child.limits] == [("client:0", 60), ("jti:0", 10)]
    assert narrow(held, (), "jti2") == held


@pytest.mark.parametrize(
    ("request_", "refused_by"),
    [
        ({"pool": "dev", "model": "gpt-4o"}, "pools"),
        ({"pool": "prod", "model": "o3"}, "models"),
        ({"pool": "prod", "model": "gpt-4o", "region": "us-east"}, "regions"),
        ({"pool": "prod", "model": "gpt-4o", "now": 3000}, "expires_at"),
    ],
)
def test_a_refused_request_names_the_member_that_refused(request_: dict[str, Any], refused_by: str) -> None:
    held = parse_details(
        [{"type": "llm_proxy", "pools": ["prod"], "models": ["gpt-*"], "regions": ["eu-*"], "expires_at": 3000}]
    )
    assert permitting(held, **{"now": 1.0, **request_}) == refused_by
    assert isinstance(permitting(held, pool="prod", model="gpt-4o", region="eu-west", now=1.0), Detail)


@pytest.mark.parametrize(
    "bad",
    [
        "{}",
        "[",
        "[" * 5000,
        '[{"type": "other"}]',
        '[{"pools": ["p"]}]',
        '[{"type": "llm_proxy", "pool": "p"}]',
        '[{"type": "llm_proxy", "pools": []}]',
        '[{"type": "llm_proxy", "rpm": 0}]',
        '[{"type": "llm_proxy", "rpm": true}]',
        '[{"type": "llm_proxy", "budget_usd": 1}]',
        '[{"type": "llm_proxy", "limits": [{"bucket": "x:0"}]}]',
        '[{"type": "llm_proxy", "models": ["a b"]}]',
        "[" + ",".join(['{"type": "llm_proxy"}'] * 17) + "]",
    ],
)
def test_malformed_details_are_refused_with_ascii_text(bad: str) -> None:
    with pytest.raises(DetailsRefused) as caught:
        parse_details(bad)
    assert (caught.value.public + caught.value.hint).isascii()


def test_a_misspelt_member_is_told_with_those_that_there_are() -> None:
    with pytest.raises(DetailsRefused) as caught:
        parse_details([{"type": "llm_proxy", "pool": ["main"]}])

    assert "unknown field `pool`" in caught.value.hint
    assert caught.value.hint.endswith("budget_usd, budget_period, expires_at"), "limits are the server's"


def test_the_latest_end_bounds_a_token() -> None:
    ends = parse_details([{"type": "llm_proxy", "expires_at": 5}, {"type": "llm_proxy", "expires_at": 9}])
    assert latest_end(ends) == 9
    assert latest_end((*ends, Detail(type="llm_proxy"))) is None
    assert latest_end(()) is None
