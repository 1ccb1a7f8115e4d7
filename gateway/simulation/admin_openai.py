"""OpenAI's admin API: service accounts of a project, each with one key that is shown once.

    POST   /v1/organization/projects/{project}/service_accounts   {"name"}
    GET    /v1/organization/projects/{project}/service_accounts?limit=&after=
    DELETE /v1/organization/projects/{project}/service_accounts/{id}

Source: OpenAI API reference, Administration, "Project service accounts".
"""

from __future__ import annotations

from gateway.simulation.keysmith import AdminCall, Errand, Keysmith, Minted, Step, done, missing, refused
from gateway.simulation.wire import Reply

_OBJECT = "organization.project.service_account"


def errand(call: AdminCall) -> Errand | None:
    """Say what a call wants, or None when it is not one of these."""
    match call.method, call.steps:
        case "POST", ["v1", "organization", "projects", project, "service_accounts"]:
            return Errand(Step.CREATE, lambda smith: _create(smith, project, call))
        case "GET", ["v1", "organization", "projects", project, "service_accounts"]:
            return Errand(Step.FIND, lambda smith: _page(smith, project, call))
        case "DELETE", ["v1", "organization", "projects", _, "service_accounts", ref]:
            return Errand(Step.REVOKE, lambda smith: _delete(smith, ref))
    return None


def _create(smith: Keysmith, project: str, call: AdminCall) -> Reply:
    name = call.document.get("name")
    if not isinstance(name, str) or not name:
        return refused(400, "Missing required parameter: 'name'.")
    key = smith.make(name, project)
    shown = {"object": f"{_OBJECT}.api_key", "id": f"key_{key.ref}", "name": "Secret Key", "value": key.secret}
    return done({**_shown(key), "role": "member", "api_key": shown})


def _page(smith: Keysmith, project: str, call: AdminCall) -> Reply:
    try:
        size = int(call.query.get("limit", "20"))
    except ValueError:
        size = 0
    if not 1 <= size <= 100:
        return refused(400, "limit must be from 1 to 100")
    rows, more = smith.page(project, call.query.get("after"), size)
    ends = {"first_id": rows[0].ref, "last_id": rows[-1].ref} if rows else {"first_id": None, "last_id": None}
    return done({"object": "list", "data": [_shown(key) for key in rows], "has_more": more, **ends})


def _delete(smith: Keysmith, ref: str) -> Reply:
    if smith.delete(ref) is None:
        return missing("Service account")
    return done({"object": f"{_OBJECT}.deleted", "id": ref, "deleted": True})


def _shown(key: Minted) -> dict[str, str]:
    return {"object": _OBJECT, "id": key.ref, "name": key.tag}
