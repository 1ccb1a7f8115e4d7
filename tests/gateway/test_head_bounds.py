"""The bound of a request's head is the same however the network cuts it into reads."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.strict_protocol import MAX_HEAD_BYTES
from tests.fuzz.readers import by_us

BEFORE = b"POST /v1/a HTTP/1.1\r\nhost: g\r\ncontent-length: 70000\r\n\r\n" + b"b" * 70_000


def request(padding: int) -> bytes:
    return b"POST /v1/b HTTP/1.1\r\nhost: g\r\ncontent-length: 2\r\nx-pad: %b\r\n\r\n{}" % (b"x" * padding)


def cut(data: bytes, places: list[float]) -> list[bytes]:
    at = [0, *sorted(int(place * len(data)) for place in places), len(data)]
    return [data[begin:end] for begin, end in pairwise(at) if begin < end]


PLACES = st.lists(st.floats(0.0, 1.0), max_size=4)


@settings(deadline=None, max_examples=60)
@example([])
@example([0.55])
@given(PLACES)
def test_a_head_over_the_bound_is_refused(places: list[float]) -> None:
    read = by_us(cut(request(100_000), places))
    assert read.refused
    assert read.requests == []


@settings(deadline=None, max_examples=60)
@example([0.66])
@given(PLACES)
def test_so_is_one_behind_another_request(places: list[float]) -> None:
    read = by_us(cut(BEFORE + request(100_000), places))
    assert read.refused
    assert [target for _, target, _ in read.requests] in ([b"/v1/a"], [])


@settings(deadline=None, max_examples=60)
@example([0.3])
@given(PLACES)
def test_a_head_within_the_bound_is_read(places: list[float]) -> None:
    within = request(MAX_HEAD_BYTES - 200)
    read = by_us(cut(BEFORE + within + within, places))
    assert not read.refused
    assert [target for _, target, _ in read.requests] == [b"/v1/a", b"/v1/b", b"/v1/b"]
