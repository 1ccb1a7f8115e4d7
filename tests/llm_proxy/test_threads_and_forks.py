"""Any thread may call it; a forked child starts afresh and leaves the parent's sockets alone."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.simulation.faults import Fault, FaultKind
from llm_proxy import BalancerClosed, LoadBalancer
from tests.fakes.provider import RunningProvider
from tests.llm_proxy.conftest import HELLO, WEIGHTS, document

ROOT = Path(__file__).parents[2]


def test_eight_threads_share_exact_weights(balancer: LoadBalancer, provider: RunningProvider) -> None:
    together = threading.Barrier(8)

    def work(number: int) -> list[str]:
        together.wait()
        if number % 2:
            return [balancer.complete(model="gpt-4o", messages=HELLO).key for _ in range(25)]
        return [
            stream.key
            for stream in (balancer.stream(model="gpt-4o", messages=HELLO) for _ in range(25))
            if "".join(chunk.text for chunk in stream)
        ]

    with ThreadPoolExecutor(8) as pool:
        keys = Counter(key for keys in pool.map(work, range(8)) for key in keys)
    assert keys == provider.requests == {name: 2 * weight for name, weight in WEIGHTS.items()}
    stats = balancer.stats()
    assert (stats.in_flight, stats.waiting) == (0, 0)


def test_closing_while_threads_wait(provider: RunningProvider) -> None:
    for name in WEIGHTS:
        provider.fault(name, Fault(kind=FaultKind.HANG))
    balancer = LoadBalancer(document(provider))

    def ask() -> None:
        with pytest.raises(BalancerClosed):
            balancer.complete(model="gpt-4o", messages=HELLO)

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask) for _ in range(4)]
        while sum(provider.requests.values()) < 4:
            assert not any(future.done() for future in asked)
        balancer.close()
        for future in asked:
            future.result(10)


FORK = """
import json, os, sys
from llm_proxy import BalancerClosed, LoadBalancer
HELLO = [{"role": "user", "content": "Hello!"}]
balancer = LoadBalancer(json.loads(sys.argv[1]))
ask = lambda: balancer.complete(model="gpt-4o", messages=HELLO).text
assert ask()
with balancer.stream(model="gpt-4o", messages=HELLO) as stream:
    next(stream)
    child = os.fork()
    if child == 0:
        try:
            next(stream)
        except BalancerClosed:
            assert balancer.stats().keys[0].requests == 0
            assert ask()
            balancer.close()
            sys.exit(7)
        sys.exit("the parent's stream was read in the child")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert len(list(stream)) > 1
assert ask()
print("done")
"""


def test_a_forked_child_starts_afresh(provider: RunningProvider) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, json.dumps(document(provider))],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


def test_a_program_that_never_closes_it_ends(provider: RunningProvider) -> None:
    program = FORK.split("with balancer", maxsplit=1)[0]
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program, json.dumps(document(provider))],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


LOADS = """
import sys, llm_proxy
llm_proxy.LoadBalancer({"providers": [{"name": "openai", "api_key": "sk-0123456789"}]})
heavy = {"litestar", "sqlmodel", "sqlalchemy", "authlib", "asyncpg", "uvicorn", "pydantic", "httpx", "httpx2", "openai"}
ours = {name for name in sys.modules if name.split(".")[0] in {"auth", "tenants", "gateway"}}
kept = ("auth.secret", "auth.errors", "gateway.balancing", "gateway.upstream")
print(sorted(heavy & sys.modules.keys()))
print(sorted(name for name in ours - {"auth", "gateway"} if not name.startswith(kept)))
"""


def test_importing_it_loads_no_server_and_no_database() -> None:
    done = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
