"""What tokens cost: minting, verifying one that is new and one that was seen before, by algorithm.

Run: python bench/auth_tokens.py [rounds]

Asked for: under 5 µs for a token seen before. Times are the best of five runs on one core; run it on a quiet machine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from uuid import UUID

from auth.keyset import ALGORITHMS, KeySet, Signer
from auth.revocations import Revocation, Revocations
from auth.tokens import Grant, Verifier, mint, new_token_id

ISSUER = "https://gateway.example"


def best_us(run: Callable[[], object], rounds: int) -> float:
    """Return microseconds a call: the best of five runs."""
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(rounds):
            run()
        times.append((time.perf_counter() - begin) / rounds * 1e6)
    return min(times)


def main(rounds: int) -> None:
    grant = Grant(ISSUER, ISSUER, UUID(int=1), "lpc_bench", "lpc_bench", frozenset({"inference"}), 3600)
    revoked = Revocations()
    revoked.add(Revocation(new_token_id(), 0.0, time.time() + 3600) for _ in range(10_000))
    now = time.time()
    print(f"{'':8}{'mint µs':>10}{'a second':>10}{'new µs':>10}{'seen µs':>10}")
    for alg in ALGORITHMS:
        signer = Signer.generate(alg)
        keys = KeySet([signer.public()])
        warm = Verifier(ISSUER, ISSUER, keys, revoked, time.time)
        cold = Verifier(ISSUER, ISSUER, keys, revoked, time.time, cache_size=0)
        token = mint(signer, grant, now=now, token_id=new_token_id())
        minted = best_us(lambda s=signer: mint(s, grant, now=now, token_id=new_token_id()), rounds)  # type: ignore[misc]
        new = best_us(lambda v=cold, t=token: v.verify(t), rounds)  # type: ignore[misc]
        seen = best_us(lambda v=warm, t=token: v.verify(t), rounds * 50)  # type: ignore[misc]
        print(f"{alg:8}{minted:10.0f}{1e6 / minted:10.0f}{new:10.0f}{seen:10.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
