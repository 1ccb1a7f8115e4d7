"""Workloads' identities: what is sent to each cloud, when it is renewed, and what happens while the giver is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jwk, jwt

from auth.secret import Secret
from gateway.cloud_identity import aws_credentials, azure_tokens, gcp_token
from gateway.settings import read_settings
from gateway.upstream.guard import EgressPolicy, UnsafeUrl, check_base_url
from tenants.errors import KekUnavailable, KeyringUnsafe
from tenants.sources.protocol import HttpAnswer, SourceAway
from tenants.wrappers.aws_identity import AwsCredentials, container, instance, web_identity
from tenants.wrappers.azure_identity import application, managed
from tenants.wrappers.gcp_identity import SCOPE, from_file, from_metadata
from tenants.wrappers.renewal import MARGIN, RETRY, Lasting, Renewed

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass
class Clock:
    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


@dataclass(frozen=True)
class Sent:
    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        return {name: value for name, [value] in parse_qs(self.body.decode(), strict_parsing=True).items()}


@dataclass
class Giver:
    """Answers each URL (without its query) as told, and keeps what was asked."""

    answers: dict[str, HttpAnswer] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    away: bool = False

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        self.sent.append(Sent(method, url, dict(headers or {}), body or b""))
        if self.away:
            raise SourceAway("no answer")
        return self.answers[url.partition("?")[0]]


def ok(document: Any) -> HttpAnswer:
    return HttpAnswer(200, {}, document.encode() if isinstance(document, str) else json.dumps(document).encode())


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_renewed_before_its_end_once_for_all(clock: Clock) -> None:
    fetched = 0

    async def fetch() -> Lasting[int]:
        nonlocal fetched
        fetched += 1
        await asyncio.sleep(0)
        return Lasting(fetched, clock.now + timedelta(hours=1))

    renewed = Renewed(fetch, now=clock)
    assert await asyncio.gather(*(renewed() for _ in range(5))) == [1] * 5
    clock.now += timedelta(hours=1) - MARGIN - timedelta(seconds=1)
    assert await renewed() == 1
    clock.now += timedelta(seconds=1)
    assert await asyncio.gather(*(renewed() for _ in range(5))) == [2] * 5
    assert fetched == 2


async def test_a_giver_that_is_away_is_asked_now_and_then_until_the_end(clock: Clock) -> None:
    asked, away = 0, False

    async def fetch() -> Lasting[str]:
        nonlocal asked
        asked += 1
        if away:
            raise KekUnavailable("away")
        return Lasting("held", NOW + timedelta(hours=1))

    renewed = Renewed(fetch, now=clock)
    assert await renewed() == "held"
    away = True
    clock.now = NOW + timedelta(hours=1) - MARGIN
    assert await asyncio.gather(*(renewed() for _ in range(5))) == ["held"] * 5
    assert asked == 2
    clock.now += RETRY
    assert await renewed() == "held"
    assert asked == 3
    clock.now = NOW + timedelta(hours=1)
    with pytest.raises(KekUnavailable):
        await renewed()
    away = False
    assert await renewed() == "held"


ASSUMED = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <AssumeRoleWithWebIdentityResult>
    <SubjectFromWebIdentityToken>system:serviceaccount:llm:llm-proxy</SubjectFromWebIdentityToken>
    <Audience>sts.amazonaws.com</Audience>
    <AssumedRoleUser>
      <Arn>arn:aws:sts::123456789012:assumed-role/llm-proxy/llm-proxy</Arn>
      <AssumedRoleId>AROACLKWSDQRAOEXAMPLE:llm-proxy</AssumedRoleId>
    </AssumedRoleUser>
    <Credentials>
      <SessionToken>AQoDYXdzEE0a8ANXXXXXXXXNO1ewxE5TijQyp+IEXAMPLE==</SessionToken>
      <SecretAccessKey>wJalrXUtnFEMI/K7MDENG/bPxRfiCYzEXAMPLEKEY</SecretAccessKey>
      <Expiration>2026-01-02T04:04:05Z</Expiration>
      <AccessKeyId>ASgeIAIOSFODNN7EXAMPLE</AccessKeyId>
    </Credentials>
  </AssumeRoleWithWebIdentityResult>
  <ResponseMetadata><RequestId>ad4156e9-bce1-11e2-82e6-6b6efEXAMPLE</RequestId></ResponseMetadata>
</AssumeRoleWithWebIdentityResponse>"""


