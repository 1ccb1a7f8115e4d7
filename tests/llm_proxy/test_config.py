"""The configuration: what it means, every problem at once, and agreement with the gateway's pool import."""

from __future__ import annotations

from random import Random
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest

from auth.errors import Invalid
from gateway.balancing.balancer import Balancer
from gateway.balancing.decision import Ask, Picked
from gateway.balancing.quota import Limits
from gateway.balancing.strategies.registry import ALIASES, STRATEGY_NAMES, make_strategy
from gateway.proxy.pool_settings import read_quota
from gateway.upstream.providers import PROVIDERS
from llm_proxy import keyshape
from llm_proxy.config import read_configuration
from llm_proxy.errors import ConfigurationError
from tenants import keyshape as tenants_keyshape
from tenants.catalogue import Catalogue, ProviderRule
from tenants.importer import PoolPlan, plan_import
from tenants.names import NAME_RULE, is_name
from tenants.snapshot import QuotaSnapshot

KEY = "sk-proj-0123456789abcdef"


def entry(**more: Any) -> dict[str, Any]:
    return {"name": "openai-primary", "api_key": KEY, **more}


def problems(document: object) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        read_configuration(document)
    assert all(pointer in str(caught.value) or not pointer for pointer, _ in caught.value.problems)
    return dict(caught.value.problems)


def test_as_printed() -> None:
    found = read_configuration(
        {
            "providers": [
                entry(weight=50, rate_limit=3000),
                {"name": "openai-secondary", "api_key": KEY + "2", "weight": 30, "rate_limit": {"tpm": 90_000}},
                {"name": "claude", "api_key": "sk-ant-0123456789", "weight": 20},
            ],
            "strategy": "weighted_round_robin",
            "failover": True,
        }
    )
    first, second, third = found.keys.values()
    assert (found.strategy, found.failover) == ("weighted", True)
    assert [key.provider for key in found.keys.values()] == ["openai", "openai", "anthropic"]
    assert (first.endpoint.weight, first.quota.limits) == (50, Limits(rpm=3000))
    assert second.quota.limits == Limits(tpm=90_000)
    assert set(third.faces) == {"openai", "anthropic"}
    assert str(first.faces["openai"].target.origin) == "https://api.openai.com"


def test_defaults_and_read_only_mappings() -> None:
    found = read_configuration(MappingProxyType({"providers": [entry()]}))
    assert (found.name, found.strategy, found.failover) == ("main", "rate_limit_aware", True)


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"api_key": ""}, "api_key", "is empty"),
        ({"api_key": "$OPENAI_API_KEY"}, "api_key", "placeholder"),
        ({"api_key": "Bearer sk-0123456789"}, "api_key", "spaces"),
        ({"api_key": "sk-proj-0123456789é"}, "api_key", "characters that no provider key has"),
        ({"name": "two words"}, "name", "must be 1 to 63"),
        ({"weight": -1}, "weight", ">= 0"),
        ({"weight": "50"}, "weight", "Expected `int`"),
        ({"rate_limit": 0}, "rate_limit", ">= 1"),
        ({"provider": "opneai"}, "provider", "'opneai' is not known; use one of"),
        ({"name": "claude-main"}, "provider", 'add "provider"'),
        ({"name": "mine", "api_key": "0123456789abcdef"}, "provider", "neither the name nor the key"),
        ({"provider": "azure"}, "base_url", "needs base_url"),
        ({"provider": "bedrock"}, "region", "needs region"),
        ({"base_url": "ftp://host"}, "base_url", "is not an https URL; write it as"),
        ({"base_url": "http://api.example.com"}, "base_url", "plain http to a public host"),
        ({"base_url": "http://169.254.169.254"}, "base_url", "private or reserved"),
        ({"max_in_flight": 0}, "max_in_flight", ">= 1"),
    ],
)
def test_a_problem_names_its_place_and_mend(changes: dict[str, Any], field: str, says: str) -> None:
    found = problems({"providers": [entry(**changes)]})
    assert says in found[f"/providers/0/{field}"]


@pytest.mark.parametrize(
    ("document", "pointer", "says"),
    [
        ({"providers": []}, "/providers", "is empty"),
        ({}, "", "missing required field `providers`"),
        ([], "", "Expected `object`"),
        ({"providers": [entry()], "strategy": "fastest"}, "/strategy", "use one of round_robin"),
        ({"providers": [entry()], "stratgy": "weighted"}, "", "unknown field `stratgy`; use providers, strategy, "),
        ({"providers": [entry(wieght=1)]}, "/providers/0", "unknown field `wieght`; use name, api_key, weight"),
        ({"providers": [entry(rate_limit={"rps": 1})]}, "/providers/0/rate_limit", "concurrency, models"),
        (
            {"providers": [entry(rate_limit={"models": {"m": {"rps": 1}}})]},
            "/providers/0/rate_limit/models/*",
            "; use rpm",
        ),
        ({"providers": [entry()], "fallbacks": [{"modell": "m"}]}, "/fallbacks/0", "; use pool, model, models, on"),
        ({"providers": [entry(), entry(api_key=KEY + "2")]}, "/providers/1/name", "used by an earlier entry"),
        ({"providers": [entry(), entry(name="openai-2")]}, "/providers/1/api_key", "key of an earlier entry"),
    ],
)
def test_a_documents_problems(document: object, pointer: str, says: str) -> None:
    assert says in problems(document)[pointer]


