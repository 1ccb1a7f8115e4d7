"""The errors of the OAuth endpoints (RFC 6749 section 5.2 and its extensions), on Authlib's error classes."""

from __future__ import annotations

from authlib.oauth2.rfc6749.errors import (
    InvalidGrantError,
    InvalidRequestError,
    InvalidScopeError,
    OAuth2Error,
    UnauthorizedClientError,
)

REALM = "llm-proxy"

__all__ = [
    "InvalidClient",
    "InvalidDetails",
    "InvalidDpopProof",
    "InvalidGrantError",
    "InvalidRequestError",
    "InvalidScopeError",
    "InvalidTarget",
    "OAuth2Error",
    "SlowDown",
    "UnauthorizedClientError",
    "UnsupportedGrant",
    "UseDpopNonce",
    "plain",
]


def plain(text: str) -> str:
    """Return `text` within the characters that error_description allows (RFC 6749 section 5.2)."""
    return "".join(char if " " <= char <= "~" and char not in '"\\' else "'" for char in text)[:500]


class InvalidClient(OAuth2Error):  # type: ignore[misc]
    """Client authentication failed: one answer, byte for byte, whatever was wrong with it."""

    error = "invalid_client"
    status_code = 401
    description = "Client authentication failed. Check client_id and client_secret, and that the client is active."

    def get_headers(self) -> list[tuple[str, str]]:
        """Offer Basic, as RFC 6749 section 5.2 demands of an answer to Basic."""
        return [*super().get_headers(), ("WWW-Authenticate", f'Basic realm="{REALM}", charset="UTF-8"')]


class UnsupportedGrant(OAuth2Error):  # type: ignore[misc]
    """The grant type is none that this server has (RFC 6749 section 5.2)."""

    error = "unsupported_grant_type"


class InvalidTarget(OAuth2Error):  # type: ignore[misc]
    """The resource or audience is malformed or not this gateway (RFC 8707 section 2)."""

    error = "invalid_target"


class InvalidDetails(OAuth2Error):  # type: ignore[misc]
    """authorization_details are malformed or too wide (RFC 9396 section 5)."""

    error = "invalid_authorization_details"


class InvalidDpopProof(OAuth2Error):  # type: ignore[misc]
    """The DPoP proof does not verify (RFC 9449 section 5)."""

    error = "invalid_dpop_proof"


class UseDpopNonce(OAuth2Error):  # type: ignore[misc]
    """The DPoP proof needs the server's nonce, which the answer brings (RFC 9449 section 8)."""

    error = "use_dpop_nonce"
    description = "Repeat the request with a proof that carries the nonce of the DPoP-Nonce header."

    def __init__(self, nonce: str) -> None:
        super().__init__()
        self.nonce = nonce

    def get_headers(self) -> list[tuple[str, str]]:
        """Bring the nonce along."""
        return [*super().get_headers(), ("DPoP-Nonce", self.nonce)]


class SlowDown(OAuth2Error):  # type: ignore[misc]
    """Too many requests from this client or address; `retry_after_s` says when to come back (RFC 6585 section 4)."""

    error = "temporarily_unavailable"
    status_code = 429

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(description=f"Too many token requests. Try again in {retry_after_s} s and reuse tokens.")
        self.retry_after_s = retry_after_s

    def get_headers(self) -> list[tuple[str, str]]:
        """Say when to come back."""
        return [*super().get_headers(), ("Retry-After", str(self.retry_after_s))]
