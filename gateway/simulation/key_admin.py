"""Finds the admin API that a call belongs to, and checks its credential."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

from gateway.simulation import (
    admin_anthropic,
    admin_aws,
    admin_azure,
    admin_federation,
    admin_gcp,
    admin_openai,
    admin_openrouter,
    admin_webhook,
    admin_xai,
)
from gateway.simulation.keysmith import AdminCall, Errand

_FACES: tuple[Callable[[AdminCall], Errand | None], ...] = (
    admin_openai.errand,
    admin_anthropic.errand,
    admin_openrouter.errand,
    admin_xai.errand,
    admin_azure.errand,
    admin_federation.errand,
    admin_aws.errand,
    admin_gcp.errand,
    admin_webhook.errand,
)


def find(method: str, path: str, query: bytes, headers: Mapping[str, str], body: bytes) -> Errand | None:
    """Return what an admin call wants; None for every other path."""
    is_form = headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
    call = AdminCall(
        method,
        [unquote(step) for step in path.strip("/").split("/")],
        dict(parse_qsl(query.decode("latin-1"))),
        {} if is_form else _document(body),
        dict(parse_qsl(body.decode("latin-1"))) if is_form else {},
        headers,
        body,
        path,
        query.decode("latin-1"),
    )
    return next((errand for face in _FACES if (errand := face(call)) is not None), None)


def allowed(errand: Errand, headers: Mapping[str, str], admin_secret: str) -> bool:
    """Tell whether the call carries the admin credential, or the token that was got with it."""
    if errand.check is not None:
        return errand.check(admin_secret)
    given = errand.credential
    if given is None:
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
    return given == (admin_azure.ENTRA_TOKEN if errand.entra else admin_secret)


def _document(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any]) if body else {}
    except msgspec.MsgspecError:
        return {}