def test_every_problem_at_once() -> None:
    found = problems(
        {"providers": [entry(name="", weight=1), entry(provider="x"), entry(name="c", weight=-1)], "strategy": "no"}
    )
    assert {"/strategy", "/providers/0/name", "/providers/1/provider", "/providers/2/weight"} <= found.keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"provider": KEY},
        {"provider": "gsk_0123456789"},
        {"name": "two words"},
        {"weight": -1},
        {"base_url": "http://x y"},
    ],
)
def test_no_problem_shows_a_key(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_configuration({"providers": [entry(**changes)]})
    for text in (str(caught.value), repr(caught.value), repr(caught.value.problems)):
        assert KEY not in text
        assert "gsk_" not in text


def test_reprs_show_no_key() -> None:
    assert KEY not in repr(read_configuration({"providers": [entry()]}))


def test_own_servers_may_be_anywhere() -> None:
    for url in ("http://localhost:11434", "http://ollama:11434/v1", "http://models.example.com"):
        read_configuration({"providers": [entry(provider="ollama", base_url=url)]})
    read_configuration({"providers": [entry(base_url="http://127.0.0.1:9000")]})


class AnyUrl:
    def check(self, url: str) -> str | None:
        return None


CATALOGUE = Catalogue(
    providers={name: ProviderRule(row.needs_base_url) for name, row in PROVIDERS.items()},
    strategies={**{name: name for name in STRATEGY_NAMES}, **ALIASES},
    base_urls=AnyUrl(),
)


def planned(document: dict[str, Any]) -> PoolPlan | dict[str, str]:
    try:
        return plan_import(document, CATALOGUE)
    except Invalid as refused:
        return dict(refused.errors)


@pytest.mark.parametrize(
    "document",
    [
        {"providers": [entry(weight=50, rate_limit=3000)], "strategy": "weighted_round_robin", "failover": False},
        {"providers": [entry(rate_limit={"rpm": 5, "tpd": 7}, tier=2, models=["gpt-*"], max_in_flight=3)]},
        {"providers": [entry(rate_limit={"rpm": 5, "models": {"gpt-4o*": {"concurrency": 2, "otpm": 9}}})]},
        {"providers": [entry(rate_limit={"models": {"gpt-4o": {"rpn": 1}}})]},
        {"providers": [entry(quota="org"), entry(name="openai-2", api_key=KEY + "2", quota="org", rate_limit=7)]},
        {"providers": [entry(quota="org", rate_limit=7), entry(name="openai-2", api_key=KEY + "2", quota="org")]},
        {
            "providers": [
                entry(quota="org", rate_limit=7),
                entry(name="o2", provider="openai", quota="org", api_key=KEY + "2", rate_limit=8),
            ]
        },
        {"providers": [entry(quota="org"), entry(name="groq-1", api_key="gsk_0123456789", quota="org")]},
        {"providers": [entry(quota="no name")]},
        {"providers": [entry(name="groq.eu", api_key="gsk_0123456789")], "name": "spare", "is_default": True},
        {"providers": [entry(name="x", api_key="sk-0123456789")]},
        {"providers": [entry(name="x", api_key="0123456789")]},
        {"providers": [entry(name="xai-1", api_key="xai-0123456789")]},
        {"providers": [entry(provider="azure", base_url="https://mine.openai.azure.com"), entry(api_key="$KEY")]},
        {"providers": [entry(weight=0), entry(weight=0)], "strategy": "none"},
        {"providers": [entry(nmae="x")]},
    ],
)
def test_the_gateway_takes_the_same_document(document: dict[str, Any]) -> None:
    plan = planned(document)
    if not isinstance(plan, PoolPlan):
        assert problems(document).keys() == plan.keys()
        return
    found = read_configuration(document)
    assert (found.name, found.strategy, found.failover) == (plan.name, plan.strategy, plan.failover)
    for ours, theirs in zip(found.keys.values(), plan.keys, strict=True):
        quota = read_quota(QuotaSnapshot(UUID(int=0), theirs.name, theirs.provider, theirs.limits))
        assert (ours.quota.limits, ours.quota.families) == (quota.limits, quota.families)
        assert ours.quota.id == ours.endpoint.quota_id == ((theirs.quota and f"quota/{theirs.quota}") or theirs.name)
        assert (ours.name, ours.provider, ours.secret) == (theirs.name, theirs.provider, theirs.secret)
        assert (ours.endpoint.weight, ours.endpoint.tier) == (theirs.weight, theirs.tier)
        assert (ours.endpoint.models, ours.endpoint.max_in_flight) == (theirs.models, theirs.max_in_flight)


def test_the_rules_of_names_and_keys_are_the_gateways() -> None:
    assert dict(tenants_keyshape.KEY_PREFIXES) == dict(keyshape.KEY_PREFIXES)
    assert dict(tenants_keyshape.NAME_WORDS) == dict(keyshape.NAME_WORDS)
    assert keyshape.NAME_RULE == NAME_RULE
    for text in ("", "a" * 8, "a" * 9000, "Bearer x", "${KEY}", "sk-...", "a b", "kéy45678", "x" * 64, "-a", "a.b"):
        assert keyshape.key_problem(text) == tenants_keyshape.key_problem(text)
        assert keyshape.is_name(text) == is_name(text)


def test_keys_of_one_quota_share_its_limits() -> None:
    found = read_configuration(
        {"providers": [entry(quota="org"), entry(name="openai-2", api_key=KEY + "2", quota="org", rate_limit=4)]}
    )
    keys = list(found.keys.values())
    balancer = Balancer(
        [key.endpoint for key in keys], [key.quota for key in keys], make_strategy("weighted"), rng=Random(1)
    )
    admitted = 0
    while isinstance(balancer.acquire(Ask("gpt-4o"), now=0.0), Picked):
        admitted += 1
    assert admitted == 4
