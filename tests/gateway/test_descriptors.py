"""What the limit of open files leaves is shared so that it is never met; what was asked for is never exceeded."""

from __future__ import annotations

import logging
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.descriptors import Sockets, TooFewFiles, allow_files, share_out, within_files
from gateway.settings import read_settings

WANTED = Sockets(10_000, 1_000)


@pytest.mark.parametrize(
    ("limit", "wanted", "got"),
    [
        (1_048_576, WANTED, WANTED),
        (11_200, WANTED, WANTED),
        (11_199, WANTED, Sockets(9_999, 1_000)),
        (4_096, WANTED, Sockets(2_896, 1_000)),
        (1_024, WANTED, Sockets(412, 412)),
        (1_024, Sockets(100, 10_000), Sockets(100, 724)),
        (1_024, Sockets(10_000, 10), Sockets(814, 10)),
        (232, WANTED, Sockets(16, 16)),
    ],
)
def test_what_each_gets(limit: int, wanted: Sockets, got: Sockets) -> None:
    assert share_out(limit, wanted, own=200) == got


@given(
    limit=st.integers(232, 2_000_000),
    callers=st.integers(1, 1_000_000),
    upstream=st.integers(1, 1_000_000),
)
def test_the_limit_is_never_met(limit: int, callers: int, upstream: int) -> None:
    got = share_out(limit, Sockets(callers, upstream), own=200)
    assert got.callers + got.upstream + 200 <= limit
    assert 1 <= got.callers <= callers
    assert 1 <= got.upstream <= upstream
    unused = limit - 200 - got.callers - got.upstream
    assert not unused or got == (callers, upstream), "nothing is withheld that somebody wanted"


def test_next_to_no_files_is_refused_with_the_mend() -> None:
    with pytest.raises(TooFewFiles, match="may open 231 files; it needs 232") as refused:
        share_out(231, WANTED, own=200)
    assert "ulimit -n" in str(refused.value.hint)


def test_lowered_bounds_are_told(caplog: pytest.LogCaptureFixture) -> None:
    settings = read_settings({})
    with caplog.at_level(logging.WARNING):
        assert within_files(settings, 1_000_000) == settings
        assert not caplog.records
        lowered = within_files(settings, 1_024)
    assert lowered.max_connections < settings.max_connections
    (told,) = caplog.records
    assert (told.open_files, told.max_connections) == (1_024, lowered.max_connections)  # type: ignore[attr-defined]


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        assert allow_files() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
