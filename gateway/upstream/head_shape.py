"""What the header names of an answer say whatever their values are, worked out once for each list of names.

A provider sends the same headers in the same order in answer after answer, and only a few of the values differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter, methodcaller
from typing import TypeVar

from gateway.balancing.hints import header_names
from gateway.upstream.errors import UpstreamBroken

MAX_SHAPES = 1024
MAX_NAMES, MAX_NAME_BYTES = 64, 2048
"""Heads with more names, or longer ones, are worked out each time: what is kept of upstreams is bounded."""
_LENGTH_DIGITS = 20
"""Those of 2^64, beyond which llhttp refuses a length; more can only be zeros before it."""

_Name = TypeVar("_Name", str, bytes)
_Pick = Callable[[Sequence[bytes]], Sequence[bytes]]
_Places = tuple[tuple[_Name, ...], _Pick]
"""What some of the headers are called, and what takes their values out of all."""
_text: Callable[[bytes], str] = methodcaller("decode", "latin-1")


class HeadShape:
    """`names` are lower-case, in order, repeats kept. The rest are positions among them.

    `codings` of `transfer-encoding`; `content_type` of the first, `length` of `content-length`, -1 if there is none.
    """

    __slots__ = ("_among", "_limits", "codings", "content_type", "length", "names")

    def __init__(self, names: Sequence[bytes]) -> None:
        self.names = lowered = tuple(name.lower() for name in names)
        self.length = lowered.index(b"content-length") if b"content-length" in lowered else -1
        self.codings = tuple(at for at, name in enumerate(lowered) if name == b"transfer-encoding")
        self.content_type = lowered.index(b"content-type") if b"content-type" in lowered else -1
        self._limits: dict[str, _Places[str]] = {}
        self._among: dict[frozenset[bytes], _Places[bytes]] = {}

    def limits(self, style: str, values: Sequence[bytes]) -> dict[str, str] | None:
        """Give the headers that `parse_hint` reads in this style, decoded; None: there are none."""
        places = self._limits.get(style)
        if places is None:
            places = self._limits[style] = _places(self.names, header_names(style))
        names, pick = places
        return dict(zip(names, map(_text, pick(values)), strict=True)) if names else None

    def among(self, wanted: frozenset[bytes], values: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """Give the headers whose names are `wanted`, one of the few sets that the program knows, in order."""
        places = self._among.get(wanted)
        if places is None:
            places = self._among[wanted] = _places(self.names, {name: name for name in wanted})
        names, pick = places
        return list(zip(names, pick(values), strict=True))


def _places(names: Sequence[bytes], wanted: Mapping[bytes, _Name]) -> _Places[_Name]:
    at = [at for at, name in enumerate(names) if name in wanted]
    if len(at) > 1:
        pick: _Pick = itemgetter(*at)
    else:  # of one position itemgetter gives the bare value
        pick = itemgetter(slice(at[0], at[0] + 1) if at else slice(0))
    return tuple(wanted[names[each]] for each in at), pick


_shapes: dict[tuple[bytes, ...], HeadShape] = {}


def shape_of(names: tuple[bytes, ...]) -> HeadShape:
    """Give the shape of a head with these names, as they came."""
    shape = _shapes.get(names)
    if shape is None:
        shape = HeadShape(names)
        if len(names) <= MAX_NAMES and sum(map(len, names)) <= MAX_NAME_BYTES:
            if len(_shapes) >= MAX_SHAPES:
                _shapes.clear()
            _shapes[names] = shape
    return shape


def read_head(headers: Sequence[tuple[bytes, bytes]]) -> tuple[HeadShape, tuple[bytes, ...]]:
    """Give the shape of a head that has some headers, and their values; a length is digits and nothing else then.

    White space behind a value is no part of it (RFC 9110 section 5.5), and llhttp leaves it there: whoever reads the
    length next must find what llhttp has found.
    """
    names, values = zip(*headers, strict=True)
    shape = shape_of(names)
    if (at := shape.length) >= 0 and (not values[at].isdigit() or len(values[at]) > _LENGTH_DIGITS):
        length = values[at].strip(b" \t")
        if not length.isdigit() or len(length) > _LENGTH_DIGITS:
            raise UpstreamBroken("the upstream's content-length is no number")
        values = (*values[:at], length, *values[at + 1 :])
    return shape, values
