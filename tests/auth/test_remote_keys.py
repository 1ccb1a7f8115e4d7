"""Clients whose keys are published elsewhere, and workloads that another platform's JWTs speak for."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from joserfc import jwt

from auth.keyset import Signer
from auth.remote_keys import FRESH_S, RETRY_S, STALE_S, InMemoryJwks, KeysNeeded, RemoteKeys
from tests.auth.conftest import ISSUER, NOW, TestClient, World

URI = "https://keys.acme.example/jwks"
PLATFORM = "https://ci.example"
SUBJECT = "repo:acme/app:ref:refs/heads/main"
TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def published(*signers: Signer) -> dict[str, Any]:
    return {"keys": [each.public().jwk() for each in signers]}


def signed(signer: Signer, **claims: Any) -> str:
    base: dict[str, Any] = {"aud": ISSUER, "iat": int(NOW), "exp": int(NOW) + 300, "jti": "j"}
    return jwt.encode({"alg": signer.alg, "kid": signer.kid}, {**base, **claims}, signer.key, [signer.alg])


async def present(world: World, client: TestClient, text: str) -> httpx.Response:
    data = {"grant_type": "client_credentials", "client_assertion": text, "client_assertion_type": TYPE}
    return await world.post("/oauth2/token", {**data, "client_id": client.client_id})


async def test_published_keys_are_found_and_their_rotation_followed(world: World) -> None:
    old, new = Signer.generate(), Signer.generate()
    client = await world.client("acme", auth_method="private_key_jwt", metadata={"jwks_uri": URI})
    world.jwks.documents[URI] = published(old)

    def own(signer: Signer, jti: str) -> str:
        now = int(world.clock.now)
        return signed(signer, iss=client.client_id, sub=client.client_id, jti=jti, iat=now, exp=now + 300)

    assert (await present(world, client, own(old, "1"))).status_code == 200
    assert (await present(world, client, own(old, "2"))).status_code == 200
    assert world.jwks.fetched == [URI]
    world.jwks.documents[URI] = published(new)
    assert (await present(world, client, own(new, "3"))).status_code == 401  # too soon to ask again
    world.clock.now += RETRY_S
    assert (await present(world, client, own(new, "4"))).status_code == 200
    assert (await present(world, client, own(old, "5"))).status_code == 401
    world.jwks.documents.clear()
    world.clock.now += FRESH_S
    assert (await present(world, client, own(new, "6"))).status_code == 200  # the publisher is away


async def test_a_workload_needs_no_secret_and_only_its_own_platforms_word_counts(world: World) -> None:
    platform, stranger = Signer.generate("RS256"), Signer.generate("RS256")
    federation = {"issuer": PLATFORM, "subject": SUBJECT, "jwks_uri": URI}
    client = await world.client("acme", auth_method="federated_jwt", metadata={"federation": federation})
    other = await world.client("acme")
    world.jwks.documents[URI] = published(platform)
    assert client.secret == ""
    good = signed(platform, iss=PLATFORM, sub=SUBJECT)
    assert (await present(world, client, good)).status_code == 200
    answer = await present(world, client, good)  # the platform renews its tokens, we do not forbid their reuse
    assert answer.status_code == 200, answer.text
    assert world.verifier.verify(answer.json()["access_token"]).client_id == client.client_id
    assert (await present(world, client, signed(platform, iss=PLATFORM, sub=SUBJECT, aud=[ISSUER]))).status_code == 200
    for wrong in (
        signed(stranger, iss=PLATFORM, sub=SUBJECT),
        signed(platform, iss="https://evil.example", sub=SUBJECT),
        signed(platform, iss=PLATFORM, sub=SUBJECT + "x"),
        signed(platform, iss=PLATFORM, sub="repo:acme/app:ref:refs/heads/evil"),
        signed(platform, iss=PLATFORM, sub=SUBJECT, aud="https://other.example"),
        signed(platform, iss=PLATFORM, sub=SUBJECT, aud=[ISSUER, "https://other.example"]),
        signed(platform, iss=PLATFORM, sub=SUBJECT, exp=int(NOW) - 60),
        signed(platform, iss=PLATFORM, sub=SUBJECT, exp=int(NOW) + 10**7),
        signed(platform, iss=PLATFORM, sub=client.client_id),
    ):
        world.clock.now += 5
        answer = await present(world, client, wrong)
        assert answer.status_code in {400, 401}, answer.text
    assert (await present(world, other, good)).status_code == 401
    assert world.jwks.fetched == [URI]


async def test_a_flood_of_unknown_kids_asks_the_publisher_once() -> None:
    fetcher = InMemoryJwks()
    fetcher.documents[URI] = {"keys": [{"kid": "a"}]}
    keys = RemoteKeys(fetcher)
    for number in range(20):
        try:
            keys.keys(URI, f"unknown {number}", now=100.0)
        except KeysNeeded as needed:
            await keys.load(needed.uri, now=100.0)
    assert fetcher.fetched == [URI]
    with pytest.raises(KeysNeeded):
        keys.keys(URI, "a", now=100.0 + FRESH_S)
    fetcher.documents.clear()
    await keys.load(URI, now=100.0 + STALE_S)
    assert keys.keys(URI, "a", now=101.0 + STALE_S) == ()  # nothing lives for ever on a publisher that is gone
