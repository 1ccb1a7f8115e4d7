"""Azure's management API: an account with two keys, one of which is regenerated at a time, and the tokens for it.

    POST /{directory}/oauth2/v2.0/token   client credentials → {"access_token"}
    POST /subscriptions/…/providers/Microsoft.CognitiveServices/accounts/{account}/regenerateKey   {"keyName"}
    POST /subscriptions/…/providers/Microsoft.CognitiveServices/accounts/{account}/listKeys

Source: Azure REST API reference, Cognitive Services accounts; Microsoft identity platform, client credentials flow.
"""

from __future__ import annotations

from gateway.simulation.keysmith import SLOTS, AdminCall, Errand, Keysmith, Step, done, refused
from gateway.simulation.wire import Reply

ENTRA_TOKEN = "sim-entra-token"  # noqa: S105 - of a simulation


def errand(call: AdminCall) -> Errand | None:
    """Say what a call wants, or None when it is not one of these."""
    match call.method, call.steps:
        case "POST", [_, "oauth2", "v2.0", "token"]:
            token = {"token_type": "Bearer", "expires_in": 3599, "access_token": ENTRA_TOKEN}
            return Errand(Step.TOKEN, lambda _: done(token), credential=call.form.get("client_secret", ""))
        case "POST", ["subscriptions", _, "resourceGroups", _, "providers", _, "accounts", account, "regenerateKey"]:
            return Errand(Step.CREATE, lambda smith: _regenerate(smith, account, call), entra=True)
        case "POST", ["subscriptions", _, "resourceGroups", _, "providers", _, "accounts", account, "listKeys"]:
            return Errand(Step.FIND, lambda smith: _shown(smith.slots(account)), entra=True)
    return None


def _regenerate(smith: Keysmith, account: str, call: AdminCall) -> Reply:
    slot = call.document.get("keyName")
    if slot not in SLOTS or "api-version" not in call.query:
        return refused(400, "keyName must be Key1 or Key2, and api-version must be given")
    return _shown(smith.regenerate(account, str(slot)))


def _shown(slots: dict[str, str]) -> Reply:
    return done({"key1": slots["Key1"], "key2": slots["Key2"]})
