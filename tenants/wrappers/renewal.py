"""Short-lived credentials of a workload: renewed before they end, and kept while their giver is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Generic, TypeVar
from urllib.parse import urlencode

import msgspec

from auth.secret import Secret
from tenants.errors import KekUnavailable
from tenants.sources.protocol import HttpAnswer, HttpCalls, SourceAway, SourceRefused

T = TypeVar("T")

MARGIN: Final = timedelta(minutes=5)
"""How long before its end a credential is renewed."""
RETRY: Final = timedelta(seconds=10)
"""How long a credential that could not be renewed and is still good is used before the next try."""
FORM: Final = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json"}


@dataclass(frozen=True, slots=True)
class Lasting(Generic[T]):
    """A credential and when it ends; None: never."""

    value: T
    expires_at: datetime | None


class Renewed(Generic[T]):
    """Calls `fetch` when there is nothing that lasts; concurrent callers share one call.

    `fetch` raises `KekUnavailable`. `now` gives the time with its zone.
    """

    def __init__(self, fetch: Callable[[], Awaitable[Lasting[T]]], *, now: Callable[[], datetime]) -> None:
        self._fetch, self._now = fetch, now
        self._held: Lasting[T] | None = None
        self._retry_at: datetime | None = None
        self._lock = asyncio.Lock()

    async def __call__(self) -> T:
        """Return a credential that is good now."""
        held = self._held
        if held is not None and self._lasts(held):
            return held.value
        async with self._lock:
            held, now = self._held, self._now()
            if held is not None and self._lasts(held):
                return held.value
            try:
                self._held = await self._fetch()
            except KekUnavailable:
                if held is None or held.expires_at is None or held.expires_at <= now:
                    raise
                self._retry_at = now + RETRY
                return held.value
            self._retry_at = None
            return self._held.value

    def _lasts(self, held: Lasting[T]) -> bool:
        if held.expires_at is None:
            return True
        now = self._now()
        if now < held.expires_at - MARGIN:
            return True
        return self._retry_at is not None and now < min(self._retry_at, held.expires_at)


class Token(msgspec.Struct):
    """The answer of a token endpoint (RFC 6749 section 5.1); some send the number as text."""

    access_token: str
    expires_in: int


async def call(
    http: HttpCalls, method: str, url: str, what: str, *, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> HttpAnswer:
    """Send a request for credentials; `KekUnavailable` without an answer of 200. `what` names the giver."""
    try:
        answer = await http.call(method, url, headers=headers, body=body or None)
    except (SourceAway, SourceRefused) as error:
        raise KekUnavailable(
            f"No credentials for the key-encryption key: {what} does not answer.", debug=str(error)
        ) from (error)
    if answer.status != 200:
        raise KekUnavailable(
            f"No credentials for the key-encryption key: {what} refused.",
            hint="Check the workload's identity and what it may assume.",
            debug=f"{what} answered {answer.status}",
        )
    return answer


async def token(
    http: HttpCalls, url: str, what: str, form: Mapping[str, str] | None, headers: Mapping[str, str] | None = None
) -> Token:
    """POST a form to a token endpoint, or GET without one."""
    if form is None:
        answer = await call(http, "GET", url, what, headers=headers)
    else:
        answer = await call(http, "POST", url, what, headers={**FORM, **(headers or {})}, body=urlencode(form).encode())
    return decode(answer, Token, what)


def decode(answer: HttpAnswer, shape: type[T], what: str) -> T:
    """Decode an answer's JSON; `KekUnavailable` when it is something else."""
    try:
        return msgspec.json.decode(answer.body, type=shape, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise KekUnavailable(
            f"No credentials for the key-encryption key: {what} gave an answer that cannot be read."
        ) from None


def lasting(given: Token, now: datetime) -> Lasting[Secret]:
    """Return a token with its end."""
    return Lasting(Secret(given.access_token), now + timedelta(seconds=given.expires_in))


def read_identity(path: Path) -> str:
    """Read a projected token; it is renewed on the disk, so it is read anew each time."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise KekUnavailable(
            "No credentials for the key-encryption key: the workload's token cannot be read.",
            hint=f"Check that {path} is mounted and readable.",
            debug=type(error).__name__,
        ) from None


def document_of(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object from a file."""
    try:
        found = msgspec.json.decode(read_identity(path), type=dict[str, Any])
    except msgspec.DecodeError:
        raise KekUnavailable(f"{what} is not JSON.", hint=f"Check {path}.") from None
    return found
