"""What auth asks of other servers (key sets, an OpenID provider), past the guard that tenants' addresses pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from auth.errors import Unavailable
from auth.relying_party import WebAnswer
from gateway.guarded_calls import GuardedCalls
from tenants.sources.protocol import SourceAway, SourceRefused

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class GuardedJwks:
    """Implements `auth.remote_keys.JwksFetcher`; no redirect is followed and no large answer read."""

    def __init__(self, calls: GuardedCalls) -> None:
        self._calls = calls

    async def fetch(self, uri: str) -> Mapping[str, Any]:
        """Return the JWK Set at `uri`; raises `Unavailable` when there is none to be had."""
        return await fetch_document(self._calls, uri)


class GuardedWeb:
    """Implements `auth.relying_party.Web`."""

    def __init__(self, calls: GuardedCalls) -> None:
        self._calls = calls

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> WebAnswer:
        """Return the answer; raises `Unavailable` with the reason for the log."""
        try:
            answer = await self._calls.call(method, url, headers=headers, body=body)
        except (SourceAway, SourceRefused) as error:
            raise Unavailable("The provider does not answer.", debug=f"{url}: {error}") from None
        return WebAnswer(answer.status, answer.body)


async def fetch_document(calls: GuardedCalls, uri: str) -> Mapping[str, Any]:
    """Return the JSON object at `uri`; raises `Unavailable` with the reason for the log."""
    try:
        answer = await calls.call("GET", uri, headers={"accept": "application/json"})
        if answer.status != 200:
            raise Unavailable("The document does not answer.", debug=f"{uri} answered {answer.status}")
        return _decode(answer.body)
    except (SourceAway, SourceRefused) as error:
        raise Unavailable("The document does not answer.", debug=f"{uri}: {error}") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Unavailable("The document is no JSON object.", debug=f"{uri}: {error}") from None
