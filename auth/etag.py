"""Entity tags over a row's version, and the If-Match check that stops lost updates (RFC 9110 section 13.1.1)."""

from __future__ import annotations

import re

from auth.errors import Invalid, Stale

_ONE = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_LIST = re.compile(rf"[ \t,]*{_ONE}(?:[ \t]*,[ \t,]*{_ONE})*[ \t,]*")
_TAG = re.compile(r'(W/)?"([^"]*)"')


def etag(version: int) -> str:
    """Return the strong entity tag of a resource whose row is at `version`."""
    return f'"{version}"'


def check_if_match(if_match: str | None, version: int) -> None:
    """Let a write through if `if_match` (the header's value, None when absent) names the stored `version`.

    An absent header and `*` always match: who wants no lost update sends the ETag. Weak tags never match, as the strong
    comparison says (RFC 9110 section 8.8.3.2). Raises `Stale` on another version, `Invalid` on a malformed header.
    """
    if if_match is None or if_match.strip() == "*":
        return
    if not _LIST.fullmatch(if_match):
        raise Invalid(
            "If-Match is malformed.",
            hint='Send the ETag header of the last read unchanged, quotes included, for example If-Match: "3".',
        )
    tags = {tag for weak, tag in _TAG.findall(if_match) if not weak}
    if str(version) not in tags:
        raise Stale(
            "The resource has changed since it was read.",
            hint="Read it again, apply your change to the new state, and send the new ETag in If-Match.",
            debug=f"If-Match {sorted(tags)} against version {version}",
        )