async def test_irsa_assumes_the_role_with_the_token_of_the_moment(tmp_path: Path, clock: Clock) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    http = Giver({"https://sts.eu-central-1.amazonaws.com/": ok(ASSUMED)})
    role = "arn:aws:iam::123456789012:role/llm-proxy"
    source = web_identity(
        http, role_arn=role, token_path=token, session_name="llm-proxy", region="eu-central-1", now=clock
    )
    assert await source() == AwsCredentials(
        "ASgeIAIOSFODNN7EXAMPLE",
        Secret("wJalrXUtnFEMI/K7MDENG/bPxRfiCYzEXAMPLEKEY"),
        Secret("AQoDYXdzEE0a8ANXXXXXXXXNO1ewxE5TijQyp+IEXAMPLE=="),
    )
    token.write_text("second\n")
    clock.now += timedelta(hours=1) - MARGIN
    await source()
    assert [each.form["WebIdentityToken"] for each in http.sent] == ["first", "second"]
    form = http.sent[0].form
    assert (form["Action"], form["Version"]) == ("AssumeRoleWithWebIdentity", "2011-06-15")
    assert (form["RoleArn"], form["RoleSessionName"]) == (role, "llm-proxy")
    assert "authorization" not in http.sent[0].headers, "the call is unsigned"


GIVEN = {
    "AccessKeyId": "ASIAEXAMPLE",
    "SecretAccessKey": "secret",
    "Token": "session",
    "Expiration": "2026-01-02T09:04:05Z",
}
EXPECTED = AwsCredentials("ASIAEXAMPLE", Secret("secret"), Secret("session"))


async def test_eks_pod_identity(tmp_path: Path, clock: Clock) -> None:
    url = "http://169.254.170.23/v1/credentials"
    (tmp_path / "token").write_text("projected\n")
    http = Giver({url: ok(GIVEN | {"AccountId": "123456789012"})})
    assert await container(http, url, now=clock, token_path=tmp_path / "token")() == EXPECTED
    assert http.sent[0].headers["authorization"] == "projected"


@pytest.mark.parametrize("url", ["http://203.0.113.9/x", "http://metadata.example/x", "ftp://169.254.170.2/x"])
def test_container_credentials_are_not_fetched_in_the_clear_from_elsewhere(url: str, clock: Clock) -> None:
    with pytest.raises(KeyringUnsafe):
        container(Giver(), url, now=clock)


async def test_ec2_by_sessions_alone(clock: Clock) -> None:
    roles = "http://169.254.169.254/latest/meta-data/iam/security-credentials/"
    http = Giver(
        {
            "http://169.254.169.254/latest/api/token": ok("session-token"),
            roles: ok("llm-proxy-role\n"),
            roles + "llm-proxy-role": ok(GIVEN | {"Code": "Success", "Type": "AWS-HMAC"}),
        }
    )
    assert await instance(http, now=clock)() == EXPECTED
    assert [(each.method, each.headers.get("x-aws-ec2-metadata-token")) for each in http.sent] == [
        ("PUT", None),
        ("GET", "session-token"),
        ("GET", "session-token"),
    ]
    http.answers[roles] = ok("../../elsewhere")
    with pytest.raises(KekUnavailable, match="no role"):
        await instance(http, now=clock)()


PAIR = rsa.generate_private_key(65537, 2048)
PEM = PAIR.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
GRANTED = ok({"access_token": "ya29.x", "expires_in": 3599, "token_type": "Bearer"})


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


