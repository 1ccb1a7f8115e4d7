"""Token exchange with each provider over real HTTP: what a trusted issuer vouches for, and what is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import pytest

from auth.keyset import ED25519, KeySet, PublicKey, Signer
from auth.principal import PLATFORM_TENANT_ID
from auth.revocations import Revocations
from auth.secret import Secret
from auth.tokens import Grant, TokenMalformed, Verifier, mint
from gateway.guarded_calls import GuardedCalls
from gateway.simulation.config import KeyConfig, ProviderConfig
from gateway.upstream.connect import DirectConnector
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.pool import ConnectionPool
from tenants.federation import FederatedSettings, claims_of, exchange, subject_of
from tenants.sources.federated import FederatedDriver, Identity
from tenants.sources.protocol import HttpCalls, SourceAway, SourceRefused
from tenants.sources.registry import make_driver, settings_refusal
from tests.fakes.provider import RunningProvider, running_provider
from tests.simulation.test_key_admin import admin, is_taken

ISSUER = "https://gateway.example"
TENANT_A, SOURCE_A = UUID(int=1), UUID(int=11)
NOW = 1_800_000_000.0
SETTINGS: dict[str, dict[str, Any]] = {
    "openai": {"provider": "openai", "identity_provider_id": "idp_1", "service_account_id": "user-1"},
    "anthropic": {
        "provider": "anthropic",
        "federation_rule_id": "fdrl_1",
        "organization_id": "00000000-0000-0000-0000-000000000001",
        "service_account_id": "svac_1",
        "workspace_id": "wrkspc_1",
    },
    "openrouter": {"provider": "openrouter", "federation_policy_id": "4b2f7d1e"},
}
PATHS = {"openai": "/oauth/token", "anthropic": "/v1/oauth/token", "openrouter": "/api/v1/oauth/token"}


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer.generate()


@pytest.fixture(scope="module")
def jwks_url(signer: Signer) -> Iterator[str]:
    document = json.dumps(KeySet([signer.public()]).jwks()).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(document)))
            self.end_headers()
            self.wfile.write(document)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/oauth2/jwks"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def clock() -> list[float]:
    return [NOW]


@pytest.fixture(scope="module")
def running(clock: list[float]) -> Iterator[RunningProvider]:
    config = ProviderConfig(keys=(KeyConfig(secret="sim-key-unused", name="unused"),))
    with running_provider(config, clock=lambda: clock[0]) as provider:
        yield provider


@pytest.fixture
def provider(running: RunningProvider, clock: list[float], jwks_url: str) -> RunningProvider:
    clock[0] = NOW
    admin(running, "DELETE", "faults")
    trust(running, jwks_url)
    return running


@pytest.fixture
async def calls() -> AsyncIterator[HttpCalls]:
    policy = EgressPolicy(allow_private=True)
    pool = ConnectionPool(DirectConnector(policy))
    yield GuardedCalls(pool, policy)
    await pool.close()


class Assertions:
    def __init__(self, signer: Signer, typ: str = "JWT", **changed: Any) -> None:
        self._signer, self._typ, self._changed = signer, typ, changed

    async def sign(self, claims: Mapping[str, Any], *, algorithm: str | None = None) -> str:
        del algorithm
        return self._signer.sign({**claims, **self._changed}, typ=self._typ)


def trust(provider: RunningProvider, jwks_url: str, **more: Any) -> None:
    audiences = ("https://api.openai.com/v1", "https://api.anthropic.com", "https://openrouter.ai")
    rule = {"issuer": ISSUER, "jwks_url": jwks_url, "subject": f"tenant:{TENANT_A}:*", **more}
    # One rule an issuer: each test trusts it for the audience that it asks for.
    admin(provider, "PUT", "trust", [{**rule, "audience": rule.get("audience", audiences[0])}])


def driver(name: str, provider: RunningProvider, calls: HttpCalls, assertions: Assertions, **who: Any) -> Any:
    config = {**SETTINGS[name], "token_url": provider.base_url + PATHS[name], "audience": "https://api.openai.com/v1"}
    identity = Identity(
        **{"issuer": ISSUER, "tenant_id": TENANT_A, "source_id": SOURCE_A, "assertions": assertions, **who}
    )
    return make_driver("federated", config, None, http=calls, now_unix=lambda: NOW, identity=identity)


@pytest.mark.parametrize("name", SETTINGS)
async def test_an_assertion_is_exchanged_for_a_token_that_works_and_ends(
    name: str, provider: RunningProvider, calls: HttpCalls, signer: Signer, clock: list[float]
) -> None:
    makes = driver(name, provider, calls, Assertions(signer))
    assert isinstance(makes, FederatedDriver)
    assert (makes.capabilities.keyless, makes.capabilities.mints) == (True, False)
    made = await makes.create("check-1", in_use=None)
    assert is_taken(provider, made.secret)
    clock[0] = NOW + 601
    assert not is_taken(provider, made.secret), "a token lives no longer than what it was exchanged for"
    assert await makes.find("check-1") is None
    for step in (makes.disable, makes.enable, makes.revoke):
        await step(made.ref)


async def test_the_answer_says_how_long_the_token_lives(
    provider: RunningProvider, calls: HttpCalls, signer: Signer, jwks_url: str
) -> None:
    trust(provider, jwks_url, lifetime_s=120)
    settings = FederatedSettings(**SETTINGS["openai"], token_url=provider.base_url + PATHS["openai"])
    claims = claims_of(settings, issuer=ISSUER, tenant_id=TENANT_A, source_id=SOURCE_A, token_id="t", now=NOW)
    token = await exchange(calls, settings, signer.sign(claims, typ="JWT"))
    assert token.lifetime_s == 120


FORGERIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "another tenant's subject": ({"tenant_id": UUID(int=2)}, {}),
    "another audience": ({}, {"aud": "https://elsewhere.example"}),
    "an issuer that is not trusted": ({"issuer": "https://evil.example"}, {}),
    "an assertion that has ended": ({}, {"iat": int(NOW) - 900, "exp": int(NOW) - 300}),
    "one from the future": ({}, {"iat": int(NOW) + 900, "exp": int(NOW) + 1500}),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("forgery", FORGERIES)
async def test_what_was_not_trusted_is_refused(
    forgery: str, name: str, provider: RunningProvider, calls: HttpCalls, signer: Signer
) -> None:
    who, changed = FORGERIES[forgery]
    with pytest.raises(SourceRefused, match="The assertion"):
        await driver(name, provider, calls, Assertions(signer, **changed), **who).create("t", in_use=None)


async def test_a_foreign_signature_is_refused(provider: RunningProvider, calls: HttpCalls, signer: Signer) -> None:
    stranger = Signer.generate()
    same_name = Signer(signer.kid, stranger.alg, stranger.key)
    other_algorithm = Signer(signer.kid, ED25519, Signer.generate(ED25519).key)
    for forger in (stranger, same_name, other_algorithm):
        with pytest.raises(SourceRefused, match="signature"):
            await driver("openai", provider, calls, Assertions(forger)).create("t", in_use=None)


async def test_an_access_token_is_no_assertion_and_an_assertion_no_access_token(
    provider: RunningProvider, calls: HttpCalls, signer: Signer
) -> None:
    with pytest.raises(SourceRefused, match="not an identity token"):
        await driver("openai", provider, calls, Assertions(signer, typ="at+jwt")).create("t", in_use=None)
    verifier = Verifier(ISSUER, ISSUER, KeySet([PublicKey.from_jwk(signer.public().jwk())]), Revocations(), lambda: NOW)
    grant = Grant(
        issuer=ISSUER,
        audience=ISSUER,
        tenant_id=PLATFORM_TENANT_ID,
        client_id="c",
        subject="c",
        scopes=frozenset({"inference"}),
        lifetime_s=60,
    )
    verifier.verify(mint(signer, grant, now=NOW, token_id="j"))
    settings = FederatedSettings(**SETTINGS["openai"], audience=ISSUER)
    claims = claims_of(settings, issuer=ISSUER, tenant_id=TENANT_A, source_id=SOURCE_A, token_id="t", now=NOW)
    more = {"client_id": "c", "scope": "inference"}
    with pytest.raises(TokenMalformed):
        verifier.verify(signer.sign({**claims, **more}, typ="JWT"))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("fault", [{"kind": "status", "status": 503}, {"kind": "reset"}])
async def test_an_exchange_that_fails_may_be_repeated(  # noqa: PLR0917 - fixtures
    name: str, late: bool, fault: dict[str, Any], provider: RunningProvider, calls: HttpCalls, signer: Signer
) -> None:
    admin(provider, "PUT", "faults", [{"step": "exchange", "times": 1, "late": late, **fault}])
    makes = driver(name, provider, calls, Assertions(signer))
    with pytest.raises(SourceAway):
        await makes.create("t", in_use=None)
    assert is_taken(provider, (await makes.create("t", in_use=None)).secret)


async def test_a_refusal_does_not_repeat_the_assertion(calls: HttpCalls, provider: RunningProvider) -> None:
    settings = FederatedSettings(**SETTINGS["openai"], token_url=provider.base_url + PATHS["openai"])
    with pytest.raises(SourceRefused) as refused:
        await exchange(calls, settings, "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.")
    assert "eyJ" not in str(refused.value)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"provider": "openai"}, "needs identity_provider_id, service_account_id"),
        ({**SETTINGS["openai"], "federation_rule_id": "x"}, "no meaning for openai"),
        ({**SETTINGS["anthropic"], "organization_id": ""}, "needs organization_id"),
        ({"provider": "mistral"}, "provider"),
        ({**SETTINGS["openrouter"], "algorithm": "HS256"}, "algorithm"),
    ],
)
def test_settings_that_do_not_fit(config: dict[str, Any], says: str) -> None:
    refusal = settings_refusal("federated", config, None)
    assert refusal is not None
    assert says in refusal[1]


def test_settings_that_fit() -> None:
    for config in SETTINGS.values():
        assert settings_refusal("federated", config, None) is None
    assert subject_of(TENANT_A, SOURCE_A) == f"tenant:{TENANT_A}:source:{SOURCE_A}"
    assert settings_refusal("openai", {"project_id": "p"}, Secret("sk-admin-00000000")) is None
