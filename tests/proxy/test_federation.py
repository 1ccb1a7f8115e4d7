"""Short-lived tokens for keys without a secret: renewed in time, shared, in service to their end and no longer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any
from uuid import UUID

import pytest

from auth.errors import Unavailable
from gateway.proxy.directory import Directory, InMemoryLoader
from gateway.proxy.federation import MARGIN_S, TokenKeeper
from gateway.proxy.headers import with_beta
from gateway.proxy.runtime import TenantRuntime, Workshop
from gateway.upstream.guard import EgressPolicy
from tenants.federation import FederatedSettings
from tenants.snapshot import FederatedSource, KeySnapshot
from tenants.sources.protocol import HttpAnswer, SourceAway
from tests.proxy.harness import TENANT, pool, tenant
from tests.proxy.harness import key as stored_key

LIFETIME_S = 900.0
SOURCE = FederatedSource(
    UUID(int=77), FederatedSettings("anthropic", federation_rule_id="f", organization_id="o", service_account_id="s")
)


@dataclass
class Exchanges:
    """A provider's token endpoint: counts, and fails as told."""

    made: int = 0
    broken: bool = False
    status: int = 200
    lifetime_s: float = LIFETIME_S
    bodies: list[Any] = field(default_factory=list)

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        del method, url, headers
        self.bodies.append(json.loads(body or b"{}"))
        await asyncio.sleep(0)
        if self.broken:
            raise SourceAway("no answer")
        if self.status != 200:
            return HttpAnswer(self.status, {}, b'{"error": "invalid_grant", "error_description": "no such rule"}')
        self.made += 1
        answer = {"access_token": f"token-{self.made}", "expires_in": self.lifetime_s}
        return HttpAnswer(200, {}, json.dumps(answer).encode())


class Issuer:
    def __init__(self) -> None:
        self.signed: list[Mapping[str, Any]] = []
        self.away = False

    async def sign(self, claims: Mapping[str, Any], *, algorithm: str | None = None) -> str:
        del algorithm
        if self.away:
            raise Unavailable("no key")
        self.signed.append(claims)
        return f"assertion-{len(self.signed)}"


