"""A key that a provider echoes is blanked, however its answer is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.screen import KeyScreen, blanked, key_in

KEY = b"sk-sim-sk-sim-0001"


def passed(pieces: list[bytes], key: bytes = KEY) -> bytes:
    screen = KeyScreen(key)
    return b"".join([*(screen.clean(piece) for piece in pieces), screen.clean(b"", is_last=True)])


@given(
    st.lists(st.sampled_from([KEY, KEY[:-1], KEY[:7], KEY[5:], b"sk-", b"s", b'{"a":"', b"\n\n", b"x" * 50])),
    st.lists(st.integers(0, 300)),
)
def test_any_cut_of_any_text(parts: list[bytes], cuts: list[int]) -> None:
    text = b"".join(parts)
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in pairwise(edges)]
    assert passed(pieces) == text.replace(KEY, b"*" * len(KEY))


def test_what_is_no_beginning_of_the_key_is_not_held() -> None:
    screen = KeyScreen(KEY)
    assert screen.clean(b"data: {}\n\n") == b"data: {}\n\n"
    assert screen.clean(b"data: sk-s") == b"data: "
    assert screen.clean(b"ilver\n\n") == b"sk-silver\n\n"


@pytest.mark.parametrize(
    ("block", "key"),
    [
        (b"authorization: Bearer sk-123456789\r\nx: y\r\n", b"sk-123456789"),
        (b"anthropic-version: 2023-06-01\r\nx-api-key: sk-123456789\r\n", b"sk-123456789"),
        (b"api-key: 0123456789abcdef\r\n", b"0123456789abcdef"),
        (b"x-goog-api-key: AIza-1234567\r\n", b"AIza-1234567"),
        (b"authorization: Bearer short\r\n", b""),
        (b"x: y\r\n", b""),
    ],
)
def test_the_key_is_found_in_the_credential(block: bytes, key: bytes) -> None:
    assert key_in(block) == key


def test_headers_are_blanked_too() -> None:
    lines = b"x-request-id: echo %b\r\ncontent-type: text/plain\r\n"
    assert blanked(lines % KEY, KEY) == lines % (b"*" * len(KEY))
