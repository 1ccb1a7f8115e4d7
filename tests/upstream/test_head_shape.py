"""What is worked out once for answers whose header names are the same."""

from __future__ import annotations

import pytest

from gateway.upstream.head_shape import MAX_NAME_BYTES, MAX_NAMES, MAX_SHAPES, HeadShape, shape_of


def test_a_head_is_read_by_the_places_of_its_names() -> None:
    shape = shape_of((b"Content-Type", b"x-a", b"TRANSFER-Encoding", b"content-type", b"transfer-encoding"))
    assert shape.names == (b"content-type", b"x-a", b"transfer-encoding", b"content-type", b"transfer-encoding")
    assert (shape.content_type, shape.codings, shape.length) == (0, (2, 4), -1)
    assert shape_of((b"x-a", b"Content-Length")).length == 1
    assert shape_of(()).content_type == -1


@pytest.mark.parametrize(
    ("names", "values", "found"),
    [
        ([b"x-a", b"content-length"], [b"1", b"2"], None),
        ([b"x-a", b"Retry-After"], [b"1", b"2"], {"retry-after": "2"}),
        ([b"retry-after", b"x-a", b"retry-after"], [b"1", b"2", b"3"], {"retry-after": "3"}),
        (
            [b"retry-after", b"x-a", b"x-ratelimit-limit-tokens"],
            [b"\xe9\n\0", b"2", b"3"],
            {"retry-after": "é\n\0", "x-ratelimit-limit-tokens": "3"},
        ),
    ],
    ids=["none", "one", "repeated", "any bytes"],
)
def test_the_limit_headers_alone_are_decoded(
    names: list[bytes], values: list[bytes], found: dict[str, str] | None
) -> None:
    shape = HeadShape(names)
    for _ in range(2):
        assert shape.limits("openai", values) == found


def test_each_style_has_its_own_limit_headers() -> None:
    shape = HeadShape([b"x-ratelimit-limit-tokens", b"anthropic-ratelimit-tokens-limit"])
    values = [b"1", b"2"]
    assert shape.limits("openai", values) == {"x-ratelimit-limit-tokens": "1"}
    assert shape.limits("anthropic", values) == {"anthropic-ratelimit-tokens-limit": "2"}
    assert shape.limits("openai", [b"3", b"4"]) == {"x-ratelimit-limit-tokens": "3"}


def test_the_wanted_headers_are_given_as_they_came() -> None:
    shape, values = HeadShape([b"A", b"b", b"a", b"c"]), [b"1", b"2", b"3", b"4"]
    for _ in range(2):
        assert shape.among(frozenset({b"a", b"c"}), values) == [(b"a", b"1"), (b"a", b"3"), (b"c", b"4")]
        assert shape.among(frozenset({b"b"}), values) == [(b"b", b"2")]
        assert shape.among(frozenset({b"d"}), values) == []
    assert HeadShape([]).among(frozenset({b"d"}), []) == []


def test_what_upstreams_can_have_kept_is_bounded() -> None:
    first = shape_of((b"first",))
    assert shape_of((b"first",)) is first
    for many in ((b"x",) * (MAX_NAMES + 1), (b"x" * (MAX_NAME_BYTES + 1),)):
        assert shape_of(many) is not shape_of(many)
    for number in range(MAX_SHAPES):
        shape_of((b"x-%d" % number,))
    assert shape_of((b"first",)) is not first
