"""The fuzzers' targets, for some seconds at each commit: every seed, and inputs near them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import SEEDS, mutated
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str) -> None:
    for data in SEEDS[name]:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=250, deadline=None)
@given(st.integers(0, 2**64))
def test_near_the_seeds(name: str, seed: int) -> None:
    TARGETS[name](mutated(name, random.Random(seed)))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_noise(name: str, data: bytes) -> None:
    TARGETS[name](data)
