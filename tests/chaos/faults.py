"""All faults, and how a polite call may end that could have felt one: what a good gateway cannot hide.

A fault that excuses nothing is hidden: while only such faults are on, each polite call is answered whole.
"""

from __future__ import annotations

import signal

from tests.chaos import machine_faults, postgres_faults, process_faults, provider_faults
from tests.chaos.scene import Fault
from tests.chaos.strikes import BROKEN

ANY = ("serve", "gateway", "control")
GATEWAYS = ("serve", "gateway")
GONE = frozenset({"refused", "none", "late"})
"""Nobody listens; or a supervisor does whose first worker is not ready: who connects then waits for the start."""

FAULTS: dict[str, Fault] = {
    # Everything that a request needs is in memory; what it used waits in the spool.
    "Postgres down": Fault(postgres_faults.down, "Postgres", takes_postgres=True),
    "Postgres stalled": Fault(postgres_faults.stalled, "Postgres", takes_postgres=True),
    "Postgres slow": Fault(postgres_faults.slow, "Postgres", takes_postgres=True),
    "Postgres restarted": Fault(postgres_faults.restarted, "Postgres", takes_postgres=True),
    "Postgres out of connections": Fault(postgres_faults.out_of_connections, "Postgres", takes_postgres=True),
    "Postgres fails over": Fault(postgres_faults.promoted, "Postgres", takes_postgres=True),
    # Its connections go with it, and nobody listens until it is back.
    "kill -9": Fault(process_faults.ended(signal.SIGKILL), "a process", BROKEN | GONE, strikes=ANY),
    # Its connections go with it; what comes afterwards is its siblings', until another is ready.
    "kill -9 of one worker": Fault(
        process_faults.worker_killed, "a process", BROKEN, strikes=GATEWAYS, needs_workers=True
    ),
    "a worker is replaced while Postgres is down": Fault(
        process_faults.worker_replaced_alone,
        "a process",
        BROKEN,
        strikes=GATEWAYS,
        needs_workers=True,
        takes_postgres=True,
    ),
    # What is under way is answered; then nobody listens until it is back.
    "SIGTERM": Fault(process_faults.ended(signal.SIGTERM), "a process", GONE, strikes=ANY),
    "SIGHUP": Fault(process_faults.hung_up, "a process", strikes=ANY),
    # Deadlines pass while it stands still.
    "SIGSTOP and SIGCONT": Fault(
        process_faults.paused, "a process", BROKEN | {"502", "504", "error event", "late"}, strikes=ANY
    ),
    # What fails before the first byte is tried on another key; an answer that has begun is not taken back.
    "a provider does all it should not": Fault(
        provider_faults.wild, "providers", frozenset({"cut", "error event", "204"})
    ),
    "a provider resets": Fault(provider_faults.resets, "providers"),
    "a provider hangs": Fault(provider_faults.hangs, "providers"),
    "disk full": Fault(machine_faults.disk_full, "a process", strikes=GATEWAYS, takes_postgres=True),
    # Neither callers nor providers can be connected.
    "out of file descriptors": Fault(
        machine_faults.descriptors_gone, "a process", BROKEN | {"502", "503", "504"}, strikes=GATEWAYS
    ),
    "300 idle connections": Fault(machine_faults.idle_flood, "a process", strikes=ANY),
}
