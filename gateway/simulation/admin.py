"""The provider's admin API under /_sim/: what tests and developers use to look inside and to break things.

| call | effect |
|---|---|
| GET /_sim/state | counts by key name |
| GET /_sim/requests | the last 1,000 requests: key name, path, model, names of the headers that arrived |
| POST /_sim/reset | forget counts, quota levels and the log |
| PUT /_sim/keys/{name} | add or replace a key (a `KeyConfig` without `name`) |
| POST /_sim/keys/{name}/revoke, …/restore | answer 401 to it from now on; undo that |
| PUT /_sim/keys/{name}/faults | replace its faults (a list of `Fault`); DELETE forgets them |
| PUT /_sim/quotas/{organisation} | change its limits while in use (a `Limits`) |
| GET /_sim/administration | calls of the admin APIs by step, and the keys they made |
| PUT /_sim/administration/faults | what fails there (a list of `AdminFault`); DELETE forgets them |
| PUT /_sim/administration/trust | the issuers whose assertions are exchanged for tokens (a list of `Trusted`) |
| PUT /_sim/administration/service_account_key | the public key (PEM, a JSON string) of the Google service account |
| PUT /_sim/administration/works_after | seconds for which a key made from now on is refused at first |

It has no authentication: the simulated provider is for loopback and closed test networks.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.balancing.quota import Limits
from gateway.simulation.config import KeyConfig
from gateway.simulation.faults import Fault
from gateway.simulation.keysmith import AdminFault, Keysmith
from gateway.simulation.ledger import Ledger
from gateway.simulation.trust import Trusted, TrustedIssuers
from gateway.simulation.wire import Reply, json_reply

PREFIX = "/_sim/"
_DONE = {"ok": True}


def handle(  # noqa: PLR0917 - the parts of a request
    ledger: Ledger, smith: Keysmith, trust: TrustedIssuers, method: str, path: str, body: bytes, *, now: float
) -> Reply:
    """Carry out one admin call."""
    steps = path.removeprefix(PREFIX).strip("/").split("/")
    try:
        done = _act(ledger, smith, trust, method, steps, body, now=now)
    except (msgspec.MsgspecError, ValueError) as error:
        return Reply(msgspec.json.encode({"error": str(error)}), status=422)
    if done is None:
        known = "see the table in docs/simulated-provider.md"
        return Reply(msgspec.json.encode({"error": f"no such admin call or key: {method} {path}; {known}"}), status=404)
    return json_reply(done)


def _act(  # noqa: PLR0917 - the parts of a request
    ledger: Ledger, smith: Keysmith, trust: TrustedIssuers, method: str, steps: list[str], body: bytes, *, now: float
) -> Any:
    match method, steps:
        case "GET", ["state"]:
            return ledger.view()
        case "GET", ["requests"]:
            return list(ledger.log)
        case "POST", ["reset"]:
            ledger.reset()
        case "PUT", ["keys", name]:
            fields = msgspec.json.decode(body, type=dict[str, Any])
            ledger.put(msgspec.convert({**fields, "name": name}, KeyConfig))
        case "POST", ["keys", name, "revoke" | "restore" as verb] if name in ledger.keys:
            ledger.keys[name].revoked = verb == "revoke"
        case "PUT", ["keys", name, "faults"] if name in ledger.keys:
            ledger.keys[name].faults.replace(msgspec.json.decode(body, type=tuple[Fault, ...]))
        case "DELETE", ["keys", name, "faults"] if name in ledger.keys:
            ledger.keys[name].faults.replace(())
        case "PUT", ["quotas", name]:
            if not ledger.resize(name, msgspec.json.decode(body, type=Limits), now):
                return None
        case "GET", ["administration"]:
            return smith.view()
        case "PUT", ["administration", "faults"]:
            smith.replace_faults(msgspec.json.decode(body, type=tuple[AdminFault, ...]))
        case "DELETE", ["administration", "faults"]:
            smith.replace_faults(())
        case "PUT", ["administration", "trust"]:
            trust.rules = msgspec.json.decode(body, type=tuple[Trusted, ...])
        case "PUT", ["administration", "service_account_key"]:
            smith.service_account_key = msgspec.json.decode(body, type=str)
        case "PUT", ["administration", "works_after"]:
            smith.works_after_s = msgspec.json.decode(body, type=float)
        case _:
            return None
    return _DONE
