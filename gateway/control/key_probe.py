"""Tries a new provider key before it serves: the cheapest authenticated call, the provider's list of models."""

from __future__ import annotations

from typing import Final

from auth.errors import Invalid
from auth.secret import Secret
from gateway.balancing.outcome import OutcomeKind
from gateway.proxy.headers import with_beta
from gateway.upstream.classify import classify
from gateway.upstream.dispatch import Sender
from gateway.upstream.errors import UpstreamError
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.message import Deadlines, UpstreamRequest
from gateway.upstream.providers import DIALECT_ROOTS, PROVIDERS, TOKEN_BETA, resolve, with_token
from tenants.sources.protocol import ProbeResult

_DEADLINES: Final = Deadlines(connect_s=5.0, write_s=5.0, first_byte_s=10.0, idle_s=10.0, total_s=20.0)
_PEEK_BYTES: Final = 16 * 1024
_PATHS: Final = {"openrouter": "key"}
"""What to ask where the list of models is public: OpenRouter describes the key that asks."""
_LET_IN: Final = frozenset({OutcomeKind.OK, OutcomeKind.CLIENT_ERROR, OutcomeKind.RATE_LIMITED})
"""A provider that has no such list, or counts the probe against a limit, has taken the key."""


class KeyProbe:
    """Implements `tenants.sources.protocol.Prober` over the upstream client."""

    def __init__(self, upstream: Sender, policy: EgressPolicy) -> None:
        self._upstream = upstream
        self._policy = policy

    async def probe(
        self,
        provider: str,
        base_url: str | None,
        secret: Secret,
        *,
        region: str | None = None,
        federation: str | None = None,
    ) -> ProbeResult:
        """Tell whether the provider takes the key; "unclear" when it did not answer, or cannot be asked."""
        row = PROVIDERS.get(provider)
        if row is None:
            return "unclear"
        dialect = next(iter(row.faces))
        try:
            target = resolve(provider, dialect, base_url=base_url, region=region, policy=self._policy)
            if federation is not None:
                target = with_token(target)
            flag = TOKEN_BETA.get(federation or "", b"")
            request = UpstreamRequest(
                b"GET",
                target.path(f"{DIALECT_ROOTS[dialect]}/{_PATHS.get(provider, 'models')}"),
                with_beta([(b"accept", b"application/json"), *target.face.defaults], flag),
                b"",
                target.credential_block(secret),
            )
            response = await self._upstream.send(target.origin, request, _DEADLINES)
            try:
                body = b""
                while len(body) < _PEEK_BYTES and (chunk := await response.read()):
                    body += chunk
            finally:
                response.close()
        except (Invalid, ValueError, UpstreamError):
            return "unclear"
        kind = classify(response.status, body)
        if kind in _LET_IN:
            return "works"
        return "refused" if kind is OutcomeKind.AUTH_REJECTED else "unclear"
