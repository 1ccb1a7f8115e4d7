"""Where processes tell their use of rates: a protocol, its in-memory twin, and Postgres; one suite for both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol
from uuid import UUID

import msgspec

from auth.storage import Connections
from gateway.policy.rates import Told, Use

KEPT_S: Final = 70
"""A minute's window, and a little for clocks that differ."""

LOOK_BACK_S: Final = 10
"""What was told earlier may be committed later: each reading begins this much before the present."""

_Row = tuple[str, int, int, int]
_decode = msgspec.json.Decoder(tuple[_Row, ...]).decode
_encode = msgspec.json.Encoder().encode


class RateStore(Protocol):
    """Passes on what processes tell."""

    async def exchange(self, process: UUID, uses: Sequence[Use], *, everything: bool) -> list[Told]:
        """Tell `uses`, and return what all told lately, `everything`: what still counts. Raises when it is away."""
        ...


class InMemoryRates:
    """The twin: one list that several processes' stores share. `broken` set to an exception makes exchanges fail."""

    def __init__(self, told: list[Told] | None = None) -> None:
        self.told = [] if told is None else told
        self.broken: Exception | None = None

    async def exchange(self, process: UUID, uses: Sequence[Use], *, everything: bool) -> list[Told]:
        """See `RateStore.exchange`."""
        del everything
        if self.broken is not None:
            raise self.broken
        self.told.append(Told(len(self.told), process, tuple(uses)))
        return list(self.told)


class PostgresRates:
    """Rows of `token_rate_use`: one an exchange and process, also when it has nothing to tell but that it lives."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def exchange(self, process: UUID, uses: Sequence[Use], *, everything: bool) -> list[Told]:
        """See `RateStore.exchange`."""
        text = _encode([(use.bucket, use.second, use.requests, use.tokens) for use in uses])
        async with self._connections.platform() as connection:
            await connection.execute("insert into token_rate_use (process, uses) values ($1, $2)", process, text)
            rows = await connection.fetch(
                "select id, process, uses from token_rate_use"
                " where recorded_at > now() - make_interval(secs => $1) order by id",
                float(KEPT_S if everything else LOOK_BACK_S),
            )
        return [
            Told(row["id"], UUID(str(row["process"])), tuple(Use(*each) for each in _decode(row["uses"])))
            for row in rows
        ]


async def purge_rates(connections: Connections) -> None:
    """Forget what counts no more."""
    async with connections.platform() as connection:
        await connection.execute(
            "delete from token_rate_use where recorded_at < now() - make_interval(secs => $1)", float(KEPT_S)
        )
