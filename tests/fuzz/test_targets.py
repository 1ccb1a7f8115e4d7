"""The fuzzers' targets, for some seconds at each commit: every seed, and inputs near them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import SEEDS, mutated
from tests.fuzz.readers import by_us
from tests.fuzz.targets import TARGETS, plain


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


BEFORE = b"POST /v1/a HTTP/1.1\r\nhost: g\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize("before", [b"", BEFORE], ids=["first", "second"])
@pytest.mark.parametrize(
    "line",
    [b"\r\n\r\nPOST /v1/b HTTP/1.1", b"\rPOST /v1/b HTTP/1.1", b"\nPOST /v1/b HTTP/1.1", b"POST  /v1/b   HTTP/1.1"],
    ids=["empty lines", "CR", "LF", "spaces"],
)
def test_what_h11_refuses_and_we_read(before: bytes, line: bytes) -> None:
    """These alone: the target `caller` takes any other for a failure."""
    data = before + line + b"\r\nhost: g\r\ncontent-length: 2\r\n\r\n{}"
    assert by_us([data]).requests[-1] == (b"POST", b"/v1/b", b"{}")
    TARGETS["caller"](data)


@pytest.mark.parametrize("zeros", [19, 20, 1600])
def test_zeros_before_a_length_change_nothing(zeros: int) -> None:
    data = BEFORE + b"POST /v1/b HTTP/1.1\r\nhost: g\r\nContent-Length: " + b"0" * zeros + b"2\r\n\r\n{}"
    assert by_us([data]).requests[-1] == (b"POST", b"/v1/b", b"{}")
    TARGETS["caller"](data)


def test_what_h11_refuses_and_is_no_leniency_is_told() -> None:
    assert plain(BEFORE) == BEFORE
    assert plain(BEFORE + b"content-length: 02\r\n\r\n") == BEFORE + b"content-length: 02\r\n\r\n"
    assert plain(b"POST\t/v1/b HTTP/1.1\r\n") == b"POST\t/v1/b HTTP/1.1\r\n"
