"""OpenRouter's management API: keys by hash.

    POST   /api/v1/keys          {"name", "limit"?} → 201, the key shown once
    GET    /api/v1/keys?offset=&include_disabled=
    PATCH  /api/v1/keys/{hash}   {"disabled"}
    DELETE /api/v1/keys/{hash}

Source: OpenRouter documentation, "Management API keys".
"""

from __future__ import annotations

from typing import Any

from gateway.simulation.keysmith import AdminCall, Errand, Keysmith, Minted, Step, done, missing, refused
from gateway.simulation.wire import Reply

PAGE = 100
SCOPE = "openrouter"


def errand(call: AdminCall) -> Errand | None:
    """Say what a call wants, or None when it is not one of these."""
    match call.method, call.steps:
        case "POST", ["api", "v1", "keys"]:
            return Errand(Step.CREATE, lambda smith: _create(smith, call))
        case "GET", ["api", "v1", "keys"]:
            return Errand(Step.FIND, lambda smith: _page(smith, call))
        case "PATCH", ["api", "v1", "keys", ref]:
            disabled = call.document.get("disabled") is True
            return Errand(Step.DISABLE if disabled else Step.ENABLE, lambda smith: _switch(smith, ref, disabled))
        case "DELETE", ["api", "v1", "keys", ref]:
            return Errand(Step.REVOKE, lambda smith: _delete(smith, ref))
    return None


def _create(smith: Keysmith, call: AdminCall) -> Reply:
    name = call.document.get("name")
    if not isinstance(name, str) or not name:
        return refused(400, "name is required")
    key = smith.make(name, SCOPE)
    return done({"data": _shown(key), "key": key.secret}, 201)


def _page(smith: Keysmith, call: AdminCall) -> Reply:
    offset = call.query.get("offset", "0")
    if not offset.isdecimal():
        return refused(400, "offset must be a number")
    rows, _ = smith.page(SCOPE, None, int(offset) + PAGE)
    with_disabled = call.query.get("include_disabled") == "true"
    return done({"data": [_shown(key) for key in rows[int(offset) :] if key.enabled or with_disabled]})


def _switch(smith: Keysmith, ref: str, disabled: bool) -> Reply:
    key = smith.switch(ref, enabled=not disabled)
    return missing("Key") if key is None else done({"data": _shown(key)})


def _delete(smith: Keysmith, ref: str) -> Reply:
    return missing("Key") if smith.delete(ref) is None else done({"deleted": True})


def _shown(key: Minted) -> dict[str, Any]:
    return {"hash": key.ref, "name": key.tag, "label": f"{key.secret[:6]}...", "disabled": not key.enabled}
