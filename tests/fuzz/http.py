"""Fuzz the readers of callers' and providers' bytes: `make fuzz-http` (SECONDS=60 SEED=… TARGET=caller).

With atheris the code steers the search; without it a seeded mutator over the hostile corpus takes its place. A finding
is printed as the bytes that repeat it.
"""

from __future__ import annotations

import argparse
import importlib
import random
import secrets
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.fuzz.mutation import SEEDS, mutated


def mutate(name: str, seconds: float, seed: int) -> int:
    """Throw mutated seeds at one target; return how many failed."""
    from tests.fuzz.targets import TARGETS

    rng, until, tried = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < until:
        data = mutated(name, rng)
        tried += 1
        try:
            TARGETS[name](data)
        except Exception:  # noqa: BLE001 -- whatever it is, it is a finding
            traceback.print_exc()
            print(f"{name}: repeat with {data!r}", flush=True)
            return 1
    print(f"{name}: {tried} inputs, no finding", flush=True)
    return 0


def steer(name: str, seconds: float, seed: int) -> None:
    """Let atheris search; it ends the process itself."""
    atheris = importlib.import_module("atheris")  # not in the lock of the tests: see `make fuzz-http`

    directory = Path(tempfile.mkdtemp(prefix="llm-proxy-fuzz-"))
    for number, data in enumerate(SEEDS[name]):
        (directory / str(number)).write_bytes(data)
    with atheris.instrument_imports(include=["gateway", "tests.fuzz"]):
        from tests.fuzz.targets import TARGETS
    options = [sys.argv[0], str(directory), f"-max_total_time={round(seconds)}", f"-seed={seed}", "-max_len=4000"]
    atheris.Setup(options, TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--target", choices=sorted(SEEDS))
    parser.add_argument("--atheris", action="store_true", help="steered by coverage, one target at a time")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    if arguments.atheris:
        steer(arguments.target or "caller", arguments.seconds, arguments.seed)
        return 0
    names = [arguments.target] if arguments.target else list(SEEDS)
    return 1 if sum(mutate(name, arguments.seconds, arguments.seed) for name in names) else 0


if __name__ == "__main__":
    sys.exit(main())
