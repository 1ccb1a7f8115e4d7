"""Tokens bound to a key that the caller proves to hold with every request: DPoP (RFC 9449). Pure but for the cache."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from joserfc import jwk

from auth.assertions import read_unverified, verify_with
from auth.client_metadata import ASSERTION_ALGORITHMS

WINDOW_S = 60.0
"""How old a proof may be; replays are remembered that long and a little more."""

SKEW_S = 10.0
NONCE_STEP_S = 60
KEPT_S = WINDOW_S + 2 * SKEW_S
"""How long a used proof is remembered: its `iat` may lie a little ahead."""

DIGEST_BYTES = 16
_GENERATION_S = 20.0
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof that verified: `jkt` is its key's RFC 7638 thumbprint, `expires_at` when it is too old (Unix seconds)."""

    jkt: str
    jti: str
    expires_at: float
    nonce: str | None


@dataclass(frozen=True, slots=True)
class ProofRefused:
    """Why a proof does not verify, for error_description."""

    reason: str


def check_proof(
    text: str, *, method: str, url: str, now: float, access_token: str | None = None
) -> Proof | ProofRefused:
    """Check a DPoP header by the list of RFC 9449 section 4.3, but for the nonce and the replay of `jti`.

    `url` is the request's own, as the issuer's configuration makes it, never as the Host header says. `access_token` is
    given where the proof comes with one: then `ath` must be its hash.
    """
    token = read_unverified(text)
    if token is None or token.header.get("typ") != "dpop+jwt":
        return ProofRefused("the DPoP header is not a dpop+jwt")
    key, alg = token.header.get("jwk"), token.header.get("alg")
    if alg not in ASSERTION_ALGORITHMS or not isinstance(key, dict) or _PRIVATE & set(key):
        return ProofRefused("the proof needs an asymmetric alg and the public key as jwk")
    if not verify_with(token, key, str(alg)):
        return ProofRefused("the proof's signature does not verify under its jwk")
    fault = _claims_fault(token.claims, method=method, url=url, now=now, access_token=access_token)
    if fault:
        return ProofRefused(fault)
    nonce = token.claims.get("nonce")
    public = {name: value for name, value in key.items() if name in {"kty", "crv", "x", "y", "n", "e"}}
    return Proof(
        jkt=jwk.import_key(public).thumbprint(),
        jti=str(token.claims["jti"]),
        expires_at=float(token.claims["iat"]) + WINDOW_S + SKEW_S,
        nonce=nonce if isinstance(nonce, str) else None,
    )


def _claims_fault(
    claims: Mapping[str, Any], *, method: str, url: str, now: float, access_token: str | None
) -> str | None:
    jti, issued = claims.get("jti"), claims.get("iat")
    if not isinstance(jti, str) or not 1 <= len(jti) <= 256:
        return "jti is required"
    if claims.get("htm") != method:
        return "htm is not the request's method"
    if not _same_target(str(claims.get("htu", "")), url):
        return "htu is not the request's URL"
    if not isinstance(issued, int | float) or isinstance(issued, bool) or not now - WINDOW_S <= issued <= now + SKEW_S:
        return "iat is not the present time"
    if access_token is not None:
        expected = base64.urlsafe_b64encode(hashlib.sha256(access_token.encode()).digest()).rstrip(b"=").decode()
        if not hmac.compare_digest(expected, str(claims.get("ath", "")).encode("ascii", "replace").decode()):
            return "ath is not the hash of the access token"
    return None


def _same_target(claimed: str, url: str) -> bool:
    """Compare without query and fragment, with scheme, host and default port normalised (RFC 9449 section 4.3)."""
    try:
        mine, theirs = urlsplit(url), urlsplit(claimed)
        ports = [each.port or {"https": 443, "http": 80}.get(each.scheme) for each in (mine, theirs)]
    except ValueError:
        return False
    return (
        ports[0] == ports[1]
        and mine.scheme == theirs.scheme.lower()
        and (mine.hostname or "") == (theirs.hostname or "")
        and (mine.path or "/") == (theirs.path or "/")
        and not theirs.username
    )


class DpopNonces:
    """Nonces that any replica can check: a time step and its MAC under a key they all derive (RFC 9449 section 8)."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def current(self, now: float) -> str:
        """Return the nonce to hand out now; it is good for one to two minutes."""
        return self._make(int(now) // NONCE_STEP_S)

    def valid(self, nonce: str, now: float) -> bool:
        """Tell whether `nonce` was handed out in this step or the one before."""
        step = int(now) // NONCE_STEP_S
        good = [hmac.compare_digest(self._make(each).encode(), nonce.encode()) for each in (step, step - 1)]
        return any(good)

    def _make(self, step: int) -> str:
        mac = hmac.digest(self._key, b"llm-proxy dpop nonce v1\x00" + step.to_bytes(8), hashlib.sha256)
        return base64.urlsafe_b64encode(mac[:18]).decode()


class ProofCache:
    """The proofs that were used within their window, here and, as far as `learn` told, in other processes.

    Proofs are kept as 16 bytes of SHA-256 over key and `jti`, in generations by the time of use: the whole of one is
    forgotten when its last proof is too old anyway. A full cache refuses rather than forgets what is still valid.
    `used` is called with the digest of each new one, for `proof_sharing`.
    """

    def __init__(self, *, capacity: int = 500_000, used: Callable[[bytes], None] | None = None) -> None:
        self._generations: list[tuple[float, set[bytes]]] = []
        self._capacity = capacity
        self.used = used

    def __len__(self) -> int:
        return sum(len(seen) for _, seen in self._generations)

    def first_use(self, proof: Proof, *, now: float) -> bool:
        """Record a proof and tell whether it is new."""
        digest = hashlib.sha256(f"{proof.jkt}\x00{proof.jti}".encode()).digest()[:DIGEST_BYTES]
        if not self._add(digest, now):
            return False
        if self.used is not None:
            self.used(digest)
        return True

    def learn(self, digests: Iterable[bytes], *, now: float) -> None:
        """Take in what was used elsewhere; beyond the capacity it is passed over."""
        for digest in digests:
            self._add(digest, now)

    def _add(self, digest: bytes, now: float) -> bool:
        generations = self._generations
        while generations and generations[0][0] <= now:
            del generations[0]
        if any(digest in seen for _, seen in generations):
            return False
        if len(self) >= self._capacity:
            return False
        if not generations or generations[-1][0] < now + KEPT_S:
            generations.append((now + KEPT_S + _GENERATION_S, set()))
        generations[-1][1].add(digest)
        return True
