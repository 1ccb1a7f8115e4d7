"""A request's headers, read in one pass: credentials, body, dialect, what goes upstream, what is asked of the gateway.

Nothing is judged here, so that a fault is found where its answer's shape is known already. Pure. Of the gateway itself
callers ask by

    x-llm-proxy-pool        the pool, by name
    x-llm-proxy-priority    0 (critical) to 9; never more urgent than the token allows
    x-llm-proxy-deadline    seconds in which the answer must begin; later it is of no use
    x-llm-proxy-region      where the caller is, for strategies that look at distance
    x-llm-proxy-residency   regions (globs, commas between) that alone may serve it, within what the token allows
    x-llm-proxy-explain     true: the answer says why it was served by that key (needs the scope usage:read)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from auth.globs import matches
from gateway.proxy.channel import HeaderList
from gateway.proxy.faults import RequestFault
from gateway.proxy.headers import FORWARDED, IDENTITY, PLAIN_CONNECTION, with_beta
from gateway.upstream.message import header_lines

if TYPE_CHECKING:
    from gateway.proxy.credentials import Presented

LEAST_URGENT = 9
_MAX_PATTERNS = 16
_SECONDS = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?", re.A)
_PROBLEM = b"application/problem+json"
_OURS = b"x-llm-proxy-"
_JSON = frozenset({b"application/json", b""})
_UNENCODED = frozenset({b"", b"identity"})


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller asks of the gateway; None or empty: nothing."""

    pool: str | None = None
    priority: int | None = None
    region: str | None = None
    residency: tuple[str, ...] = ()
    explain: bool = False
    deadline_s: float | None = None

    def admits(self, region: str) -> bool:
        """Tell whether a key in `region` may serve."""
        return any(matches(pattern, region) for pattern in self.residency)


NO_WISHES = Wishes()


class RequestHead:
    """The headers by what they are for; `credentials` and `forwarded` in the order in which they came.

    `is_json`: the body is JSON, uncompressed, for all that is said of it (which may be nothing).
    Requests of one connection that say the same share it. `presented` is kept by whoever looks for the token first.
    """

    __slots__ = (
        "_asked", "_lines", "content_encoding", "content_type", "credentials", "forwarded", "headers", "is_anthropic",
        "is_form", "is_json", "media_type", "presented", "wants_problem",
    )  # fmt: skip

    def __init__(self, headers: HeaderList) -> None:
        self.headers = headers
        self.presented: Presented | None = None
        self._lines: dict[tuple[tuple[tuple[bytes, bytes], ...], bytes], bytes] = {}
        self.credentials: HeaderList = []
        self.forwarded: HeaderList = [IDENTITY]
        self.content_type = b""
        self.content_encoding = b""
        self.is_anthropic = self.wants_problem = False
        self._asked: HeaderList | None = None
        listed: frozenset[bytes] | None = None
        roles = _ROLES
        for header in headers:
            role = roles.get(header[0])
            if role is None:
                if header[0].startswith(_OURS):
                    self._asked = [*(self._asked or ()), header]
            elif role == _FORWARD:
                self.forwarded.append(header)
            elif role == _CONTENT_TYPE:
                self.content_type = header[1]
                self.forwarded.append(header)
            elif role == _CREDENTIAL:
                self.credentials.append(header)
            elif role == _ACCEPT:
                self.wants_problem = self.wants_problem or _PROBLEM in header[1]
                self.forwarded.append(header)
            elif role == _ANTHROPIC:
                self.is_anthropic = True
                self.forwarded.append(header)
            elif role == _ENCODING:
                self.content_encoding = header[1].strip().lower()
            elif header[1].lower() not in PLAIN_CONNECTION:
                named = frozenset(part.strip() for part in header[1].lower().split(b","))
                listed = named | (listed or frozenset())
        media_type = self.media_type = self.content_type.partition(b";")[0].strip().lower()
        self.is_form = media_type == b"multipart/form-data"
        is_plain = self.content_encoding in _UNENCODED
        self.is_json = is_plain and (media_type in _JSON or media_type.endswith(b"+json"))
        if listed is not None:
            self.forwarded = [header for header in self.forwarded if header[0] not in listed]

    def lines(self, defaults: tuple[tuple[bytes, bytes], ...], beta: bytes) -> bytes:
        """Return what goes upstream as header lines: `defaults` where the caller is silent, and `beta` (`with_beta`).

        Both are a provider's, so there are few. ValueError for a value that would end its line.
        """
        known = self._lines.get((defaults, beta))
        if known is None:
            named = {name for name, _ in self.forwarded}
            added = [header for header in defaults if header[0] not in named]
            known = self._lines[defaults, beta] = header_lines(with_beta([*self.forwarded, *added], beta))
        return known

    def wishes(self) -> Wishes:
        """Read what is asked of the gateway; unknown names are ignored. Raises RequestFault."""
        if self._asked is None:
            return NO_WISHES
        asked: dict[bytes, str] = {}
        for name, value in self._asked:
            text = value.decode("latin-1").strip()
            if asked.setdefault(name[len(_OURS) :], text) != text:
                raise RequestFault(f"The request carries {name.decode()} twice, with two values.", hint="Send one.")
        return Wishes(
            pool=asked.get(b"pool"),
            priority=_priority(asked.get(b"priority")),
            region=asked.get(b"region") or None,
            residency=_residency(asked.get(b"residency")),
            explain=asked.get(b"explain", "").lower() in {"true", "1"},
            deadline_s=_deadline_s(asked.get(b"deadline")),
        )


def _priority(text: str | None) -> int | None:
    if text is None:
        return None
    if len(text) != 1 or not text.isascii() or not text.isdigit():
        raise RequestFault(
            "x-llm-proxy-priority is no priority.",
            hint=f"Send 0 (critical) to {LEAST_URGENT} (whenever there is room).",
        )
    return int(text)


def _deadline_s(text: str | None) -> float | None:
    if text is None:
        return None
    if _SECONDS.fullmatch(text) is None or (seconds := float(text)) <= 0.0:
        raise RequestFault(
            "x-llm-proxy-deadline is no number of seconds.",
            hint="Send the seconds in which the answer must begin, such as 10 or 2.5.",
        )
    return seconds


def _residency(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    patterns = tuple(part.strip() for part in text.split(","))
    if not all(patterns) or len(patterns) > _MAX_PATTERNS:
        # Never read as "anywhere": residency is a promise to somebody.
        raise RequestFault(
            "x-llm-proxy-residency is no list of regions.",
            hint=f"Send up to {_MAX_PATTERNS} regions or globs with commas between, such as eu-*,ch-1.",
        )
    return patterns


_FORWARD, _CONTENT_TYPE, _CREDENTIAL, _ACCEPT, _ANTHROPIC, _ENCODING, _CONNECTION = range(7)
_ROLES = {
    **dict.fromkeys(FORWARDED, _FORWARD),
    b"content-type": _CONTENT_TYPE,
    b"authorization": _CREDENTIAL,
    b"x-api-key": _CREDENTIAL,
    b"api-key": _CREDENTIAL,
    b"x-goog-api-key": _CREDENTIAL,
    b"accept": _ACCEPT,
    b"anthropic-version": _ANTHROPIC,
    b"content-encoding": _ENCODING,
    b"connection": _CONNECTION,
}

NO_HEAD = RequestHead([])
