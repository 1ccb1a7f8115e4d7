"""Who is calling, as every part of the gateway sees it after the token was verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

PLATFORM_TENANT_ID = UUID(int=0)
"""The tenant that owns operator clients and the signing keys; created by the first migration."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The verified caller: `expires_at` is Unix seconds, `token_id` the token's `jti` (RFC 7519 section 4.1.7).

    `details` are the token's `authorization_details` (RFC 9396) of type `llm_proxy`, empty: not narrowed.
    `actors` are the clients that exchanged it, latest first (RFC 8693 section 4.1); `lineage` names the tokens it came
    from as `<client_id>:<jti>`, and is refused with each of them. `jkt` and `x5t_s256` are set when
    the token is bound to a DPoP key (RFC 9449) or a TLS certificate (RFC 8705); the verifier has then seen the proof.
    """

    tenant_id: UUID
    client_id: str
    scopes: frozenset[str]
    token_id: str
    expires_at: float
    subject: str = ""
    details: tuple[Mapping[str, Any], ...] = field(default=())
    actors: tuple[str, ...] = ()
    lineage: tuple[str, ...] = ()
    issued_at: float = 0.0
    jkt: str = ""
    x5t_s256: str = ""

    def may(self, scope: str) -> bool:
        """Tell whether the token carries `scope`."""
        return scope in self.scopes

    @property
    def is_operator(self) -> bool:
        """Tell whether the caller belongs to the platform tenant and holds its scope."""
        return self.tenant_id == PLATFORM_TENANT_ID and "platform" in self.scopes
