"""What was revoked, in memory: tokens by `jti`, and everything issued to a client or tenant before an instant.

By `jti` and never by the token's text: an ES256 signature has a second valid form, so a revoked token's twin has other
bytes and the same `jti`. Every process loads the same rows from Postgres, on NOTIFY and by poll.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from auth.principal import Principal
from auth.storage import Connections

MAX_TOKEN_LIFETIME_S = 366 * 86_400
"""No token lives longer; a revocation row is kept as long as a token that it refuses can live."""

_OVERLAP_S = 60.0  # a row recorded earlier may commit later: look back this far on every refresh
_READ_ALL_S = 600.0


@dataclass(frozen=True, slots=True)
class Revocation:
    """`key` is a jti, `client:<client_id>` or `tenant:<uuid>`; times are Unix seconds."""

    key: str
    revoked_at: float
    expires_at: float


def client_key(client_id: str) -> str:
    """Return the key that refuses every token issued to a client so far; a jti never holds a colon."""
    return f"client:{client_id}"


def tenant_key(tenant_id: UUID) -> str:
    """Return the key that refuses every token of a tenant issued so far."""
    return f"tenant:{tenant_id}"


@dataclass(frozen=True, slots=True)
class Traces:
    """What a token can be refused by, worked out once: it and the tokens it came from, their clients, its tenant."""

    token_ids: tuple[str, ...]
    owners: tuple[str, ...]
    issued_at: float

    @classmethod
    def of(cls, token: Principal) -> Traces:
        """Collect them; `lineage` holds `<client_id>:<jti>`."""
        ancestors = [each.partition(":") for each in token.lineage]
        clients = dict.fromkeys((token.client_id, *(client_id for client_id, _, _ in ancestors)))
        return cls(
            token_ids=(token.token_id, *(token_id for _, _, token_id in ancestors)),
            owners=(tenant_key(token.tenant_id), *(client_key(each) for each in clients)),
            issued_at=token.issued_at,
        )


class Revocations:
    """The deny-list: constant-time look-ups, bounded by what is revoked and not yet expired."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, float]] = {}
        self._seen_to = 0.0
        self._read_all_at = float("-inf")

    def __len__(self) -> int:
        return len(self._until)

    def add(self, revocations: Iterable[Revocation]) -> None:
        """Take revocations in; the latest instant of a key counts."""
        for each in revocations:
            revoked_at, expires_at = self._until.get(each.key, (0.0, 0.0))
            self._until[each.key] = (max(revoked_at, each.revoked_at), max(expires_at, each.expires_at))

    def purge(self, now: float) -> None:
        """Forget what has expired: its tokens are refused for their own expiry."""
        for key in [key for key, (_, expires_at) in self._until.items() if expires_at <= now]:
            del self._until[key]

    def refuses(self, token: Traces) -> bool:
        """Tell whether a token is revoked: itself, one it came from, or all that a client or its tenant had by then.

        `iat` has whole seconds: a token issued in the second of the revocation counts as issued before it.
        """
        until = self._until
        if not until:
            return False
        for owner in token.owners:
            if (found := until.get(owner)) is not None and token.issued_at <= found[0]:
                return True
        return not until.keys().isdisjoint(token.token_ids)

    async def refresh(self, connections: Connections, *, now: float) -> int:
        """Load what was recorded since the last refresh, and everything at first and every ten minutes.

        It reads on by the database's clock: a process whose own clock runs ahead hides nothing, nor does a database
        whose clock was set back, or that took over with one that is behind. Returns the rows read.
        """
        everything = not 0.0 <= now - self._read_all_at < _READ_ALL_S
        since = datetime.fromtimestamp(0.0 if everything else self._seen_to, UTC)
        async with connections.platform() as connection:
            rows = await connection.fetch(
                "select jti, extract(epoch from revoked_at)::float8 as revoked_at,"
                " extract(epoch from expires_at)::float8 as expires_at,"
                " extract(epoch from recorded_at)::float8 as recorded_at"
                " from token_revocation where recorded_at > least($1, now()) - make_interval(secs => $2)"
                " and expires_at > now()",
                since,
                _OVERLAP_S,
            )
        self.add(Revocation(row["jti"], row["revoked_at"], row["expires_at"]) for row in rows)
        self._seen_to = max((row["recorded_at"] for row in rows), default=self._seen_to)
        if everything:
            self._read_all_at = now
        self.purge(now)
        return len(rows)
