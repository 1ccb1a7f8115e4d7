"""The issuer's signing keys: stored sealed, loaded into memory, rotated by plan or by command.

Importable by the data path: asyncpg only. The keys belong to the platform tenant; `load_public` needs no sealer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from auth.errors import Conflict, Unavailable
from auth.key_rotation import Create, KeyState, Promote, Remove, RotationPolicy, Step, plan
from auth.keyset import DEFAULT_ALGORITHM, KeySet, PublicKey, Signer
from auth.principal import PLATFORM_TENANT_ID
from auth.sealing import Sealed, Sealer
from auth.storage import Connections

if TYPE_CHECKING:
    import asyncpg

_LOCK = 0x6C6C6D7369676E  # one rotation at a time over all replicas

_PUBLIC = (
    "select public_jwk::text as public_jwk from signing_key order by case state when 'active' then 0 when 'next' then 1"
    " else 2 end, created_at desc"
)


async def load_public(connections: Connections, keys: KeySet) -> None:
    """Bring `keys` up to date with the published keys: the active ones first, then next, then retired."""
    async with connections.platform() as connection:
        rows = await connection.fetch(_PUBLIC)
    keys.replace(PublicKey.from_jwk(json.loads(row["public_jwk"])) for row in rows)


@dataclass(frozen=True, slots=True)
class _Candidate:
    signer: Signer
    sealed: Sealed


class SigningKeys:
    """The issuer's private keys for the control plane, and the store behind them.

    `keys` is the set that the verifier of this process reads; `refresh` brings both halves up to date and belongs on
    NOTIFY of table `signing_key` and on a poll. `algs[0]` signs unless a client asks for another.
    """

    def __init__(
        self,
        connections: Connections,
        sealer: Sealer,
        keys: KeySet,
        *,
        algs: Sequence[str] = (DEFAULT_ALGORITHM,),
        policy: RotationPolicy | None = None,
        announce_s: float = 2.0,
    ) -> None:
        self._connections = connections
        self._sealer = sealer
        self._algs = tuple(algs)
        self._policy = policy or RotationPolicy()
        self._announce_s = announce_s
        self._signers: dict[str, Signer] = {}
        self.keys = keys
        self.on_changed: Callable[[Sequence[Step]], Awaitable[None]] | None = None
        """Told of the steps that `maintain` carried out in this process: for the audit trail."""

    @property
    def algs(self) -> tuple[str, ...]:
        """The algorithms that have an active key, the default first."""
        return tuple(alg for alg in self._algs if alg in self._signers)

    def signer(self, alg: str | None = None) -> Signer:
        """Return the active signer for `alg` (None: the default); `Unavailable` before the first `refresh`."""
        found = self._signers.get(alg or self._algs[0])
        if found is None:
            raise Unavailable(
                "The authorization server has no signing key yet.",
                hint="Try again in a few seconds.",
                debug=f"alg {alg}",
            )
        return found

    async def refresh(self) -> None:
        """Load the published keys, and unseal an active key that is not in memory yet."""
        async with self._connections.platform() as connection:
            rows = await connection.fetch(_PUBLIC)
            active = await connection.fetch(
                "select kid, alg, data_key_id, sealed from signing_key where state = 'active' and alg = any($1)",
                list(self._algs),
            )
        signers = {}
        for row in active:
            held = self._signers.get(row["alg"])
            if held is not None and held.kid == row["kid"]:
                signers[row["alg"]] = held
                continue
            der = await self._sealer.open(
                PLATFORM_TENANT_ID, row["data_key_id"], signing_context(row["kid"], row["alg"]), row["sealed"]
            )
            signers[row["alg"]] = Signer.from_private_bytes(row["kid"], row["alg"], der)
        self._signers = signers
        self.keys.replace(PublicKey.from_jwk(json.loads(row["public_jwk"])) for row in rows)

    async def maintain(self, *, now: float) -> bool:
        """Carry out what the plan says is due, then refresh; tells whether anything was. Safe on every replica."""
        changed = False
        for _ in range(4):
            async with self._connections.platform() as connection:
                steps = plan(await _states(connection), self._algs, self._policy, now=now)
            if not steps:
                break
            if done := await self._apply(steps, now=now):
                changed = True
                if self.on_changed is not None:
                    await self.on_changed(done)
        await self.refresh()
        return changed

    async def rotate(self, alg: str | None = None, *, now: float, compromised: bool = False) -> str:
        """Rotate by command and return the new active `kid`, `announce_s` after every verifier was told of it.

        The old key stays published until its tokens have expired; `compromised` removes it at once, which refuses every
        token that it signed.
        """
        name = alg or self._algs[0]
        if name not in self._algs:
            raise Conflict(f"No key for {name} is in use.", hint=f"Choose one of {', '.join(self._algs)}.")
        async with self._connections.platform() as connection:
            before = await _states(connection)
        waiting = [key for key in before if key.alg == name and key.state == "next"]
        if not waiting:
            await self._apply([Create(name, "next")], now=now)
            async with self._connections.platform() as connection:
                waiting = [key for key in await _states(connection) if key.alg == name and key.state == "next"]
            if not compromised:
                await asyncio.sleep(self._announce_s)
        keep_s = 0.0 if compromised else self._policy.keep_s
        steps: list[Step] = [Promote(waiting[0].kid, name, now + keep_s)]
        if compromised:
            steps += [Remove(key.kid) for key in before if key.alg == name and key.state == "active"]
        await self._apply(steps, now=now)
        await self.refresh()
        return waiting[0].kid

    async def reseal(self) -> int:
        """Seal every private key anew, under the platform's present data key; returns how many were.

        For the rotation of data keys: when it has run, the older data key opens no signing key any more.
        """
        async with self._connections.platform() as connection:
            rows = await connection.fetch("select kid, alg, data_key_id, sealed from signing_key")
        count = 0
        for row in rows:
            context = signing_context(row["kid"], row["alg"])
            der = await self._sealer.open(PLATFORM_TENANT_ID, row["data_key_id"], context, row["sealed"])
            fresh = await self._sealer.seal(PLATFORM_TENANT_ID, context, der)
            async with self._connections.platform() as connection:
                done = await connection.execute(
                    "update signing_key set data_key_id = $1, sealed = $2 where kid = $3 and sealed = $4",
                    fresh.data_key_id,
                    fresh.blob,
                    row["kid"],
                    row["sealed"],
                )
            count += done == "UPDATE 1"
        return count

    async def _apply(self, steps: Sequence[Step], *, now: float) -> list[Step]:
        """Carry out what no other replica has done yet; returns that."""
        # Sealing may ask a KMS: it is done before the transaction that holds the lock.
        candidates = [await self._candidate(step.alg) if isinstance(step, Create) else None for step in steps]
        moment = datetime.fromtimestamp(now, UTC)
        done: list[Step] = []
        async with self._connections.platform() as connection:
            await connection.execute("select pg_advisory_xact_lock($1)", _LOCK)
            for step, candidate in zip(steps, candidates, strict=True):
                states = await _states(connection)
                if isinstance(step, Create) and candidate is not None:
                    if any(key.alg == step.alg and key.state == step.state for key in states):
                        continue  # another replica was faster
                    await _insert(connection, candidate, step.state, moment)
                elif isinstance(step, Promote):
                    if not any(key.kid == step.kid and key.state == "next" for key in states):
                        continue
                    await connection.execute(
                        "update signing_key set state = 'retired', retire_at = $2 where alg = $1 and state = 'active'",
                        step.alg,
                        datetime.fromtimestamp(step.retire_at, UTC),
                    )
                    await connection.execute(
                        "update signing_key set state = 'active', activated_at = $2 where kid = $1", step.kid, moment
                    )
                elif isinstance(step, Remove):
                    gone = await connection.execute(
                        "delete from signing_key where kid = $1 and state = 'retired'", step.kid
                    )
                    if gone != "DELETE 1":
                        continue
                done.append(step)
        return done

    async def _candidate(self, alg: str) -> _Candidate:
        signer = Signer.generate(alg)
        sealed = await self._sealer.seal(PLATFORM_TENANT_ID, signing_context(signer.kid, alg), signer.private_bytes())
        return _Candidate(signer, sealed)


def signing_context(kid: str, alg: str) -> tuple[str, ...]:
    """Return what a sealed signing key is bound to."""
    return ("signing-key", kid, alg)


async def _states(connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record]) -> list[KeyState]:
    rows = await connection.fetch(
        "select kid, alg, state, extract(epoch from created_at)::float8 as created_at,"
        " extract(epoch from activated_at)::float8 as activated_at, extract(epoch from retire_at)::float8 as retire_at"
        " from signing_key order by created_at"
    )
    return [KeyState(**row) for row in rows]


async def _insert(
    connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record], candidate: _Candidate, state: str, moment: datetime
) -> None:
    signer = candidate.signer
    await connection.execute(
        "insert into signing_key (kid, tenant_id, alg, public_jwk, data_key_id, sealed, state, created_at,"
        " activated_at) values ($1, $2, $3, $4::text::jsonb, $5, $6, $7, $8, $9)",
        signer.kid,
        PLATFORM_TENANT_ID,
        signer.alg,
        json.dumps(signer.public().jwk()),
        candidate.sealed.data_key_id,
        candidate.sealed.blob,
        state,
        moment,
        moment if state == "active" else None,
    )
