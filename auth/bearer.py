"""Access tokens in requests: found in one place only, with the proof that a bound one needs (RFC 6750, RFC 9449)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from auth.dpop import ProofCache, ProofRefused, check_proof
from auth.errors import Fault, Invalid, NotAuthenticated
from auth.principal import Principal
from auth.tokens import TokenRefused, TokenUnbound, Verifier

AsgiScope = Mapping[str, Any]

CertificateThumbprint = Callable[[AsgiScope], str]
"""Gives `x5t#S256` of the caller's TLS certificate, "" without one."""


def no_certificate(_: AsgiScope) -> str:
    """Stand in where no certificates reach the gateway."""
    return ""


class DpopRefused(TokenRefused):
    """The DPoP proof of a request does not verify (RFC 9449 section 7.1)."""

    code = "invalid_dpop_proof"
    challenge = 'DPoP error="invalid_dpop_proof"'


class ProofChecker:
    """Checks the proofs that come with DPoP-bound tokens; each is good once in all that share `used`.

    `base_url` is the public URL of the gateway, against which proofs are checked: never the Host header.
    """

    def __init__(self, base_url: str, clock: Callable[[], float], *, used: ProofCache | None = None) -> None:
        self._base_url = base_url.rstrip("/")
        self._clock = clock
        self._used = ProofCache() if used is None else used

    def check(self, token: str, proofs: Sequence[str], *, method: str, path: str) -> str:
        """Return the thumbprint of the key that signed the one proof among `proofs`; raises `DpopRefused`."""
        if len(proofs) != 1:
            raise DpopRefused("The request needs exactly one DPoP header.", hint="Sign a proof for this request.")
        now = self._clock()
        proof = check_proof(proofs[0], method=method, url=self._base_url + path, now=now, access_token=token)
        if isinstance(proof, ProofRefused):
            raise DpopRefused(
                f"The DPoP proof is not valid: {proof.reason}.", hint="Sign a new proof for this request."
            )
        if not self._used.first_use(proof, now=now):
            raise DpopRefused("The DPoP proof was used before.", hint="Sign a new proof for each request.")
        return proof.jkt


def refuse_unbound(principal: Principal) -> None:
    """Refuse a token that came with a proof and is bound to no key: its sender believes in a protection it lacks."""
    if not principal.jkt:
        raise TokenUnbound("The access token is not bound to a key.", hint="Send it as 'Authorization: Bearer'.")


class RequestAuthenticator:
    """Reads the caller from an ASGI scope; no IO. `base_url` is the public URL of the gateway.

    `used` is told the `jti` of each token that was good, and when.
    """

    def __init__(
        self,
        verifier: Verifier,
        base_url: str,
        clock: Callable[[], float],
        *,
        proofs: ProofCache | None = None,
        certificate: CertificateThumbprint = no_certificate,
        used: Callable[[str, float], None] | None = None,
    ) -> None:
        self._verifier = verifier
        self._clock = clock
        self._used = used
        self._proofs = ProofChecker(base_url, clock, used=proofs)
        self._certificate = certificate

    def caller(self, scope: AsgiScope) -> Principal | Fault:
        """Return the caller by the Authorization header, or the fault to answer with."""
        try:
            found = self._by_header(scope)
        except Fault as fault:
            return fault
        if self._used is not None:
            self._used(found.token_id, self._clock())
        return found

    def verify(self, scope: AsgiScope, token: str, *, dpop: bool = False) -> Principal:
        """Verify a token that was found in `scope`; `dpop`: it came as `Authorization: DPoP` with a proof beside it."""
        jkt = ""
        if dpop:
            proofs, method = _header(scope, b"dpop"), scope.get("method", "GET")
            jkt = self._proofs.check(token, proofs, method=method, path=scope["path"])
        principal = self._verifier.verify(token, jkt=jkt, x5t_s256=self._certificate(scope))
        if dpop:
            refuse_unbound(principal)
        return principal

    def _by_header(self, scope: AsgiScope) -> Principal:
        # RFC 6750 section 2: one place for the token, and the URL, which logs keep, is none of them.
        query = scope.get("query_string", b"").decode("latin-1")
        if any(name == "access_token" for name, _ in parse_qsl(query)):
            raise Invalid("The access token stands in the URL.", hint="Send it as 'Authorization: Bearer <token>'.")
        values = _header(scope, b"authorization")
        if not values:
            raise NotAuthenticated(
                "The request carries no access token.",
                hint="Get one from the token endpoint and send it as 'Authorization: Bearer <token>'.",
            )
        kind, _, token = values[0].partition(" ")
        if len(values) > 1 or kind.lower() not in {"bearer", "dpop"} or not token.strip():
            raise NotAuthenticated(
                "The Authorization header is not one access token.", hint="Send 'Authorization: Bearer <token>' once."
            )
        return self.verify(scope, token.strip(), dpop=kind.lower() == "dpop")


def _header(scope: AsgiScope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for each, value in scope["headers"] if each.lower() == name]
