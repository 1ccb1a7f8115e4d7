"""Anthropic's admin API, which makes no keys and switches those that people made.

    POST /v1/organizations/api_keys/{id}   {"status": "active" | "inactive" | "archived"}

Configured keys are known by their names. Source: Anthropic Admin API, "Update API Key".
"""

from __future__ import annotations

from gateway.simulation.keysmith import AdminCall, Errand, Keysmith, Step, done, missing, refused
from gateway.simulation.wire import Reply

_STEPS = {"active": Step.ENABLE, "inactive": Step.DISABLE, "archived": Step.REVOKE}


def errand(call: AdminCall) -> Errand | None:
    """Say what a call wants, or None when it is not this one."""
    match call.method, call.steps:
        case "POST", ["v1", "organizations", "api_keys", ref]:
            status = str(call.document.get("status"))
            return Errand(_STEPS.get(status, Step.FIND), lambda smith: _switch(smith, ref, status))
    return None


def _switch(smith: Keysmith, ref: str, status: str) -> Reply:
    if status not in _STEPS:
        return refused(400, "status: Input should be 'active', 'inactive' or 'archived'")
    if not smith.switch_configured(ref, enabled=status == "active"):
        return missing("API key")
    return done({"type": "api_key", "id": ref, "status": status})
