"""Amazon Bedrock: API keys of an IAM user, which are its service-specific credentials (IAM query API of 2010-05-08).

    CreateServiceSpecificCredential   UserName, ServiceName, CredentialAgeDays? → the key, shown once
    ListServiceSpecificCredentials    UserName, ServiceName
    UpdateServiceSpecificCredential   Status = Active | Inactive
    DeleteServiceSpecificCredential

A user has two at most, and they carry no name. So the user is to be the gateway's alone: every credential of it but the
one in use is idle, the leftover of a lost answer too, and makes way for the next one. An idle one is deleted and a new
one made, rather than reset: a reset one would keep its id, and a late step of an older version would hit the new
secret. IAM is eventually consistent: what it answers may lag behind, and a new key works only after a while.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlencode
from xml.etree import ElementTree as ET

from msgspec import Meta, Struct

from auth.secret import Secret
from tenants.sigv4 import signed_post
from tenants.sources.protocol import (
    Capabilities,
    CredentialRefused,
    HttpCalls,
    ProviderKeyMade,
    SourceAway,
    SourceRefused,
)
from tenants.wrappers.aws_identity import AwsCredentials

API_VERSION = "2010-05-08"
SERVICE = "bedrock.amazonaws.com"
MOST = 2
NONE = "none"
_USER = re.compile(r"[\w+=,.@-]{1,64}", re.ASCII)
_CREDENTIAL = re.compile(r"(?P<id>[A-Z0-9]{16,128}):(?P<secret>[!-9;-~]{8,})(?::(?P<token>[!-9;-~]+))?")
_PASSING = frozenset(
    {
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "ServiceUnavailable",
        "LimitExceeded",
        "EntityTemporarilyUnmodifiable",
        "ConcurrentModification",
    }
)
"""A limit passes too: a credential that was just deleted is still counted for a while."""


class AwsSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The user whose credentials the keys are; `in_use` is the id of the one given by hand, or "none".

    Keys end after `age_days` whatever happens, if it is given: leave time for a rotation that fails for a while.
    `region` is where the IAM of the partition is (us-east-1, cn-north-1, us-gov-west-1).
    """

    user_name: str
    in_use: str
    age_days: Annotated[int, Meta(ge=1, le=36600)] | None = None
    region: str = "us-east-1"
    base_url: str = "https://iam.amazonaws.com"


class AwsDriver:
    """Needs an access key, `ACCESS_KEY_ID:SECRET_ACCESS_KEY`, with the four rights on that user."""

    capabilities = Capabilities(finds=False, repeatable=True, disables=True, slots=MOST)

    def __init__(
        self, settings: AwsSettings, credential: Secret, http: HttpCalls, now_unix: Callable[[], float]
    ) -> None:
        if not _USER.fullmatch(settings.user_name):
            raise SourceRefused("user_name must be the name of an IAM user")
        found = _CREDENTIAL.fullmatch(credential.reveal())
        if found is None:
            raise CredentialRefused("must be ACCESS_KEY_ID:SECRET_ACCESS_KEY")
        token = found["token"]
        self._keys = AwsCredentials(found["id"], Secret(found["secret"]), None if token is None else Secret(token))
        self._settings = settings
        self._http = http
        self._now_unix = now_unix

    async def create(self, tag: str, *, in_use: str | None) -> ProviderKeyMade:
        """Delete what is idle when there is no room, and make a credential."""
        del tag
        kept = in_use or self._settings.in_use
        rows = await self._listed()
        idle = [ref for ref in rows if ref != kept]
        for spare in idle[: max(0, len(rows) + 1 - MOST)]:
            await self.revoke(spare)
        age = {} if self._settings.age_days is None else {"CredentialAgeDays": str(self._settings.age_days)}
        made = _need(await self._call("CreateServiceSpecificCredential", ServiceName=SERVICE, **age))
        ref, secret = _text(made, "ServiceSpecificCredentialId"), _text(made, "ServiceCredentialSecret")
        if ref is None or secret is None:
            raise SourceAway("IAM made a credential and did not tell its secret")  # the next attempt replaces it
        return ProviderKeyMade(ref, Secret(secret))

    async def find(self, tag: str) -> ProviderKeyMade | None:
        """Nothing carries a tag."""
        del tag
        return None

    async def disable(self, ref: str) -> None:
        """Make it inactive."""
        await self._call("UpdateServiceSpecificCredential", ServiceSpecificCredentialId=ref, Status="Inactive")

    async def enable(self, ref: str) -> None:
        """Make it active again."""
        await self._call("UpdateServiceSpecificCredential", ServiceSpecificCredentialId=ref, Status="Active")

    async def revoke(self, ref: str) -> None:
        """Delete it."""
        await self._call("DeleteServiceSpecificCredential", ServiceSpecificCredentialId=ref)

    async def _listed(self) -> list[str]:
        """Return the ids, the oldest first."""
        document = _need(await self._call("ListServiceSpecificCredentials", ServiceName=SERVICE))
        rows = sorted(document.iter("member"), key=lambda row: _text(row, "CreateDate") or "")
        return [ref for row in rows if (ref := _text(row, "ServiceSpecificCredentialId")) is not None]

    async def _call(self, action: str, **members: str) -> ET.Element | None:
        """Send one action; None when the credential that it names does not exist."""
        form = {"Action": action, "Version": API_VERSION, "UserName": self._settings.user_name, **members}
        body = urlencode(form).encode()
        url = self._settings.base_url.rstrip("/") + "/"
        headers = signed_post(
            url,
            body,
            {"content-type": "application/x-www-form-urlencoded; charset=utf-8"},
            service="iam",
            region=self._settings.region,
            credentials=self._keys,
            now=datetime.fromtimestamp(self._now_unix(), UTC),
        )
        answer = await self._http.call("POST", url, headers=headers, body=body)
        if answer.status >= 500 or answer.status == 429:
            raise SourceAway(f"IAM answered {answer.status} to {action}")
        document = _parse(answer.body)
        if 200 <= answer.status < 300:
            if document is None:
                raise SourceAway(f"IAM answered {action} with something else than expected")
            return document
        code = None if document is None else _text(document, "Code")
        if code == "NoSuchEntity" and "ServiceSpecificCredentialId" in members:
            return None
        if code in _PASSING:
            raise SourceAway(f"IAM answered {answer.status} {code} to {action}")
        raise SourceRefused(f"IAM answered {answer.status} to {action}: {code or 'no reason given'}")


def _parse(body: bytes) -> ET.Element | None:
    """Read XML without a document type, in which alone entities could be declared; names lose their namespace."""
    if b"<!" in body:
        return None
    try:
        root = ET.fromstring(body)  # noqa: S314 -- see above
    except ET.ParseError:
        return None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def _text(element: ET.Element, name: str) -> str | None:
    found = next(element.iter(name), None)
    return None if found is None or not found.text else found.text.strip()


def _need(element: ET.Element | None) -> ET.Element:
    if element is None:
        raise SourceRefused("IAM knows no such user")
    return element
