"""A tenant's own endpoint makes the keys: one signed POST for each step.

    {"id", "at", "action": "create" | "find" | "disable" | "enable" | "revoke", "tag"?, "ref"?, "in_use"?}
    → {"ref", "secret"?} for create and find ({} for nothing found), anything 2xx for the others
    404, 410: there is no such key, as a repeated revoke may hear; 408, 409, 425, 429, 5xx: it is asked again later

The body is signed: `llm-proxy-signature: t=<unix seconds>,v1=<hex HMAC-SHA-256 of "t.body">`, keyed by the source's
credential. The endpoint must treat `tag` as an idempotency key: the same tag, the same key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from uuid import uuid4

import msgspec
from msgspec import Struct

from auth.secret import Secret
from tenants.sources.json_calls import PASSING
from tenants.sources.protocol import (
    Capabilities,
    HttpCalls,
    ProviderKeyMade,
    SourceAway,
    SourceRefused,
    SourceUnknown,
)

SIGNATURE_HEADER = "llm-proxy-signature"


class WebhookSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The endpoint; its URL passes the same guard as base URLs."""

    url: str


class _Answer(Struct):
    ref: str | None = None
    secret: str | None = None


def sign(body: bytes, credential: Secret, at_unix: int) -> str:
    """Return the signature header's value; what a receiver computes to check it."""
    mac = hmac.new(credential.reveal().encode(), f"{at_unix}.".encode() + body, hashlib.sha256)
    return f"t={at_unix},v1={mac.hexdigest()}"


class WebhookDriver:
    """`now_unix` gives Unix seconds, which the receiver checks against replays."""

    capabilities = Capabilities(repeatable=True, disables=True)

    def __init__(
        self, settings: WebhookSettings, credential: Secret, http: HttpCalls, now_unix: Callable[[], float]
    ) -> None:
        self._url = settings.url
        self._credential = credential
        self._http = http
        self._now_unix = now_unix

    async def create(self, tag: str, *, in_use: str | None) -> ProviderKeyMade:
        """Ask for the key of a tag; `SourceUnknown` when the answer does not say which key was made."""
        answer = await self._send("create", tag=tag, in_use=in_use)
        if answer is None:
            raise SourceRefused("the webhook answered 404 or 410 to create: check the source's url")
        if answer.ref is None:
            raise SourceUnknown("the webhook's answer to create lacks ref")
        return ProviderKeyMade(answer.ref, Secret(answer.secret) if answer.secret else None)

    async def find(self, tag: str) -> ProviderKeyMade | None:
        """Ask whether a tag's key exists."""
        answer = await self._send("find", tag=tag)
        if answer is None or answer.ref is None:
            return None
        return ProviderKeyMade(answer.ref, Secret(answer.secret) if answer.secret else None)

    async def disable(self, ref: str) -> None:
        """Ask to disable."""
        await self._send("disable", ref=ref)

    async def enable(self, ref: str) -> None:
        """Ask to enable."""
        await self._send("enable", ref=ref)

    async def revoke(self, ref: str) -> None:
        """Ask to revoke."""
        await self._send("revoke", ref=ref)

    async def _send(self, action: str, **members: str | None) -> _Answer | None:
        now = int(self._now_unix())
        told = {name: value for name, value in members.items() if value is not None}
        body = msgspec.json.encode({"id": str(uuid4()), "at": now, "action": action, **told})
        headers = {"content-type": "application/json", SIGNATURE_HEADER: sign(body, self._credential, now)}
        answer = await self._http.call("POST", self._url, headers=headers, body=body)
        if answer.status in (404, 410):
            return None
        if answer.status >= 500 or answer.status in PASSING:
            raise SourceAway(f"the webhook answered {answer.status} to {action}")
        if not 200 <= answer.status < 300:
            raise SourceRefused(f"the webhook answered {answer.status} to {action}")
        if action not in ("create", "find"):
            return None
        try:
            return msgspec.json.decode(answer.body or b"{}", type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            # The call may have had its effect, so this is no refusal: a key that was made would be forgotten.
            raise SourceAway(f"the webhook's answer to {action} is not the JSON that was agreed") from None
