"""Access tokens: what verifies, and every forgery that must not."""

from __future__ import annotations

import base64
import dataclasses
import json
import subprocess
import sys
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwk, jwt

from auth import tokens
from auth.errors import Unavailable
from auth.keyset import ALGORITHMS, ED25519, ES256, RS256, KeySet, PublicKey, Signer
from auth.revocations import Revocation, Revocations, client_key, tenant_key
from auth.tokens import Grant, TokenRefused, Verifier, mint, new_token_id

ISSUER = "https://gateway.example"
TENANT = UUID("01890000-0000-7000-8000-000000000001")
NOW = 1_800_000_000.0
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
SIGNERS = {alg: Signer.generate(alg) for alg in ALGORITHMS}
GRANT = Grant(
    issuer=ISSUER,
    audience=ISSUER,
    tenant_id=TENANT,
    client_id="lpc_one",
    subject="lpc_one",
    scopes=frozenset({"inference", "usage:read"}),
    lifetime_s=600,
)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Bench:
    """A verifier with its clock, keys and deny-list at hand."""

    def __init__(self, *, cache_size: int = 8, algs: tuple[str, ...] = ALGORITHMS) -> None:
        self.clock = Clock()
        self.keys = KeySet(SIGNERS[alg].public() for alg in algs)
        self.revoked = Revocations()
        self.verifier = Verifier(ISSUER, ISSUER, self.keys, self.revoked, self.clock, cache_size=cache_size)

    def refusal(self, token: str, *, jkt: str = "", x5t_s256: str = "") -> str:
        with pytest.raises(TokenRefused) as caught:
            self.verifier.verify(token, jkt=jkt, x5t_s256=x5t_s256)
        assert caught.value.challenge == 'Bearer error="invalid_token"'
        assert token not in caught.value.public + caught.value.hint + caught.value.debug or len(token) < 20
        return caught.value.code


def token(alg: str = ES256, *, now: float = NOW, token_id: str = "j1", **changes: Any) -> str:
    return mint(SIGNERS[alg], dataclasses.replace(GRANT, **changes), now=now, token_id=token_id)


def signed(claims: dict[str, Any], *, typ: str = "at+jwt", **header: Any) -> str:
    """A token signed by the real key over whatever an attacker or a bug would put into it."""
    base: dict[str, Any] = {
        "iss": ISSUER,
        "aud": ISSUER,
        "sub": "lpc_one",
        "client_id": "lpc_one",
        "tenant_id": str(TENANT),
        "iat": int(NOW),
        "exp": int(NOW) + 600,
        "jti": "j1",
        "scope": "inference",
    }
    merged = {name: value for name, value in {**base, **claims}.items() if value is not None}
    signer = SIGNERS[ES256]
    return jwt.encode({"alg": ES256, "kid": signer.kid, "typ": typ, **header}, merged, signer.key)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_minted_token_verifies_to_its_principal(alg: str) -> None:
    bench = Bench()
    principal = bench.verifier.verify(token(alg, actors=("lpc_b", "lpc_a"), details=({"type": "llm_proxy"},)))
    assert (principal.tenant_id, principal.client_id, principal.token_id) == (TENANT, "lpc_one", "j1")
    assert principal.scopes == {"inference", "usage:read"}
    assert principal.expires_at == NOW + 600
    assert principal.actors == ("lpc_b", "lpc_a")
    assert principal.details == ({"type": "llm_proxy"},)


def test_expiry_holds_for_cached_tokens_too() -> None:
    bench = Bench()
    bench.verifier.verify(token())
    bench.clock.now = NOW + 599.9
    bench.verifier.verify(token())
    bench.clock.now = NOW + 600
    assert bench.refusal(token()) == "token_expired"


@pytest.mark.parametrize("key", ["j1", client_key("lpc_one"), tenant_key(TENANT)])
def test_revocation_holds_for_cached_tokens_too(key: str) -> None:
    bench = Bench()
    bench.verifier.verify(token())
    bench.revoked.add([Revocation(key, NOW + 1, NOW + 9999)])
    assert bench.refusal(token()) == "token_revoked"


def test_a_client_cut_off_gets_through_again_with_a_later_token() -> None:
    bench = Bench()
    bench.revoked.add([Revocation(client_key("lpc_one"), NOW - 10, NOW + 9999)])
    assert bench.refusal(token(now=NOW - 10)) == "token_revoked"
    bench.verifier.verify(token(now=NOW - 9))


def test_the_other_form_of_a_revoked_es256_signature_is_refused_with_it() -> None:
    head, body, signature = token().split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    r, s = int.from_bytes(raw[:32]), int.from_bytes(raw[32:])
    twin = ".".join((head, body, b64(r.to_bytes(32) + (P256_ORDER - s).to_bytes(32))))
    assert decode_dss_signature(encode_dss_signature(r, P256_ORDER - s))[0] == r
    bench = Bench()
    assert bench.verifier.verify(twin).token_id == "j1"  # it does verify: this is why revocation goes by jti
    bench.revoked.add([Revocation("j1", NOW, NOW + 9999)])
    assert bench.refusal(twin) == bench.refusal(token()) == "token_revoked"


