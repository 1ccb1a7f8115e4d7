"""Cursor pages: nothing twice, nothing lost, and a foreign cursor is refused with a way out."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.errors import Invalid
from auth.paging import MAX_LIMIT, cut_page, decode_cursor, encode_cursor, page_ask


@given(st.uuids())
def test_a_cursor_comes_back_as_it_went(last: UUID) -> None:
    assert decode_cursor(encode_cursor(last)) == last


@given(st.text(max_size=40))
def test_any_other_text_is_refused_not_crashed(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        decode_cursor("!" + text)
    assert "next_cursor" in caught.value.hint


@given(st.sets(st.uuids(), max_size=40), st.integers(1, 7))
def test_walking_the_pages_gives_every_item_once_in_order(ids: set[UUID], limit: int) -> None:
    stored, walked, cursor = sorted(ids), list[UUID](), None
    while True:
        ask = page_ask(limit, cursor)
        rows = [each for each in stored if ask.after is None or each > ask.after][: ask.fetch]
        page = cut_page(rows, ask, key=lambda each: each)
        assert len(page.items) <= limit
        walked += page.items
        if (cursor := page.next_cursor) is None:
            break
    assert walked == stored


@pytest.mark.parametrize("limit", [0, -1, MAX_LIMIT + 1])
def test_a_limit_out_of_range_is_refused(limit: int) -> None:
    with pytest.raises(Invalid, match="between 1 and 200"):
        page_ask(limit)
