"""Shares of quotas in virtual time: 1,000 replicas, 100,000 quotas, the same pure code that processes run.

    python -m bench.leases            # about five minutes of one core; --quick for one

Three parts. *Flat*: so many processes lease one quota from one row. *Tree*: 4,000 processes on 1,000 replicas in four
regions, each level leasing from the one above. *Many*: 100,000 quotas of Zipf popularity on 1,000 replicas, what
Postgres would have to write. Figures of time are virtual seconds; CPU is this machine's. Seeded.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from math import exp
from pathlib import Path
from random import Random
from uuid import UUID

import msgspec

from gateway.database import Postgres
from gateway.embedded.postgres import EmbeddedPostgres
from gateway.leases.account import Account
from gateway.leases.hierarchy import downward, open_stock, upward
from gateway.leases.postgres_store import PostgresLeaseStore
from gateway.leases.row import Draw, Report, Row, exchange
from gateway.leases.store import Swap
from gateway.schema import migrate

NAME = "|rpm"
WINDOW_S = 60.0
UNIX = 1_000_000_000.0
STEP_S = 0.25
"""How often a process looks whether its balance allows what came meanwhile."""


@dataclass
class Leaf:
    """One process: `rps` come to it; it sends what its balance allows and drops what waited two seconds."""

    name: str
    rps: float
    limit: float
    balance: float = 0.0
    spent: float = 0.0
    acked: float = 0.0
    waiting: float = 0.0
    blocked: bool = False
    sent: float = 0.0
    at: float = 0.0

    def work(self, now: float) -> float:
        """Send what has come since the last time; give how much."""
        self.waiting = min(self.waiting + self.rps * (now - self.at), 2.0 * self.rps + 1.0)
        self.at = now
        amount = float(int(min(self.waiting, self.balance)))
        self.blocked |= self.waiting >= 1.0 and self.balance < self.waiting
        self.waiting -= amount
        self.balance -= amount
        self.spent += amount
        self.sent += amount
        return amount

    def report(self) -> Report:
        rate = self.rps if not self.blocked else 2.0 * self.rps
        want = min(self.limit, max(1.0, rate * 1.5))
        self.blocked = False
        draw = Draw("bucket", self.limit, WINDOW_S, spent=self.spent, acked=self.acked, want=want, need=1.0, rate=rate)
        return Report(self.name, {NAME: draw})

    def granted(self, held: float) -> None:
        self.acked, self.balance = self.spent, held


@dataclass
class Middle:
    """A replica or a region: lends on what it holds of the level above."""

    name: str
    row: Row = field(default_factory=Row)
    acked: float = 0.0


class Tree:
    """Leaves under levels of `fan_outs` (from the top down); every node exchanges with its parent once a second."""

    def __init__(self, limit: float, fan_outs: list[int], leaf_rps: float, seed: int) -> None:
        self.rng = Random(seed)
        self.limit = limit
        self.now = 0.0
        self.top = Row()
        self.top.accounts[NAME] = Account.open("bucket", limit, WINDOW_S, 0.0, UNIX)
        self.truth = Account.open("bucket", limit, WINDOW_S, 0.0, UNIX)
        # The first burst is over: what follows is the limit's own pace.
        self.top.accounts[NAME].charge(limit, UNIX)
        self.truth.charge(limit, UNIX)
        self.over = 0.0
        self.messages = [0] * len(fan_outs)
        self.leaves: list[Leaf] = []
        self._queue: list[tuple[float, int, int]] = []
        self._nodes: list[tuple[Leaf | Middle, Row, int]] = []
        self._grow(self.top, fan_outs, 0, "top", leaf_rps)

    def _grow(self, above: Row, fan_outs: list[int], level: int, name: str, leaf_rps: float) -> None:
        for number in range(fan_outs[0]):
            own = f"{name}/{number}"
            node: Leaf | Middle
            if len(fan_outs) == 1:
                node = Leaf(own, leaf_rps, self.limit, at=self.now)
                self.leaves.append(node)
            else:
                node = Middle(own)
                open_stock(node.row, NAME, self.limit, WINDOW_S)
                self._grow(node.row, fan_outs[1:], level + 1, own, leaf_rps)
            self._nodes.append((node, above, level))
            index = len(self._nodes) - 1
            heapq.heappush(self._queue, (self.now + self.rng.random(), index, 0))
            if isinstance(node, Leaf):
                heapq.heappush(self._queue, (self.now + self.rng.random() * STEP_S, index, 1))

    def run(self, seconds: float) -> float:
        """Let time pass; give how much was sent a second."""
        before, ends = sum(leaf.sent for leaf in self.leaves), self.now + seconds
        while self._queue[0][0] <= ends:
            at, index, what = heapq.heappop(self._queue)
            self.now = at
            node, above, level = self._nodes[index]
            if what == 1:
                assert isinstance(node, Leaf)
                self._send(node)
                heapq.heappush(self._queue, (at + STEP_S, index, 1))
                continue
            self.messages[level] += 1
            if isinstance(node, Leaf):
                self._send(node)
                report = node.report()
                if level:
                    report.draws[NAME].kind = "stock"
                node.granted(exchange(above, report, UNIX + at).grants[NAME].held)
                self._send(node)
            else:
                draw = upward(node.row, NAME, Draw("bucket" if above is self.top else "stock", self.limit, WINDOW_S),
                              acked=node.acked)  # fmt: skip
                grant = exchange(above, Report(node.name, {NAME: draw}), UNIX + at).grants.get(NAME)
                node.acked = draw.spent
                if grant is not None:
                    downward(node.row, NAME, draw, grant)
            heapq.heappush(self._queue, (at + 0.9 + 0.2 * self.rng.random(), index, 0))
        self.now = ends
        return (sum(leaf.sent for leaf in self.leaves) - before) / seconds

    def _send(self, leaf: Leaf) -> None:
        amount = leaf.work(self.now)
        if amount:
            self.over += max(0.0, amount - max(0.0, self.truth.available(UNIX + self.now)))
            self.truth.charge(amount, UNIX + self.now)


def converged(tree: Tree, target: float, limit_s: int = 60) -> float:
    """Give the virtual seconds until so much is sent a second."""
    for second in range(1, limit_s + 1):
        if tree.run(1.0) >= target:
            return float(second)
    return float("inf")


def show_tree(name: str, limit: float, fan_outs: list[int], settle_s: float, seed: int) -> None:
    """Run one tree: from cold, steady, then with all demand on half of the leaves."""
    started = time.process_time()
    size = 1
    for each in fan_outs:
        size *= each
    per_s = limit / WINDOW_S
    tree = Tree(limit, fan_outs, 1.5 * per_s / size, seed)
    cold_s = converged(tree, 0.97 * per_s)
    tree.run(settle_s)
    before = list(tree.messages)
    steady = tree.run(20.0)
    messages = [round((after - was) / 20.0) for after, was in zip(tree.messages, before, strict=True)]
    for number, leaf in enumerate(tree.leaves):
        leaf.rps = 3.0 * per_s / size if number < size / 2 else 0.0
    moved_s = converged(tree, 0.97 * per_s)
    print(
        f"{name:<26} {size:6d} {limit:10,.0f} {steady / per_s:8.2%} {tree.over / (per_s * tree.now):8.3%} "
        f"{cold_s:6.0f} s {moved_s:6.0f} s   {' + '.join(f'{each:,}' for each in messages):<18} "
        f"{time.process_time() - started:6.1f} s",
        flush=True,
    )


def show_many(quotas: int, replicas: int, total_rps: float, seconds: int, seed: int) -> None:
    """Run many quotas of Zipf popularity; give what their rows cost."""
    rng = Random(seed)
    weights = [1.0 / (rank**1.1) for rank in range(1, quotas + 1)]
    scale = total_rps / sum(weights)
    pairs, written, size, exchanges, hottest = 0, 0, 0, 0, 0
    encode = msgspec.json.Encoder().encode
    cpu_s = 0.0
    for weight in weights:
        rps = weight * scale
        # A lease is kept for ten seconds without use: at how many replicas is one in use, requests being spread?
        mean = replicas * (1.0 - exp(-rps * 10.0 / replicas))
        active = int(mean) + (rng.random() < mean % 1.0)
        if active == 0:
            continue
        pairs += active
        hottest = max(hottest, active)
        limit = max(60.0, rps * 60.0 / 0.8)
        # Above a hundred lessees a row gets levels in between: four regions write it.
        lessees = active if active <= 100 else 4
        row = Row()
        started = time.process_time()
        for _ in range(seconds):
            for number in range(lessees):
                exchange(row, Leaf(str(number), rps / lessees, limit).report(), UNIX)
        cpu_s += time.process_time() - started
        exchanges += lessees * seconds
        written += lessees
        size += len(encode(row)) * lessees
    print(f"{quotas:,} quotas, {replicas:,} replicas, {total_rps:,.0f} requests a second over all")
    print(f"  leases in use (quota on replica)   {pairs:>12,}   the busiest quota on {hottest:,}")
    print(f"  of a replica, in one batch         {pairs / replicas:>12,.1f}")
    print(f"  rows written a second              {written:>12,}")
    print(f"  megabytes written a second         {size / 1e6:>12,.1f}")
    print(f"  CPU of one exchange (pure code)    {cpu_s / exchanges * 1e6:>9.1f} us")


def show_postgres(rows: int, rounds: int) -> None:
    """Read and swap batches of rows on a real server; give rows a second."""
    directory = Path(tempfile.mkdtemp(prefix="llm-proxy-bench-"))
    server = EmbeddedPostgres(directory)
    try:
        address = server.start()
        migrate(address.url())
        print(asyncio.run(_swap(address.url(), rows, rounds)))
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


async def _swap(url: str, rows: int, rounds: int) -> str:
    store = PostgresLeaseStore(Postgres(url))
    row = Row()
    for number in range(4):
        exchange(row, Leaf(str(number), 10.0, 6_000.0).report(), UNIX)
    state = msgspec.json.encode(row)
    keys = [(UUID(int=number % 100), str(number)) for number in range(rows)]
    await store.swap([Swap(key, 0, 1, state) for key in keys])
    started, cpu = time.perf_counter(), time.process_time()
    for version in range(1, rounds + 1):
        await store.read(keys)
        await store.swap([Swap(key, version, version + 1, state) for key in keys])
    took_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    await store.close()
    return (
        f"Postgres, batches of {rows} rows of {len(state)} bytes: {rows * rounds / took_s:,.0f} rows a second read and "
        f"swapped by one client, {cpu_s / rows / rounds * 1e6:.1f} us of the client's CPU a row"
    )


def main() -> None:
    """Print the tables of docs/leases.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the quotas and replicas")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    part = 10 if options.quick else 1
    heads = f"{'leaves':>6} {'limit rpm':>10} {'used':>8} {'over':>8} {'cold':>8} {'moved':>8}"
    print(f"{'':<26} {heads}   messages/s by level   CPU")
    for count in (4, 16, 64, 256 // part):
        show_tree("flat: processes, one row", 6_000.0 * max(1, count / 4), [count], 20.0, options.seed)
    show_tree("flat, 3 rpm", 3.0, [4], 200.0, options.seed)
    show_tree("replica -> region", 600_000.0 / part, [100 // part, 4], 20.0, options.seed)
    show_tree("local -> replica -> region", 6_000_000.0 / part, [4, 250 // part, 4], 20.0, options.seed)
    for total_rps in (2_000.0, 20_000.0):
        show_many(100_000 // part, 1_000 // part, total_rps / part, 2, options.seed)
    show_postgres(500, 20)


if __name__ == "__main__":
    main()
