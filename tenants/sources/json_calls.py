"""JSON over an admin API: statuses become the three words that drivers speak."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from tenants.sources.protocol import HttpAnswer, HttpCalls, SourceAway, SourceRefused

T = TypeVar("T")

PASSING = frozenset({408, 409, 425, 429})
"""Refusals that time mends; 409 is a change that is still under way."""


class JsonApi:
    """An admin API below `base_url`; `headers` carry the admin credential and never appear in an error."""

    def __init__(self, http: HttpCalls, base_url: str, headers: Mapping[str, str]) -> None:
        self._http = http
        self._base_url = base_url.rstrip("/")
        self._headers = {"accept": "application/json", **headers}

    async def call(self, method: str, path: str, shape: type[T], body: Any = None) -> T | None:
        """Send a call and decode its answer as `shape`; None for 404 and 410.

        `SourceAway` for what passes (429, 5xx, no answer), `SourceRefused` for other refusals.
        """
        headers = dict(self._headers)
        encoded = None
        if body is not None:
            encoded = msgspec.json.encode(body)
            headers["content-type"] = "application/json"
        answer = await self._http.call(method, self._base_url + path, headers=headers, body=encoded)
        if answer.status in (404, 410):
            return None
        judged(answer, f"{method} {path}")
        if not answer.body and shape is dict:
            return None
        try:
            return msgspec.json.decode(answer.body, type=shape, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise SourceAway(f"{method} {path} answered {answer.status} with something else than expected") from None

    async def need(self, method: str, path: str, shape: type[T], body: Any = None) -> T:
        """Send a call whose target must exist; `SourceRefused` when it does not."""
        found = await self.call(method, path, shape, body)
        if found is None:
            raise SourceRefused(f"{method} {path} answered 404: check the source's settings")
        return found


def judged(answer: HttpAnswer, what: str) -> HttpAnswer:
    """Return a successful answer; `SourceAway` for failures that pass, `SourceRefused` for those that stay."""
    if answer.status >= 500 or answer.status in PASSING:
        raise SourceAway(f"{what} answered {answer.status}")
    if not 200 <= answer.status < 300:
        raise SourceRefused(f"{what} answered {answer.status}: {_reason(answer.body)}")
    return answer


def _reason(body: bytes) -> str:
    """Return the provider's own sentence, bounded, if the body has one in a usual place."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "no reason given"
    if not isinstance(document, dict):
        return "no reason given"
    error = document.get("error", document)
    # OAuth's errors (RFC 6749 section 5.2) are a word beside a sentence.
    text = error.get("message") if isinstance(error, dict) else document.get("error_description", error)
    if not isinstance(text, str) or "eyJ" in text:  # an answer that repeats a token is not repeated here
        return "no reason given"
    return text[:200]