async def test_a_google_service_account_signs_an_assertion(tmp_path: Path, clock: Clock) -> None:
    url = "https://oauth2.googleapis.com/token"
    document = {
        "type": "service_account",
        "client_email": "gateway@acme.iam.gserviceaccount.com",
        "private_key": PEM,
        "private_key_id": "kid-1",
        "token_uri": url,
    }
    http = Giver({url: GRANTED})
    source = from_file(http, write(tmp_path / "key.json", document), now=clock)
    assert await source() == Secret("ya29.x")
    form = http.sent[0].form
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    read = jwt.decode(form["assertion"], jwk.RSAKey.import_key(PEM), algorithms=["RS256"])
    assert read.header["kid"] == "kid-1"
    issued = int(NOW.timestamp())
    assert read.claims == {
        "iss": document["client_email"],
        "scope": SCOPE,
        "aud": url,
        "iat": issued,
        "exp": issued + 3600,
    }


FEDERATED = {
    "type": "external_account",
    "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/k",
    "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
    "token_url": "https://sts.googleapis.com/v1/token",
}


async def test_google_workload_identity_federation_from_a_file(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "token").write_text("projected\n")
    http = Giver({FEDERATED["token_url"]: GRANTED})
    document = FEDERATED | {"credential_source": {"file": str(tmp_path / "token")}}
    assert await from_file(http, write(tmp_path / "c.json", document), now=clock)() == Secret("ya29.x")
    assert http.sent[0].form == {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "audience": FEDERATED["audience"],
        "scope": SCOPE,
        "subject_token": "projected",
        "subject_token_type": FEDERATED["subject_token_type"],
    }


async def test_google_workload_identity_federation_for_a_service_account(tmp_path: Path, clock: Clock) -> None:
    impersonate = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/g@a.iam:generateAccessToken"
    source = "https://identity.example/token"
    http = Giver(
        {
            source: ok({"value": "foreign"}),
            FEDERATED["token_url"]: GRANTED,
            impersonate: ok({"accessToken": "ya29.account", "expireTime": "2026-01-02T04:04:05Z"}),
        }
    )
    document = FEDERATED | {
        "service_account_impersonation_url": impersonate,
        "credential_source": {
            "url": source,
            "headers": {"x-asks": "gateway"},
            "format": {"type": "json", "subject_token_field_name": "value"},
        },
    }
    assert await from_file(http, write(tmp_path / "c.json", document), now=clock)() == Secret("ya29.account")
    first, exchange, last = http.sent
    assert first.headers == {"x-asks": "gateway"}
    assert exchange.form["subject_token"] == "foreign"
    assert last.headers["authorization"] == "Bearer ya29.x"
    assert json.loads(last.body) == {"scope": [SCOPE], "lifetime": "3600s"}


async def test_gke_asks_the_metadata_server(clock: Clock) -> None:
    url = "http://169.254.169.254/computeMetadata/v1/instance/service-accounts/default/token"
    http = Giver({url: GRANTED})
    assert await from_metadata(http, now=clock)() == Secret("ya29.x")
    assert http.sent[0].headers == {"metadata-flavor": "Google"}


@pytest.mark.parametrize(
    "document",
    [
        {"type": "authorized_user"},
        {"type": "service_account"},
        {
            "type": "service_account",
            "client_email": "x",
            "private_key": "no key",
            "private_key_id": "",
            "token_uri": "x",
        },
        FEDERATED,
        FEDERATED | {"credential_source": {"file": "/does/not/exist"}},
        FEDERATED | {"credential_source": {}},
        [],
    ],
)
async def test_google_credentials_that_cannot_be_used_are_said(tmp_path: Path, document: Any, clock: Clock) -> None:
    with pytest.raises(KekUnavailable):
        await from_file(Giver(), write(tmp_path / "c.json", document), now=clock)()


