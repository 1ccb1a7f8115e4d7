"""Where AWS credentials come from: the first of these that the environment names, as the AWS SDKs look for them.

1. fixed keys
2. a web identity (IRSA): the pod's projected token is exchanged at STS, `AssumeRoleWithWebIdentity`, unsigned
3. container credentials: EKS Pod Identity and ECS, an agent on a link-local address
4. the instance's role (EC2 IMDSv2): a session token first, then the role's name, then its credentials
"""

from __future__ import annotations

import html
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlencode, urlsplit

from msgspec import Struct

from auth.secret import Secret
from tenants.errors import KekUnavailable, KeyringUnsafe
from tenants.sources.protocol import HttpCalls
from tenants.wrappers.renewal import FORM, Lasting, Renewed, call, decode, read_identity

ECS: Final = "http://169.254.170.2"
IMDS: Final = "http://169.254.169.254"
_AGENTS: Final = frozenset({"169.254.170.2", "169.254.170.23", "fd00:ec2::23", "127.0.0.1", "::1", "localhost"})
"""Where plain HTTP may be spoken with an agent: addresses that never leave the host."""
_IMDS_SESSION_S: Final = 21600


@dataclass(frozen=True, slots=True)
class AwsCredentials:
    """Temporary or fixed credentials, as a credential provider hands them out."""

    access_key_id: str
    secret_access_key: Secret
    session_token: Secret | None = None


AwsCredentialSource = Callable[[], Awaitable[AwsCredentials]]
"""Gives credentials that are good now; raises `KekUnavailable`."""


class _Given(Struct, rename="pascal"):
    access_key_id: str
    secret_access_key: str
    token: str
    expiration: datetime

    def lasting(self) -> Lasting[AwsCredentials]:
        return Lasting(
            AwsCredentials(self.access_key_id, Secret(self.secret_access_key), Secret(self.token)), self.expiration
        )


def fixed(credentials: AwsCredentials) -> AwsCredentialSource:
    """Give the same credentials always."""

    async def give() -> AwsCredentials:
        return credentials

    return give


def web_identity(
    http: HttpCalls,
    *,
    role_arn: str,
    token_path: Path,
    session_name: str,
    region: str,
    now: Callable[[], datetime],
    endpoint: str | None = None,
) -> AwsCredentialSource:
    """Assume a role with the workload's own token (IRSA); `endpoint` overrides the region's STS."""
    url = endpoint or f"https://sts.{region}.amazonaws.com/"

    async def fetch() -> Lasting[AwsCredentials]:
        form = {
            "Action": "AssumeRoleWithWebIdentity",
            "Version": "2011-06-15",
            "RoleArn": role_arn,
            "RoleSessionName": session_name,
            "WebIdentityToken": read_identity(token_path),
        }
        headers = FORM | {"accept": "text/xml"}
        answer = await call(http, "POST", url, "AWS STS", headers=headers, body=urlencode(form).encode())
        return _assumed(answer.body.decode("utf-8", "replace"))

    return Renewed(fetch, now=now)


def container(
    http: HttpCalls,
    url: str,
    *,
    now: Callable[[], datetime],
    token_path: Path | None = None,
    token: Secret | None = None,
) -> AwsCredentialSource:
    """Ask the agent of EKS Pod Identity or ECS; `token_path` or `token` goes along as it is."""
    parts = urlsplit(url)
    if parts.scheme != "https" and (parts.scheme != "http" or parts.hostname not in _AGENTS):
        raise KeyringUnsafe(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI is plain http to another host.",
            hint="It must be https, or an agent on a loopback or link-local address.",
        )

    async def fetch() -> Lasting[AwsCredentials]:
        headers = {"accept": "application/json"}
        if token_path is not None:
            headers["authorization"] = read_identity(token_path)
        elif token is not None:
            headers["authorization"] = token.reveal()
        answer = await call(http, "GET", url, "the container credentials agent", headers=headers)
        return decode(answer, _Given, "the container credentials agent").lasting()

    return Renewed(fetch, now=now)


def instance(http: HttpCalls, *, now: Callable[[], datetime], endpoint: str = IMDS) -> AwsCredentialSource:
    """Ask the instance's metadata service, by sessions alone (IMDSv2)."""
    roles = f"{endpoint}/latest/meta-data/iam/security-credentials/"

    async def fetch() -> Lasting[AwsCredentials]:
        what = "the EC2 metadata service"
        lifetime = {"x-aws-ec2-metadata-token-ttl-seconds": str(_IMDS_SESSION_S)}
        session = await call(http, "PUT", f"{endpoint}/latest/api/token", what, headers=lifetime)
        headers = {"x-aws-ec2-metadata-token": session.body.decode("latin-1").strip()}
        listed = await call(http, "GET", roles, what, headers=headers)
        role = listed.body.decode("utf-8", "replace").strip().partition("\n")[0]
        if not re.fullmatch(r"[\w+=,.@-]{1,128}", role):
            raise KekUnavailable("No credentials for the key-encryption key: the instance has no role.")
        answer = await call(http, "GET", roles + role, what, headers=headers)
        return decode(answer, _Given, what).lasting()

    return Renewed(fetch, now=now)


def _assumed(document: str) -> Lasting[AwsCredentials]:
    """Take the credentials out of STS's XML: four elements without attributes, each there once."""
    found = {}
    for name in ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration"):
        element = re.search(rf"<{name}>\s*([^<]+?)\s*</{name}>", document)
        if element is None:
            raise KekUnavailable("No credentials for the key-encryption key: AWS STS's answer cannot be read.")
        found[name] = html.unescape(element[1])
    try:
        expires_at = datetime.fromisoformat(found["Expiration"])
    except ValueError:
        raise KekUnavailable("No credentials for the key-encryption key: AWS STS's answer cannot be read.") from None
    key = AwsCredentials(found["AccessKeyId"], Secret(found["SecretAccessKey"]), Secret(found["SessionToken"]))
    return Lasting(key, expires_at)