class Bench:
    """One tenant whose only key has no secret, in a directory."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.http, self.issuer = Exchanges(), Issuer()
        self.keeper = TokenKeeper(
            self.http,
            self.issuer,
            issuer="https://gw.example",
            clock=lambda: self.now,
            unix_clock=lambda: 1e9 + self.now,
            rng=Random(3),
        )
        workshop = Workshop(EgressPolicy(), lambda: self.now, Random(1), tokens=self.keeper)
        self.loader = InMemoryLoader(tenant(pool("main", keyless("a"), keyless("b"))))
        self.directory = Directory(self.loader, workshop)
        self.keeper.changed = self.directory.token_changed

    async def settle(self) -> None:
        self.keeper.round()
        for _ in range(20):
            await asyncio.sleep(0)

    @property
    def runtime(self) -> TenantRuntime:
        found = self.directory.get(TENANT)
        assert found is not None
        return found

    def sent(self) -> set[bytes]:
        """What the keys in service would send."""
        return {face.fixed for target in self.runtime.pools["main"].targets.values() for face in target.faces.values()}


def keyless(name: str) -> KeySnapshot:
    return replace(stored_key(name, None, provider="anthropic"), secret=None, source=SOURCE)


@pytest.fixture
async def bench() -> Bench:
    made = Bench()
    await made.directory.refresh()
    return made


async def test_keys_serve_as_soon_as_there_is_a_token(bench: Bench) -> None:
    await bench.settle()
    assert bench.runtime.targets == 2
    assert bench.sent() == {b"authorization: Bearer token-1\r\n"}, "a token is a bearer, whatever a key would be"
    assert bench.http.made == 1, "keys of one source share its token"
    assert bench.keeper.missing == 0


async def test_the_assertion_says_who_it_is_for_and_ends_soon(bench: Bench) -> None:
    await bench.settle()
    (claims,) = bench.issuer.signed
    assert claims["iss"] == "https://gw.example"
    assert claims["sub"] == f"tenant:{TENANT}:source:{SOURCE.source_id}"
    assert claims["aud"] == "https://api.anthropic.com"
    assert claims["exp"] - claims["iat"] == 600
    (body,) = bench.http.bodies
    assert body["assertion"] == "assertion-1"
    assert body["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"


async def test_a_token_is_renewed_before_it_ends(bench: Bench) -> None:
    await bench.settle()
    bench.now += LIFETIME_S * 0.59
    await bench.settle()
    assert bench.http.made == 1
    bench.now += LIFETIME_S * 0.17
    await bench.settle()
    assert bench.http.made == 2
    assert bench.sent() == {b"authorization: Bearer token-2\r\n"}


async def test_a_failing_renewal_keeps_the_old_token_to_its_end(bench: Bench) -> None:
    await bench.settle()
    bench.http.broken = True
    while bench.now < 1000.0 + LIFETIME_S - MARGIN_S - 1:
        bench.now += 1
        await bench.settle()
        assert bench.runtime.targets == 2
    assert 5 < bench.keeper.failures < 30, "it is tried again, ever less often"
    bench.now += 2
    await bench.settle()
    assert bench.runtime.targets == 0, "an ended token serves nothing"
    assert bench.keeper.missing == 1
    bench.http.broken = False
    bench.now += 100
    await bench.settle()
    assert bench.sent() == {b"authorization: Bearer token-2\r\n"}


@pytest.mark.parametrize("trouble", ["away", "refused", "no signing key", "a token that ends at once"])
async def test_no_first_token_leaves_the_keys_out_of_service(trouble: str) -> None:
    bench = Bench()
    bench.http.broken = trouble == "away"
    bench.http.status = 400 if trouble == "refused" else 200
    bench.issuer.away = trouble == "no signing key"
    bench.http.lifetime_s = 1.0 if trouble.startswith("a token") else LIFETIME_S
    await bench.directory.refresh()
    await bench.settle()
    assert (bench.runtime.targets, bench.keeper.missing, bench.keeper.failures) == (0, 1, 1)
    await bench.keeper.settled(TENANT)
    bench.http.broken, bench.http.status, bench.issuer.away, bench.http.lifetime_s = False, 200, False, LIFETIME_S
    bench.now += 2
    await bench.settle()
    assert bench.runtime.targets == 2


async def test_one_exchange_at_a_time(bench: Bench) -> None:
    for _ in range(5):
        bench.keeper.round()
    await bench.settle()
    assert len(bench.http.bodies) == 1


async def test_a_refused_token_is_renewed_once(bench: Bench) -> None:
    await bench.settle()
    bench.now += 10
    bench.keeper.refused(SOURCE.source_id)
    await bench.settle()
    assert bench.http.made == 2
    bench.keeper.refused(SOURCE.source_id)
    await bench.settle()
    assert bench.http.made == 2, "not once for each of many refusals"


async def test_the_balancer_keeps_what_it_knows_of_a_key_when_its_token_changes(bench: Bench) -> None:
    await bench.settle()
    before = bench.runtime.pools["main"]
    ids = {endpoint.id for endpoint in before.endpoints}
    bench.now += LIFETIME_S * 0.76
    await bench.settle()
    after = bench.runtime.pools["main"]
    assert after is before
    assert {endpoint.id for endpoint in after.endpoints} == ids


async def test_a_tenant_that_is_gone_is_forgotten(bench: Bench) -> None:
    await bench.settle()
    bench.loader.snapshots.clear()
    bench.directory.changed("tenant", TENANT)
    await bench.directory.refresh()
    assert bench.keeper.wanted == 0
    assert bench.keeper.secret(SOURCE.source_id) is None


async def test_a_source_that_no_key_uses_any_more_is_forgotten(bench: Bench) -> None:
    await bench.settle()
    bench.loader.snapshots[TENANT] = tenant(pool("main", stored_key("a", "https://a.example")), revision=2)
    bench.directory.changed("provider_key", TENANT)
    await bench.directory.refresh()
    assert bench.keeper.wanted == 0
    assert bench.runtime.targets == 1


async def test_closing_ends_what_is_under_way(bench: Bench) -> None:
    bench.keeper.round()
    await bench.keeper.close()
    assert bench.keeper.wanted == 0


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ([], [(b"anthropic-beta", b"oauth")]),
        ([(b"anthropic-beta", b"a,b"), (b"x", b"y")], [(b"x", b"y"), (b"anthropic-beta", b"a,b,oauth")]),
        ([(b"anthropic-beta", b"a, oauth")], [(b"anthropic-beta", b"a, oauth")]),
    ],
)
def test_beta_flags_stand_beside_the_callers(given: list[Any], sent: list[Any]) -> None:
    assert with_beta(given, b"oauth") == sent
    assert with_beta(given, b"") is given
