"""What is fuzzed: each target takes any bytes, and fails when two readers of them disagree or something breaks."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from gateway.proxy.faults import RequestFault
from gateway.proxy.form_model import boundary_of
from gateway.proxy.head import RequestHead
from gateway.proxy.intake import Intake, IntakeLimits, take_in
from gateway.proxy.routes import Route, match
from tests.fuzz.readers import by_h11, by_us
from tests.upstream.test_differential import read_h11, read_ours

LIMITS = IntakeLimits(max_body_bytes=100_000, max_upload_bytes=100_000, body_s=5.0)


def cut(data: bytes) -> list[bytes]:
    """Cut `data` into reads, at places that depend on it alone."""
    edges = sorted({0, len(data), *(1 + byte * 3 for byte in data[:4] if 1 + byte * 3 < len(data))})
    return [data[start:end] for start, end in pairwise(edges)]


_LINE = re.compile(rb"[\r\n]*([^ \r\n]+) +([^ \r\n]+) +(HTTP/1\.[01]\r\n)")
_ZEROS = re.compile(rb"(\r\ncontent-length:[ \t]*)0+(?=[0-9])", re.IGNORECASE)


def plain(data: bytes) -> bytes:
    """Return `data` without what a server may overlook and h11 does not: empty lines before its request line, and more
    than one space within it (RFC 9112 sections 2.2 and 3); in a length, which any number of digits may tell (RFC 9110
    section 8.6), zeros that make it longer than h11's twenty.

    llhttp takes a CR or LF alone for an empty line too. There it can hide nothing: no request begins with one.
    """
    if not _LINE.match(data):
        return data
    head, end, rest = _LINE.sub(rb"\1 \2 \3", data, count=1).partition(b"\r\n\r\n")
    return _ZEROS.sub(rb"\1", head) + end + rest


def caller(data: bytes) -> None:
    """Requests: both readers see the same ones, however the bytes are cut, up to what one of them refuses."""
    ours, theirs = by_us([data]), by_h11(data)
    assert ours.requests == by_us(cut(data)).requests, "the cuts between reads changed the requests"
    for mine, other in zip(ours.requests, theirs.requests, strict=False):
        assert mine == other, "one request, read in two ways"
    left = ours.requests[len(theirs.requests) :]
    while left and theirs.refused:
        refused, data = data[theirs.at :], plain(data[theirs.at :])
        assert data != refused, "a request that the other reader refuses"
        theirs = by_h11(data)
        assert left[: len(theirs.requests)] == theirs.requests[: len(left)], "one request, read in two ways"
        left = left[len(theirs.requests) :]
    if not theirs.refused and not ours.refused:
        assert not left, "a request that the other reader does not see"


def upstream(data: bytes) -> None:
    """Answers: where both readers accept one, it is the same."""
    ours, theirs = read_ours([data]), read_h11(data)
    assert ours == read_ours(cut(data)), "the cuts between reads changed the answer"
    if ours is not None and theirs is not None:
        assert ours == theirs, "one answer, read in two ways"


class Body:
    """A request's body as a `Channel`."""

    def __init__(self, pieces: list[bytes], content_type: bytes) -> None:
        self.method, self.raw_path, self.query, self.certificate = "POST", b"", b"", ""
        self.head, self.length = RequestHead([(b"content-type", content_type)]), None
        self._pieces = [piece for piece in pieces if piece]

    @property
    def body_over(self) -> bool:
        return not self._pieces

    async def receive(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


def _taken(pieces: list[bytes], path: bytes, content_type: bytes) -> Intake | None:
    route = match("POST", path)
    assert isinstance(route, Route)
    channel: Any = Body(pieces, content_type)
    try:
        return asyncio.run(take_in(channel, route.operation, LIMITS))
    except RequestFault as refused:
        if not 400 <= refused.status < 500:
            raise
        return None


def intake_json(data: bytes) -> None:
    """JSON bodies: refused in good order, or the model is what any parser finds, and renaming changes it alone."""
    taken = _taken([data], b"/v1/chat/completions", b"application/json")
    again = _taken(cut(data), b"/v1/chat/completions", b"application/json")
    assert (taken is None) == (again is None)
    if taken is None or again is None:
        return
    assert (taken.model, taken.held) == (again.model, again.held) == (taken.model, data)
    try:
        for pairs_hook in (dict, lambda pairs: dict(reversed(pairs))):
            parsed = json.loads(data, object_pairs_hook=pairs_hook, parse_int=str, parse_float=str)
            assert parsed["model"] == taken.model, "first and last model differ"
            renamed = json.loads(taken.body("other"), object_pairs_hook=pairs_hook, parse_int=str, parse_float=str)  # type: ignore[arg-type]
            assert renamed == {**parsed, "model": "other"}
    except (ValueError, RecursionError):
        return  # the standard library is stricter with what stands in strings, and shallower


def intake_form(data: bytes) -> None:
    """Forms: refused in good order, or the model stands where it is said to."""
    content_type = b"multipart/form-data; boundary=x"
    taken = _taken([data], b"/v1/audio/transcriptions", content_type)
    again = _taken(cut(data), b"/v1/audio/transcriptions", content_type)
    assert (taken is None) == (again is None)
    if taken is None or again is None or taken.span is None:
        return
    assert taken.model == again.model
    assert data[slice(*taken.span)].decode() == taken.model
    assert boundary_of(content_type) == b"x"


TARGETS: dict[str, Callable[[bytes], None]] = {
    "caller": caller,
    "upstream": upstream,
    "json": intake_json,
    "form": intake_form,
}