def test_a_key_taken_from_the_set_takes_its_cached_tokens_along() -> None:
    bench = Bench()
    bench.verifier.verify(token())
    bench.keys.replace([SIGNERS[RS256].public()])
    assert bench.refusal(token()) == "token_signature_invalid"


def test_the_first_signature_that_is_looked_at_loads_no_module() -> None:
    """A process that has no file to spare would answer 500."""
    jwks = [signer.public().jwk() for signer in SIGNERS.values()]
    program = (
        "import json, sys\nfrom auth.keyset import PublicKey\nimport auth.tokens\n"
        "keys, tokens = json.load(sys.stdin)\nkeys = [PublicKey.from_jwk(each) for each in keys]\n"
        "before = set(sys.modules)\nassert all(k.verify(t) for k, t in zip(keys, tokens))\n"
        "print(sorted(set(sys.modules) - before))"
    )
    told = json.dumps([jwks, [token(alg) for alg in SIGNERS]])
    done = subprocess.run([sys.executable, "-c", program], input=told, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_without_any_key_nothing_is_said_of_a_token() -> None:
    bench = Bench(algs=())
    with pytest.raises(Unavailable, match="signing keys"):
        bench.verifier.verify(token())
    assert bench.refusal("no token at all") == "token_malformed"
    bench.keys.replace([SIGNERS[ES256].public()])
    assert bench.verifier.verify(token()).token_id == "j1"


def test_the_cache_is_bounded_and_forgets_the_least_recently_used() -> None:
    bench = Bench(cache_size=3)
    for number in range(10):
        bench.verifier.verify(token(token_id=f"j{number}"))
    assert len(bench.verifier._cache) == 3


@pytest.mark.parametrize(
    ("name", "changes", "code"),
    [
        ("foreign issuer", {"iss": "https://evil.example"}, "token_foreign"),
        ("issuer as a prefix", {"iss": ISSUER + ".evil.example"}, "token_foreign"),
        ("foreign audience", {"aud": "https://other.example"}, "token_foreign"),
        ("foreign audiences", {"aud": ["https://a.example", "https://b.example"]}, "token_foreign"),
        ("no audience", {"aud": None}, "token_malformed"),
        ("no expiry", {"exp": None}, "token_malformed"),
        ("expiry as text", {"exp": "tomorrow"}, "token_malformed"),
        ("no jti", {"jti": None}, "token_malformed"),
        ("no client", {"client_id": None}, "token_malformed"),
        ("no tenant", {"tenant_id": None}, "token_malformed"),
        ("a tenant that is no id", {"tenant_id": "acme"}, "token_malformed"),
        ("expired", {"exp": int(NOW)}, "token_expired"),
        ("not yet", {"nbf": int(NOW) + 60}, "token_not_yet_valid"),
        ("issued ahead", {"iat": int(NOW) + 60}, "token_not_yet_valid"),
    ],
)
def test_wrong_claims_are_refused(name: str, changes: dict[str, Any], code: str) -> None:
    assert Bench().refusal(signed(changes)) == code


@pytest.mark.parametrize("typ", ["JWT", "", "dpop+jwt", "token-introspection+jwt", "at+jwtx"])
def test_another_kind_of_jwt_is_no_access_token(typ: str) -> None:
    assert Bench().refusal(signed({}, typ=typ)) == "token_malformed"


def test_the_long_form_of_typ_is_the_same_type() -> None:
    Bench().verifier.verify(signed({}, typ="application/at+JWT"))


def test_a_tenants_own_issuer_path_is_this_issuer() -> None:
    Bench().verifier.verify(signed({"iss": ISSUER + "/t/acme"}))


def forged_none() -> str:
    _, body, _ = token().split(".")
    head = b64(json.dumps({"alg": "none", "typ": "at+jwt", "kid": SIGNERS[ES256].kid}).encode())
    return f"{head}.{body}."


def forged_hs256() -> str:
    """HS256 over the public key's own PEM: the classic confusion."""
    public = SIGNERS[RS256].public()
    assert isinstance(public.key, jwk.RSAKey)
    pem = public.key.public_key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    claims = json.loads(base64.urlsafe_b64decode(token().split(".")[1] + "=="))
    return jwt.encode(
        {"alg": "HS256", "kid": public.kid, "typ": "at+jwt"}, claims, jwk.OctKey.import_key(b64(pem)), ["HS256"]
    )


def forged_other_alg() -> str:
    """A real key of ours, named with another key's kid: the pinned algorithm refuses."""
    claims = json.loads(base64.urlsafe_b64decode(token().split(".")[1] + "=="))
    signer = SIGNERS[RS256]
    return jwt.encode({"alg": RS256, "kid": SIGNERS[ES256].kid, "typ": "at+jwt"}, claims, signer.key, [RS256])


def forged_embedded_key() -> str:
    """Signed by the attacker's key, which the header offers as `jwk` under our kid."""
    own = Signer.generate(ES256)
    claims = json.loads(base64.urlsafe_b64decode(token().split(".")[1] + "=="))
    header = {"alg": ES256, "kid": SIGNERS[ES256].kid, "typ": "at+jwt", "jwk": own.key.as_dict(private=False)}
    return jwt.encode(header, claims, own.key)


def forged_remote_key() -> str:
    own = Signer.generate(ES256)
    claims = json.loads(base64.urlsafe_b64decode(token().split(".")[1] + "=="))
    header = {"alg": ES256, "kid": own.kid, "typ": "at+jwt", "jku": "https://evil.example/jwks"}
    return jwt.encode(header, claims, own.key)


def forged_claims() -> str:
    head, body, signature = token().split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    return f"{head}.{b64(json.dumps({**claims, 'scope': 'platform'}).encode())}.{signature}"


@pytest.mark.parametrize(
    "forge", [forged_none, forged_hs256, forged_other_alg, forged_embedded_key, forged_remote_key, forged_claims]
)
def test_forgeries_are_refused(forge: Any) -> None:
    assert Bench().refusal(forge()) in {"token_signature_invalid", "token_malformed"}


def test_critical_and_unencoded_extensions_are_refused() -> None:
    head, body, signature = token().split(".")
    header = json.loads(base64.urlsafe_b64decode(head + "=="))
    for extra in ({"crit": ["b64"], "b64": False}, {"crit": ["x"], "x": 1}, {"b64": False}):
        changed = b64(json.dumps({**header, **extra}).encode())
        assert Bench().refusal(f"{changed}.{body}.{signature}") == "token_signature_invalid"


def test_padding_whitespace_and_extra_parts_are_refused() -> None:
    good = token()
    for bad in (
        good + "=",
        good + ".",
        " " + good,
        good + "\n",
        good.replace(".", "..", 1),
        good.rsplit(".", 1)[0],
        "",
    ):
        assert Bench().refusal(bad) == "token_malformed"


def test_a_deeply_nested_header_is_refused_not_crashed() -> None:
    assert Bench().refusal(f"{b64(b'[' * 700)}.e30.e30") == "token_malformed"


def test_a_bound_token_needs_its_proof() -> None:
    bench = Bench()
    dpop, tls = token(confirmation={"jkt": "K"}), token(confirmation={"x5t#S256": "C"})
    for stolen in (dpop, tls):
        assert bench.refusal(stolen) == "token_binding_missing"
        assert bench.refusal(stolen, jkt="other", x5t_s256="other") == "token_binding_missing"
    assert bench.verifier.verify(dpop, jkt="K").jkt == "K"
    assert bench.verifier.verify(tls, x5t_s256="C").x5t_s256 == "C"
    assert bench.refusal(dpop) == "token_binding_missing"  # not let through by the cache


@settings(max_examples=200)
@given(st.text(max_size=200))
def test_no_text_crashes_the_verifier(text: str) -> None:
    Bench().refusal(text)


def test_too_long_tokens_are_refused_before_any_work() -> None:
    assert Bench().refusal("a" * (tokens.MAX_TOKEN_CHARS + 1)) == "token_malformed"


def test_token_ids_do_not_repeat() -> None:
    assert len({new_token_id() for _ in range(200)}) == 200


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_key_survives_its_sealed_form_and_publishes_only_its_public_half(alg: str) -> None:
    signer = SIGNERS[alg]
    again = Signer.from_private_bytes(signer.kid, alg, signer.private_bytes())
    assert signer.public().verify(again.sign({"a": 1}, typ="x")) == b'{"a":1}'
    published = signer.public().jwk()
    assert published["use"] == "sig"
    assert not {"d", "p", "q", "dp", "dq", "qi"} & set(published)
    assert "PrivateKey" not in repr(signer)


@pytest.mark.parametrize(
    "bad",
    [
        {"kty": "oct", "k": "AAAA", "kid": "x", "alg": "HS256"},
        {**SIGNERS[ED25519].public().jwk(), "alg": ES256},
        {**SIGNERS[ES256].key.as_dict(private=True), "kid": "x", "alg": ES256},
        {name: value for name, value in SIGNERS[ES256].public().jwk().items() if name != "kid"},
    ],
)
def test_only_public_keys_with_a_pinned_algorithm_enter_the_set(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        PublicKey.from_jwk(bad)
