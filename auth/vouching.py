"""JWTs by which this issuer vouches for a tenant to somebody else; never access tokens of its own.

Importable by the data path. A process that issues no tokens has no private key in memory until the first assertion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from auth.errors import Unavailable
from auth.keyset import KeySet, Signer
from auth.sealing import Sealer
from auth.signing_keys import SigningKeys
from auth.storage import Connections

TYPE = "JWT"


class AssertionSigner:
    """Signs with the issuer's active key. `signing` is the control plane's, None where there is none.

    Without it the private key is read, and unsealed when it is a new one, for each assertion: minutes apart. While the
    database is away the last one signs on.
    """

    def __init__(
        self, connections: Connections, sealer: Sealer, *, algorithms: Sequence[str], signing: SigningKeys | None
    ) -> None:
        self._refreshes = signing is None
        self._signing = signing or SigningKeys(connections, sealer, KeySet(), algs=algorithms)

    async def sign(self, claims: Mapping[str, Any], *, algorithm: str | None = None) -> str:
        """Return a JWT of `claims`; `Unavailable` when there is no key for the algorithm (None: the default one)."""
        return (await self._signer(algorithm)).sign(claims, typ=TYPE)

    async def _signer(self, algorithm: str | None) -> Signer:
        if self._refreshes:
            try:
                await self._signing.refresh()
            except (Unavailable, OSError, TimeoutError):
                if algorithm not in (None, *self._signing.algs) or not self._signing.algs:
                    raise
        return self._signing.signer(algorithm)