async def test_azure_workload_identity(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "token").write_text("projected\n")
    url = "https://login.microsoftonline.com/directory/oauth2/v2.0/token"
    http = Giver({url: ok({"token_type": "Bearer", "expires_in": 86399, "access_token": "eyJ"})})
    tokens = application(http, directory_id="directory", client_id="app", proof=tmp_path / "token", now=clock)
    assert await tokens("https://vault.azure.net")() == Secret("eyJ")
    assert http.sent[0].form == {
        "grant_type": "client_credentials",
        "client_id": "app",
        "scope": "https://vault.azure.net/.default",
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": "projected",
    }
    secret = application(http, directory_id="directory", client_id="app", proof=Secret("s"), now=clock)
    await secret("https://vault.azure.net")()
    assert http.sent[1].form["client_secret"] == "s"
    assert "client_assertion" not in http.sent[1].form


async def test_azure_managed_identity(clock: Clock) -> None:
    """The metadata service sends its numbers as text."""
    url = "http://169.254.169.254/metadata/identity/oauth2/token"
    http = Giver({url: ok({"access_token": "eyJ", "expires_in": "3599", "resource": "https://vault.azure.net"})})
    assert await managed(http, now=clock, client_id="app")("https://vault.azure.net")() == Secret("eyJ")
    asked = http.sent[0]
    assert asked.headers == {"metadata": "true"}
    assert parse_qs(urlsplit(asked.url).query) == {
        "api-version": ["2018-02-01"],
        "resource": ["https://vault.azure.net"],
        "client_id": ["app"],
    }


Sources = list[Callable[[], Awaitable[Any]]]


def sources(http: Giver, tmp_path: Path, clock: Clock) -> Sources:
    (tmp_path / "token").write_text("projected-secret")
    federated = write(tmp_path / "c.json", FEDERATED | {"credential_source": {"file": str(tmp_path / "token")}})
    return [
        web_identity(
            http, role_arn="r", token_path=tmp_path / "token", session_name="s", region="eu-west-1", now=clock
        ),
        container(http, "http://169.254.170.2/x", now=clock, token_path=tmp_path / "token"),
        instance(http, now=clock),
        from_file(http, federated, now=clock),
        from_metadata(http, now=clock),
        application(http, directory_id="d", client_id="c", proof=tmp_path / "token", now=clock)("https://r"),
        managed(http, now=clock)("https://r"),
    ]


