"""xAI's management API: keys of a team.

    POST   /auth/teams/{team}/api-keys   {"name", "acls"} → the key shown once
    GET    /auth/teams/{team}/api-keys?pageSize=&paginationToken=
    PUT    /auth/api-keys/{id}           {"apiKey": {"disabled"}, "fieldMask": "disabled"}
    DELETE /auth/api-keys/{id}

Source: xAI documentation, "Management API", authentication endpoints.
"""

from __future__ import annotations

from typing import Any

from gateway.simulation.keysmith import AdminCall, Errand, Keysmith, Minted, Step, done, missing, refused
from gateway.simulation.wire import Reply


def errand(call: AdminCall) -> Errand | None:
    """Say what a call wants, or None when it is not one of these."""
    match call.method, call.steps:
        case "POST", ["auth", "teams", team, "api-keys"]:
            return Errand(Step.CREATE, lambda smith: _create(smith, team, call))
        case "GET", ["auth", "teams", team, "api-keys"]:
            return Errand(Step.FIND, lambda smith: _page(smith, team, call))
        case "PUT", ["auth", "api-keys", ref]:
            key = call.document.get("apiKey")
            disabled = isinstance(key, dict) and key.get("disabled") is True
            return Errand(Step.DISABLE if disabled else Step.ENABLE, lambda smith: _switch(smith, ref, call, disabled))
        case "DELETE", ["auth", "api-keys", ref]:
            return Errand(Step.REVOKE, lambda smith: _delete(smith, ref))
    return None


def _create(smith: Keysmith, team: str, call: AdminCall) -> Reply:
    name, acls = call.document.get("name"), call.document.get("acls")
    if not isinstance(name, str) or not name or not isinstance(acls, list) or not acls:
        return refused(400, "name and acls are required")
    key = smith.make(name, team)
    return done({**_shown(key), "apiKey": key.secret})


def _page(smith: Keysmith, team: str, call: AdminCall) -> Reply:
    size = call.query.get("pageSize", "10")
    if not size.isdecimal() or int(size) < 1:
        return refused(400, "pageSize must be a positive number")
    rows, more = smith.page(team, call.query.get("paginationToken"), min(int(size), 100))
    return done({"apiKeys": [_shown(key) for key in rows], "paginationToken": rows[-1].ref if more else ""})


def _switch(smith: Keysmith, ref: str, call: AdminCall, disabled: bool) -> Reply:
    if call.document.get("fieldMask") != "disabled":
        return refused(400, "fieldMask must name the changed fields")
    key = smith.switch(ref, enabled=not disabled)
    return missing("API key") if key is None else done(_shown(key))


def _delete(smith: Keysmith, ref: str) -> Reply:
    return missing("API key") if smith.delete(ref) is None else done({})


def _shown(key: Minted) -> dict[str, Any]:
    return {"apiKeyId": key.ref, "name": key.tag, "redactedApiKey": f"{key.secret[:6]}...", "disabled": not key.enabled}
