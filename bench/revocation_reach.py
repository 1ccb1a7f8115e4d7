"""How long a revoked token still works in another process: from the revocation's commit to the first refusal.

Run: python bench/revocation_reach.py [rounds]

Asked for: under a second. An embedded Postgres, one connection that revokes, and beside it what every process runs:
`Trust` over the notices, with its poll put out of reach. Times are wall-clock milliseconds; run it on a quiet machine.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from auth.keyset import KeySet
from auth.principal import Principal
from auth.revocations import Revocations, Traces
from auth.tokens import new_token_id
from gateway.database import Postgres
from gateway.embedded.postgres import EmbeddedPostgres
from gateway.schema import migrate
from gateway.trust import Trust

PLATFORM = UUID(int=0)


async def measure(url: str, rounds: int) -> list[float]:
    """Return the delays in milliseconds, sorted."""
    here, there, revocations = Postgres(url), Postgres(url), Revocations()
    trust = Trust(there, KeySet(), revocations, clock=time.time, poll_s=3600)
    first = asyncio.Event()
    tasks = [asyncio.create_task(work) for work in (trust.run(first), there.listen(trust.changed))]
    await first.wait()
    delays = []
    for _ in range(rounds):
        token = new_token_id()
        traces = Traces.of(Principal(PLATFORM, "lpc_bench", frozenset(), token, time.time() + 3600))
        now = datetime.now(UTC)
        async with here.platform() as connection:
            await connection.execute(
                "insert into token_revocation (jti, tenant_id, expires_at) values ($1, $2, $3)",
                token,
                PLATFORM,
                now + timedelta(hours=1),
            )
        began = time.perf_counter()
        while not revocations.refuses(traces):
            await asyncio.sleep(0.0005)
        delays.append((time.perf_counter() - began) * 1000)
    for task in tasks:
        task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks)
    await here.close()
    await there.close()
    return sorted(delays)


def main(rounds: int) -> None:
    """Print the distribution."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        server = EmbeddedPostgres(Path(directory) / "postgres")
        try:
            url = server.start().url()
            migrate(url)
            delays = asyncio.run(measure(url, rounds))
        finally:
            server.stop()
    p50, p99 = delays[len(delays) // 2], delays[min(len(delays) - 1, round(len(delays) * 0.99))]
    print(f"{rounds} revocations: p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {delays[-1]:.1f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
