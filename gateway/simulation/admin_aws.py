"""AWS IAM's query API as far as Bedrock's API keys go: two service-specific credentials a user, signed requests, XML.

    POST /   Action=CreateServiceSpecificCredential | ListServiceSpecificCredentials |
             UpdateServiceSpecificCredential | DeleteServiceSpecificCredential

Requests are signed by Signature Version 4 with the access key `SIM_KEY_ID` and the provider's `admin_secret`. Source:
AWS IAM API reference, version 2010-05-08.
"""

from __future__ import annotations

import hmac
import re
from datetime import UTC, datetime
from functools import partial
from xml.sax.saxutils import escape

from auth.secret import Secret
from gateway.simulation.keysmith import AdminCall, Errand, Keysmith, Minted, Step
from gateway.simulation.wire import Reply
from tenants.sigv4 import signed_post
from tenants.wrappers.aws_identity import AwsCredentials

SIM_KEY_ID = "AKIASIMULATED0000001"
MOST = 2
_STEPS = {
    "CreateServiceSpecificCredential": Step.CREATE,
    "ListServiceSpecificCredentials": Step.FIND,
    "DeleteServiceSpecificCredential": Step.REVOKE,
}
_SIGNATURE = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<id>\w+)/\d{8}/(?P<region>[\w-]+)/iam/aws4_request, "
    r"SignedHeaders=(?P<names>[\w;-]+), Signature=[0-9a-f]{64}"
)


def errand(call: AdminCall) -> Errand | None:
    """Say what a call wants, or None when it is not one of these."""
    action = call.form.get("Action", "")
    if call.method != "POST" or call.steps != [""] or not action:
        return None
    step = _STEPS.get(action)
    if action == "UpdateServiceSpecificCredential":
        step = Step.ENABLE if call.form.get("Status") == "Active" else Step.DISABLE
    run = partial(_run, call=call, action=action)
    return Errand(step or Step.FIND, run, check=partial(_is_signed, call), refuse=_forbidden)


def _is_signed(call: AdminCall, admin_secret: str) -> bool:
    given = call.headers.get("authorization", "")
    found = _SIGNATURE.fullmatch(given)
    if found is None or found["id"] != SIM_KEY_ID:
        return False
    names = set(found["names"].split(";"))
    if not {"host", "x-amz-date", "content-type"} <= names:
        return False
    sent = {name: call.headers.get(name, "") for name in names - {"host", "x-amz-date"}}
    try:
        now = datetime.strptime(call.headers.get("x-amz-date", ""), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return False
    right = signed_post(
        f"http://{call.headers.get('host', '')}{call.raw_path}",
        call.body,
        sent,
        service="iam",
        region=found["region"],
        credentials=AwsCredentials(SIM_KEY_ID, Secret(admin_secret)),
        now=now,
    )
    return hmac.compare_digest(right["authorization"], given)


def _run(smith: Keysmith, *, call: AdminCall, action: str) -> Reply:
    user, ref = call.form.get("UserName", ""), call.form.get("ServiceSpecificCredentialId", "")
    if not user:
        return _error(400, "ValidationError", "UserName is required")
    held = smith.page(user, None, MOST + 1)[0]
    match action:
        case "CreateServiceSpecificCredential":
            if call.form.get("ServiceName") != "bedrock.amazonaws.com":
                return _error(404, "NotSupportedService", "The service does not support these credentials")
            if len(held) >= MOST:
                return _error(409, "LimitExceeded", f"Cannot exceed the quota of {MOST} a user")
            key = smith.make(f"{user}-at-{len(smith.keys)}", user)
            secret = f"<ServiceCredentialSecret>{escape(key.secret)}</ServiceCredentialSecret>"
            return _answer(action, f"<ServiceSpecificCredential>{_shown(key)}{secret}</ServiceSpecificCredential>")
        case "ListServiceSpecificCredentials":
            rows = "".join(f"<member>{_shown(key)}</member>" for key in held)
            return _answer(action, f"<ServiceSpecificCredentials>{rows}</ServiceSpecificCredentials>")
        case "UpdateServiceSpecificCredential":
            status = call.form.get("Status")
            if status not in ("Active", "Inactive"):
                return _error(400, "ValidationError", "Status must be Active or Inactive")
            if not any(key.ref == ref for key in held):
                return _error(404, "NoSuchEntity", f"The credential {escape(ref)} cannot be found")
            smith.switch(ref, enabled=status == "Active")
            return _answer(action, "")
        case "DeleteServiceSpecificCredential":
            if not any(key.ref == ref for key in held):
                return _error(404, "NoSuchEntity", f"The credential {escape(ref)} cannot be found")
            smith.delete(ref)
            return _answer(action, "")
    return _error(400, "InvalidAction", "Could not find the operation")


def _shown(key: Minted) -> str:
    made = datetime.fromtimestamp(key.made_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return (
        f"<UserName>{escape(key.scope)}</UserName><Status>{'Active' if key.enabled else 'Inactive'}</Status>"
        f"<ServiceName>bedrock.amazonaws.com</ServiceName><CreateDate>{made}</CreateDate>"
        f"<ServiceSpecificCredentialId>{key.ref}</ServiceSpecificCredentialId>"
        f"<ServiceCredentialAlias>{escape(key.scope)}-at-000000000000</ServiceCredentialAlias>"
    )


def _answer(action: str, inner: str) -> Reply:
    body = (
        f'<{action}Response xmlns="https://iam.amazonaws.com/doc/2010-05-08/"><{action}Result>{inner}</{action}Result>'
        f"<ResponseMetadata><RequestId>sim</RequestId></ResponseMetadata></{action}Response>"
    )
    return Reply(body.encode(), content_type="text/xml")


def _error(status: int, code: str, message: str) -> Reply:
    body = (
        '<ErrorResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/"><Error><Type>Sender</Type>'
        f"<Code>{code}</Code><Message>{message}</Message></Error><RequestId>sim</RequestId></ErrorResponse>"
    )
    return Reply(body.encode(), status=status, content_type="text/xml")


def _forbidden() -> Reply:
    return _error(403, "SignatureDoesNotMatch", "The request signature does not match")
