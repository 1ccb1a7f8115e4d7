"""If-Match: RFC 9110 section 13.1.1 as a table."""

from __future__ import annotations

import pytest

from auth.errors import Invalid, Stale
from auth.etag import check_if_match, etag


@pytest.mark.parametrize("header", [None, "*", ' "3"', '"3"', '"1", "3"', '"1",,"3"', '"1", W/"2", "3"'])
def test_matches(header: str | None) -> None:
    check_if_match(header, 3)


@pytest.mark.parametrize("header", ['"2"', 'W/"3"', '"33"', '"1", "2"', '""'])
def test_another_version_is_stale(header: str) -> None:
    with pytest.raises(Stale) as caught:
        check_if_match(header, 3)
    assert "Read it again" in caught.value.hint


@pytest.mark.parametrize("header", ["3", "", '"3', "'3'", '"3" "4"', "*, *"])
def test_malformed_headers_are_named_as_such(header: str) -> None:
    with pytest.raises(Invalid, match="malformed"):
        check_if_match(header, 3)


def test_the_tag_is_strong_and_quoted() -> None:
    assert etag(3) == '"3"'