class Refusing(Giver):
    """Answers everything alike."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__()
        self.status, self.text = status, body

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        return HttpAnswer(self.status, {}, self.text)


@pytest.mark.parametrize(
    ("status", "body"),
    [(403, b'{"error": "projected-secret"}'), (500, b""), (200, b""), (200, b"[]"), (200, b"\xff"), (200, b"{}")],
)
async def test_whatever_a_giver_answers_it_is_unavailable_and_shows_no_token(
    tmp_path: Path, clock: Clock, status: int, body: bytes
) -> None:
    for source in sources(Refusing(status, body), tmp_path, clock):
        with pytest.raises(KekUnavailable) as refused:
            await source()
        assert "projected-secret" not in refused.value.public + refused.value.hint + refused.value.debug
    away = Giver(away=True)
    for source in sources(away, tmp_path, clock):
        with pytest.raises(KekUnavailable):
            await source()


IRSA = {"AWS_ROLE_ARN": "arn:aws:iam::1:role/r", "AWS_WEB_IDENTITY_TOKEN_FILE": "TOKEN"}
POD = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials"}


@pytest.mark.parametrize(
    ("environment", "asks"),
    [
        ({"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "s"} | IRSA, None),
        (IRSA | POD, "https://sts.eu-west-1.amazonaws.com/"),
        (IRSA | {"AWS_ENDPOINT_URL_STS": "https://vpce-1.example"}, "https://vpce-1.example/"),
        (POD, "http://169.254.170.23/v1/credentials"),
        ({"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/credentials/x"}, "http://169.254.170.2/v2/credentials/x"),
        ({}, "http://169.254.169.254/latest/api/token"),
    ],
)
async def test_the_environment_chooses_as_the_aws_sdks_do(
    tmp_path: Path, environment: dict[str, str], asks: str | None
) -> None:
    (tmp_path / "token").write_text("t")
    given = {name: str(tmp_path / "token") if value == "TOKEN" else value for name, value in environment.items()}
    http = Giver(away=True)
    source = aws_credentials(read_settings(given), http, "eu-west-1")
    if asks is None:
        assert (await source()).access_key_id == "AKIA"
    else:
        with pytest.raises(KekUnavailable):
            await source()
    assert [each.url for each in http.sent] == ([] if asks is None else [asks])


async def test_the_environment_chooses_google_and_azure_identities(tmp_path: Path) -> None:
    document = FEDERATED | {"credential_source": {"file": str(tmp_path / "token")}}
    (tmp_path / "token").write_text("t")
    path = str(write(tmp_path / "c.json", document))
    entra = {"AZURE_TENANT_ID": "d", "AZURE_CLIENT_ID": "c"}
    for environment, asks in (
        ({"GOOGLE_APPLICATION_CREDENTIALS": path}, "https://sts.googleapis.com/"),
        ({}, "http://169.254.169.254/computeMetadata/"),
    ):
        http = Giver(away=True)
        with pytest.raises(KekUnavailable):
            await gcp_token(read_settings(environment), http)()
        assert http.sent[0].url.startswith(asks)
    for environment, asks in (
        (entra | {"AZURE_FEDERATED_TOKEN_FILE": path}, "https://login.microsoftonline.com/d/"),
        (
            entra | {"AZURE_CLIENT_SECRET": "s", "AZURE_AUTHORITY_HOST": "https://login.partner.example/"},
            "https://login.partner.example/d/",
        ),
        (entra, "http://169.254.169.254/metadata/identity/"),
    ):
        http = Giver(away=True)
        with pytest.raises(KekUnavailable):
            await azure_tokens(read_settings(environment), http)("https://vault.azure.net")()
        assert http.sent[0].url.startswith(asks)


@pytest.mark.parametrize(
    "environment",
    [
        {"AWS_ACCESS_KEY_ID": "AKIA"},
        {"AWS_SECRET_ACCESS_KEY": "s"},
        {"AWS_WEB_IDENTITY_TOKEN_FILE": "/x"},
        {"AZURE_CLIENT_SECRET": "s"},
        {"AZURE_FEDERATED_TOKEN_FILE": "/x", "AZURE_CLIENT_ID": "c"},
        {"GOOGLE_APPLICATION_CREDENTIALS": "/does/not/exist"},
    ],
)
def test_half_an_identity_is_refused_at_the_start(environment: dict[str, str]) -> None:
    settings = read_settings(environment)
    choose: Callable[[], object] = partial(gcp_token, settings, Giver())
    if "AWS" in str(environment):
        choose = partial(aws_credentials, settings, Giver(), "eu-west-1")
    elif "AZURE" in str(environment):
        choose = partial(azure_tokens, settings, Giver())
    with pytest.raises(KeyringUnsafe) as refused:
        choose()
    assert refused.value.hint


def test_metadata_services_are_open_to_the_operators_kms_alone() -> None:
    operator = EgressPolicy(allow_private=True, allow_metadata=True)
    hosts = ("169.254.169.254", "169.254.170.2", "169.254.170.23", "[fd00:ec2::23]")
    for host in hosts:
        check_base_url(f"http://{host}", operator)
        for policy in (EgressPolicy(), EgressPolicy(allow_private=True)):
            with pytest.raises(UnsafeUrl):
                check_base_url(f"http://{host}", policy)
    for host in ("169.254.1.1", "[fe80::1]", "168.63.129.16"):
        with pytest.raises(UnsafeUrl):
            check_base_url(f"http://{host}", operator)
