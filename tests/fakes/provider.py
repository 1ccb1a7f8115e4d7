"""A simulated provider on a real socket, in a thread of its own: for synchronous and asynchronous tests alike."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gateway.balancing.quota import Limits
from gateway.simulation.app import SimulatedProvider
from gateway.simulation.config import KeyConfig, Latency, ProviderConfig
from gateway.simulation.faults import Fault
from gateway.simulation.ledger import KeyUse, Seen
from gateway.simulation.server import fetch_document, make_server

_START_S = 10.0


@dataclass(frozen=True, slots=True)
class RunningProvider:
    """The control handle: read counts, break keys, change limits while it runs."""

    base_url: str
    host: str
    port: int
    provider: SimulatedProvider

    def use(self, key: str) -> KeyUse:
        """Return what the key of this name was used for."""
        return self.provider.ledger.keys[key].use

    @property
    def requests(self) -> dict[str, int]:
        """Return the number of requests by key name."""
        return {name: key.use.requests for name, key in self.provider.ledger.keys.items()}

    @property
    def log(self) -> Sequence[Seen]:
        """Return the last requests, oldest first, with the names of the headers that arrived."""
        return tuple(self.provider.ledger.log)

    def fault(self, key: str, *faults: Fault) -> None:
        """Replace the faults of a key; none = heal it."""
        self.provider.ledger.keys[key].faults.replace(faults)

    def revoke(self, key: str) -> None:
        """Answer 401 to a key from now on."""
        self.provider.ledger.keys[key].revoked = True

    def restore(self, key: str) -> None:
        """Undo `revoke`."""
        self.provider.ledger.keys[key].revoked = False

    def reset(self) -> None:
        """Forget all counts and quota levels."""
        self.provider.ledger.reset()


def provider_config(**rpm: int) -> ProviderConfig:
    """Return a provider without latency whose keys are called as the arguments, secret `sim-key-<name>`."""
    keys = tuple(
        KeyConfig(secret=f"sim-key-{name}", name=name, limits=Limits(rpm=limit)) for name, limit in rpm.items()
    )
    return ProviderConfig(keys=keys, latency=Latency(first_byte_s=0.0))


@contextmanager
def running_provider(
    config: ProviderConfig, *, clock: Callable[[], float] = time.time, seed: int = 0
) -> Iterator[RunningProvider]:
    """Serve on a free loopback port until the block ends; OpenAI's base URL is `base_url + "/v1"`."""
    provider = SimulatedProvider(config, fetch=fetch_document, clock=clock, rng=random.Random(seed))
    server = make_server(provider)
    sock = server.config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, name="simulated-provider", daemon=True)
    thread.start()
    until = time.monotonic() + _START_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > until:
            raise RuntimeError("the simulated provider did not start")
        time.sleep(0.002)
    host, port = sock.getsockname()[:2]
    try:
        yield RunningProvider(f"http://{host}:{port}", host, port, provider)
    finally:
        server.should_exit = True
        thread.join(_START_S)
        sock.close()
        if thread.is_alive():
            raise RuntimeError("the simulated provider did not stop")
