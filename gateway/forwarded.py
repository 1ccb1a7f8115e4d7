"""What trusted proxies say about the caller: its address and scheme (uvicorn's part) and its TLS certificate.

Only a peer that is a trusted proxy itself is believed. The proxy must remove these headers from what it receives, as it
must with `X-Forwarded-For`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from auth.certificates import ClientCertificate, thumbprint
from auth.forwarded_certificate import from_client_cert, from_escaped_pem

Headers = Iterable[tuple[bytes, bytes]]

CERTIFICATE: Final = "client_certificate"
"""The member of an ASGI scope's `state` that holds the caller's `ClientCertificate`."""

_parse_rfc9440 = lru_cache(maxsize=1024)(from_client_cert)
_parse_nginx = lru_cache(maxsize=1024)(from_escaped_pem)


class ForwardedCaller:
    """ASGI: notes the certificate in the scope where the peer is trusted, then lets uvicorn set address and scheme.

    `form` is `client-cert` or `nginx`. A header that is repeated or unreadable counts as no certificate.
    """

    def __init__(self, app: Callable[..., Any], *, trusted: str, form: str) -> None:
        self._inner = ProxyHeadersMiddleware(app, trusted)
        self._read = _client_cert if form == "client-cert" else _nginx

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one scope."""
        if scope["type"] == "http":
            peer = scope.get("client")
            # Before uvicorn's part, which puts the caller's address in the place of the proxy's.
            if (found := self._certificate(peer[0] if peer else "", scope["headers"])) is not None:
                scope.setdefault("state", {})[CERTIFICATE] = found
        await self._inner(scope, receive, send)

    def thumbprint(self, peer: str, headers: Headers) -> str:
        """Give `x5t#S256` of the certificate that the peer at this address passes on, "" without one."""
        found = self._certificate(peer, headers)
        return "" if found is None else thumbprint(found.der)

    def _certificate(self, peer: str, headers: Headers) -> ClientCertificate | None:
        return self._read(headers) if peer and peer in self._inner.trusted_hosts else None


def certificate_of(scope: Mapping[str, Any]) -> ClientCertificate | None:
    """Return the caller's certificate, None without one."""
    found = scope.get("state", {}).get(CERTIFICATE)
    return found if isinstance(found, ClientCertificate) else None


def thumbprint_of(scope: Mapping[str, Any]) -> str:
    """Return `x5t#S256` of the caller's certificate, "" without one."""
    found = certificate_of(scope)
    return "" if found is None else thumbprint(found.der)


def _client_cert(headers: Headers) -> ClientCertificate | None:
    return _parse_rfc9440(_only(headers, b"client-cert"))


def _nginx(headers: Headers) -> ClientCertificate | None:
    return _parse_nginx(_only(headers, b"x-ssl-client-cert"), _only(headers, b"x-ssl-client-verify"))


def _only(headers: Headers, name: bytes) -> str:
    values = [value for each, value in headers if each == name]
    return values[0].decode("latin-1").strip() if len(values) == 1 else ""
