"""Finds the model in a multipart/form-data upload (RFC 7578) of which only the beginning is held. Pure.

What the gateway reads and what the provider will read must be the same part: parts are cut at the real boundary, and a
second part named model is refused, in the held beginning and, by `ModelWatch`, in all that follows.
"""

from __future__ import annotations

import re

from gateway.proxy.faults import BadBody
from gateway.proxy.json_model import model_name

_BOUNDARY = re.compile(
    rb'multipart/form-data\s*;(?:[^"]*;)?\s*boundary=(?:"([^"]{1,70})"|([^\s";,]{1,70}))', re.IGNORECASE
)
_DISPOSITION = re.compile(rb"content-disposition\s*:\s*form-data\s*(;.*)", re.IGNORECASE)
_PARAMETER = re.compile(rb';\s*([A-Za-z*]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;"]*)')
_LATER = re.compile(rb'name\*?\s*=\s*"?model["\s;\r]', re.IGNORECASE)
_MAX_PART_HEAD = 4096
_MAX_PARTS = 1000
"""Far more than any API takes: each costs a look, and 32 MB could hold six million."""
_OVERLAP = 64


class ModelCut(BadBody):
    """The part named model is not whole: what follows what is held may make it so."""


def boundary_of(content_type: bytes) -> bytes:
    """Return the boundary that `content_type` names. Raises BadBody when it names none."""
    found = _BOUNDARY.match(content_type.strip())
    if found is None:
        raise BadBody("The multipart body has no boundary.", hint="Let your HTTP client write the Content-Type.")
    return found[1] or found[2]


def find_model(held: bytes, boundary: bytes) -> tuple[str, tuple[int, int]] | None:
    """Return the model and where it stands in `held`, None if no whole part of it is named model.

    Raises BadBody when two parts are, when the part holds no model's name, or when there are very many parts; ModelCut
    when its end is not held.
    """
    delimiter = b"--" + boundary
    found: tuple[str, tuple[int, int]] | None = None
    if held.count(b"\r\n" + delimiter) > _MAX_PARTS:
        raise BadBody(
            f"The form has more than {_MAX_PARTS} parts.", hint="Send fewer, or choose a boundary that is in none."
        )
    start = held.find(delimiter)
    while start >= 0:
        start += len(delimiter)
        end = held.find(b"\r\n" + delimiter, start)
        head_end = held.find(b"\r\n\r\n", start, start + _MAX_PART_HEAD)
        if head_end >= 0 and (end < 0 or head_end < end) and _is_model(held[start:head_end]):
            if found is not None:
                raise _twice()
            if end < 0:
                raise ModelCut(
                    "The form's model is cut or too long.", hint="Send the model as a short part of its own."
                )
            span = (head_end + 4, end)
            try:
                found = model_name(held[slice(*span)].decode()), span
            except UnicodeDecodeError:
                raise BadBody(
                    "The form's model is not UTF-8.", hint="Send its name as the model list shows it."
                ) from None
        start = end + 2 if end >= 0 else -1
    return found


class ModelWatch:
    """Looks through the rest of an upload for a part named model, which would come too late to be judged."""

    __slots__ = ("_tail",)

    def __init__(self, held: bytes) -> None:
        self._tail = held[-_OVERLAP:] if not _LATER.search(held[-_OVERLAP:]) else b""

    def check(self, chunk: bytes) -> None:
        """Take the next bytes. Raises BadBody."""
        if _LATER.search(self._tail + chunk):
            raise BadBody(
                "The form names its model after its file, or twice.", hint="Put one part named model before the file."
            )
        self._tail = (self._tail + chunk[-_OVERLAP:])[-_OVERLAP:]


def _is_model(head: bytes) -> bool:
    for line in head.split(b"\r\n"):
        disposition = _DISPOSITION.fullmatch(line.strip())
        if disposition is None:
            continue
        names = [value.strip(b' "') for name, value in _PARAMETER.findall(disposition[1]) if name.lower() == b"name"]
        if len(names) > 1:
            raise BadBody("A part of the form has two names.", hint="Let your HTTP client write the form.")
        if names and names[0].lower() == b"model":
            return True
    return False


def _twice() -> BadBody:
    return BadBody("The form names its model twice.", hint="Leave one part named model.")
