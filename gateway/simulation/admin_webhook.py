"""A tenant's own key endpoint, as the `webhook` driver calls it: one signed POST for each step.

    POST /key-webhook/{scope}  {"action": "create" | "find", "tag"} | {"action": "disable" | "enable" | "revoke", "ref"}

A call is refused with 401 unless `llm-proxy-signature` is the HMAC of its body, keyed by the provider's `admin_secret`,
and at most five minutes old. A tag makes one key however often it is sent; what is gone answers 404. `find` does not
show the secret again. Source: docs/drivers.md, "A webhook".
"""

from __future__ import annotations

import hashlib
import hmac
import re
from functools import partial

from gateway.simulation.keysmith import AdminCall, Errand, Keysmith, Minted, Step, done, missing, refused
from gateway.simulation.wire import Reply

MOST_AGE_S = 300
_ACTIONS = {step.value: step for step in (Step.CREATE, Step.FIND, Step.DISABLE, Step.ENABLE, Step.REVOKE)}
# Checked here on its own, not with the driver's function: a mistake there must not be repeated by its judge.
_SIGNATURE = re.compile(r"t=(?P<at>\d{1,12}),v1=(?P<mac>[0-9a-f]{64})")


def errand(call: AdminCall) -> Errand | None:
    """Say what a call wants, or None when it is not this one."""
    match call.method, call.steps:
        case "POST", ["key-webhook", scope]:
            action = str(call.document.get("action"))
            run = partial(_run, scope=scope, action=action, call=call)
            return Errand(_ACTIONS.get(action, Step.FIND), run, check=partial(_is_signed, call))
    return None


def _is_signed(call: AdminCall, admin_secret: str) -> bool:
    found = _SIGNATURE.fullmatch(call.headers.get("llm-proxy-signature", ""))
    if found is None:
        return False
    right = hmac.new(admin_secret.encode(), found["at"].encode() + b"." + call.body, hashlib.sha256)
    return hmac.compare_digest(right.hexdigest(), found["mac"])


def _run(smith: Keysmith, *, scope: str, action: str, call: AdminCall) -> Reply:
    signed_at = int(call.headers["llm-proxy-signature"].split(",")[0].removeprefix("t="))
    if abs(smith.now() - signed_at) > MOST_AGE_S:
        return refused(401, f"The signature is more than {MOST_AGE_S} seconds old.")
    if action not in _ACTIONS:
        return refused(400, f"action must be one of {', '.join(_ACTIONS)}")
    named = "tag" if action in ("create", "find") else "ref"
    name = call.document.get(named)
    if not isinstance(name, str) or not name:
        return refused(400, f"{named} is required")
    if named == "ref":
        return _switch(smith, scope, name, action)
    held = next((key for key in _of(smith, scope) if key.tag == name), None)
    if action == "find":
        return done({} if held is None else {"ref": held.ref})
    key = held or smith.make(name, scope)
    return done({"ref": key.ref, "secret": key.secret})


def _switch(smith: Keysmith, scope: str, ref: str, action: str) -> Reply:
    if not any(key.ref == ref for key in _of(smith, scope)):
        return missing("key")
    if action == "revoke":
        smith.delete(ref)
    else:
        smith.switch(ref, enabled=action == "enable")
    return done({})


def _of(smith: Keysmith, scope: str) -> list[Minted]:
    return [key for key in smith.keys.values() if key.scope == scope]
