"""What the header names of an answer say whatever their values are, worked out once for each list of names.

A provider sends the same headers in the same order in answer after answer, and only a few of the values differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter, methodcaller

from gateway.balancing.hints import header_names

MAX_SHAPES = 1024
MAX_NAMES, MAX_NAME_BYTES = 64, 2048
"""Heads with more names, or longer ones, are worked out each time: what is kept of upstreams is bounded."""

_text: Callable[[bytes], str] = methodcaller("decode", "latin-1")


class HeadShape:
    """`names` are lower-case, in order, repeats kept. The rest are positions among them.

    `codings` of `transfer-encoding`; `content_type` of the first, -1 if there is none.
    """

    __slots__ = ("_limits", "codings", "content_type", "has_length", "names")

    def __init__(self, names: Sequence[bytes]) -> None:
        self.names = lowered = tuple(name.lower() for name in names)
        self.has_length = b"content-length" in lowered
        self.codings = tuple(at for at, name in enumerate(lowered) if name == b"transfer-encoding")
        self.content_type = lowered.index(b"content-type") if b"content-type" in lowered else -1
        self._limits: dict[str, _Limits | None] = {}

    def limits(self, style: str, values: Sequence[bytes]) -> dict[str, str] | None:
        """Give the headers that `parse_hint` reads in this style, decoded; None: there are none."""
        if style in self._limits:
            found = self._limits[style]
        else:
            found = self._limits[style] = _Limits.of(self.names, style)
        return None if found is None else dict(zip(found.names, map(_text, found.pick(values)), strict=True))


class _Limits:
    """Where the limit headers of one style are: `pick` takes their values out of all."""

    __slots__ = ("names", "pick")

    def __init__(self, names: tuple[str, ...], pick: Callable[[Sequence[bytes]], tuple[bytes, ...]]) -> None:
        self.names = names
        self.pick = pick

    @classmethod
    def of(cls, names: Sequence[bytes], style: str) -> _Limits | None:
        known = header_names(style)
        at = [at for at, name in enumerate(names) if name in known]
        if not at:
            return None
        # For one position alone itemgetter would give the bare value: the same one twice is as good.
        at = at * 2 if len(at) == 1 else at
        return cls(tuple(known[names[each]] for each in at), itemgetter(*at))


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
