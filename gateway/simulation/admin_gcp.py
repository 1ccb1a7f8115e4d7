"""Google's API Keys API v2 and the token endpoint of service accounts.

    POST   /token                                                    grant jwt-bearer → {"access_token"}
    POST   /v2/projects/{project}/locations/global/keys?keyId=       → operation
    GET    /v2/projects/{project}/locations/global/keys/{id}         DELETE and POST …:undelete → operation
    GET    /v2/projects/{project}/locations/global/keys/{id}/keyString
    GET    /v2/operations/{id}                                       done when it is asked for the second time

The assertion must be signed by the service account whose public key the provider was given (`service_account_key`).
Source: Google Cloud, API Keys API reference; OAuth 2.0 for service accounts.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from joserfc import jwk, jwt
from joserfc.errors import JoseError

from gateway.simulation.keysmith import AdminCall, Errand, Keysmith, Minted, Step, done
from gateway.simulation.wire import Reply

GOOGLE_TOKEN = "sim-google-token"  # noqa: S105 - of a simulation
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"


def errand(call: AdminCall) -> Errand | None:
    """Say what a call wants, or None when it is not one of these."""
    match call.method, call.steps:
        case "POST", ["token"]:
            token = {"access_token": GOOGLE_TOKEN, "expires_in": 3599, "token_type": "Bearer"}
            return Errand(Step.TOKEN, lambda smith: _token(smith, call, token), credential="")
        case "GET", ["v2", "operations", ref]:
            return _errand(call, Step.FIND, lambda smith: _operation(smith, ref))
        case "POST", ["v2", "projects", project, "locations", "global", "keys"]:
            return _errand(call, Step.CREATE, partial(_create, project=project, call=call))
        case "GET", ["v2", "projects", project, "locations", "global", "keys", ref]:
            return _errand(call, Step.FIND, lambda smith: _found(smith, project, ref))
        case "GET", ["v2", "projects", project, "locations", "global", "keys", ref, "keyString"]:
            return _errand(call, Step.FIND, lambda smith: _string(smith, project, ref))
        case "DELETE", ["v2", "projects", project, "locations", "global", "keys", ref]:
            return _errand(call, Step.DISABLE, lambda smith: _switch(smith, project, ref, enabled=False))
        case "POST", ["v2", "projects", project, "locations", "global", "keys", ref] if ref.endswith(":undelete"):
            name = ref.removesuffix(":undelete")
            return _errand(call, Step.ENABLE, lambda smith: _switch(smith, project, name, enabled=True))
    return None


def _errand(call: AdminCall, step: Step, run: Any) -> Errand:
    right = f"Bearer {GOOGLE_TOKEN}"
    return Errand(step, run, check=lambda _: call.headers.get("authorization") == right, refuse=_unauthenticated)


def _token(smith: Keysmith, call: AdminCall, token: dict[str, Any]) -> Reply:
    try:
        key = jwk.RSAKey.import_key(smith.service_account_key)
        claims = jwt.decode(call.form.get("assertion", ""), key, algorithms=["RS256"]).claims
    except (JoseError, ValueError):
        return _oauth("invalid_grant", "Invalid JWT Signature.")
    if call.form.get("grant_type") != _GRANT or not claims.get("scope"):
        return _oauth("invalid_request", "Missing grant_type or scope.")
    if not str(claims.get("aud", "")).endswith("/token") or not claims["iat"] <= smith.now() + 60 < claims["exp"] + 60:
        return _oauth("invalid_grant", "Token must be a short-lived token.")
    return done(token)


def _create(smith: Keysmith, *, project: str, call: AdminCall) -> Reply:
    ref = call.query.get("keyId", "")
    targets = call.document.get("restrictions", {}).get("apiTargets", [])
    if not ref or not ref[0].isalpha() or not targets:
        return _error(400, "INVALID_ARGUMENT", "keyId and restrictions.apiTargets are needed here")
    if _key(smith, project, ref) is not None:
        return _error(409, "ALREADY_EXISTS", "Requested entity already exists")
    smith.make(ref, project, ref=_ref(project, ref))
    return _started(smith, project, ref)


def _found(smith: Keysmith, project: str, ref: str) -> Reply:
    key = _key(smith, project, ref)
    return _missing() if key is None else done(_shown(key, project, ref))


def _string(smith: Keysmith, project: str, ref: str) -> Reply:
    key = _key(smith, project, ref)
    return _missing() if key is None or not key.enabled else done({"keyString": key.secret})


def _switch(smith: Keysmith, project: str, ref: str, *, enabled: bool) -> Reply:
    key = _key(smith, project, ref)
    if key is None:
        return _missing()
    if key.enabled is enabled:
        return _error(400, "FAILED_PRECONDITION", "The key is in that state already")
    smith.switch(key.ref, enabled=enabled)
    return _started(smith, project, ref)


def _started(smith: Keysmith, project: str, ref: str) -> Reply:
    name = f"akmf.{len(smith.operations)}"
    smith.operations[name] = (project, ref)
    return done({"name": f"operations/{name}"})


def _operation(smith: Keysmith, name: str) -> Reply:
    target = smith.operations.pop(name, None)
    if target is not None:
        smith.operations[f"{name}!"] = target
        return done({"name": f"operations/{name}", "done": False})
    target = smith.operations.get(f"{name}!")
    key = None if target is None else _key(smith, *target)
    if target is None or key is None:
        return _missing()
    return done({"name": f"operations/{name}", "done": True, "response": _shown(key, *target)})


def _shown(key: Minted, project: str, ref: str) -> dict[str, Any]:
    shown = {"name": f"projects/{project}/locations/global/keys/{ref}", "uid": key.name, "displayName": key.tag}
    return shown if key.enabled else {**shown, "deleteTime": "2026-01-01T00:00:00Z"}


def _key(smith: Keysmith, project: str, ref: str) -> Minted | None:
    return smith.keys.get(_ref(project, ref))


def _ref(project: str, ref: str) -> str:
    return f"{project}/{ref}"


def _error(status: int, word: str, message: str) -> Reply:
    reply = done({"error": {"code": status, "status": word, "message": message}})
    return Reply(reply.body, status=status)


def _missing() -> Reply:
    return _error(404, "NOT_FOUND", "Requested entity was not found.")


def _unauthenticated() -> Reply:
    return _error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")


def _oauth(error: str, description: str) -> Reply:
    reply = done({"error": error, "error_description": description})
    return Reply(reply.body, status=400)
