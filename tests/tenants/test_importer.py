"""The familiar pool file becomes a plan, or a list of what to mend."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.errors import Invalid
from tenants.importer import plan_import
from tests.tenants.catalogue import CATALOGUE

KEY = "k1-0123456789abcdef"


def entry(**more: Any) -> dict[str, Any]:
    return {"name": "openai-primary", "api_key": KEY, **more}


def refused(document: object) -> dict[str, str]:
    with pytest.raises(Invalid) as error:
        plan_import(document, CATALOGUE)
    assert error.value.hint
    assert KEY not in str(error.value.errors)
    return dict(error.value.errors)


def test_the_familiar_shape() -> None:
    plan = plan_import(
        {
            "providers": [
                {"name": "openai-primary", "api_key": "sk-proj-0123456789", "weight": 50, "rate_limit": 3000},
                {
                    "name": "azure_eu",
                    "api_key": KEY,
                    "weight": 30,
                    "rate_limit": 2000,
                    "base_url": "https://x.azure.com",
                },
                {
                    "name": "anthropic-backup",
                    "api_key": "sk-ant-0123456789",
                    "weight": 20,
                    "rate_limit": {"rpm": 1, "itpm": 2},
                },
            ],
            "strategy": "weighted_round_robin",
            "failover": True,
        },
        CATALOGUE,
    )
    assert (plan.name, plan.strategy, plan.failover) == ("main", "weighted", True)
    assert [(k.name, k.provider, k.weight, dict(k.limits)) for k in plan.keys] == [
        ("openai-primary", "openai", 50, {"rpm": 3000}),
        ("azure_eu", "azure", 30, {"rpm": 2000}),
        ("anthropic-backup", "anthropic", 20, {"rpm": 1, "itpm": 2}),
    ]
    assert "sk-proj-0123456789" not in repr(plan)


@pytest.mark.parametrize(
    ("more", "provider"),
    [
        ({"name": "primary", "provider": "mistral"}, "mistral"),
        ({"name": "claude-1"}, "anthropic"),
        ({"name": "google.eu"}, "gemini"),
        ({"name": "primary", "api_key": "sk-ant-api03-0123456789"}, "anthropic"),
        ({"name": "primary", "api_key": "sk-or-v1-0123456789"}, "openrouter"),
        ({"name": "primary", "api_key": "gsk_0123456789"}, "groq"),
        ({"name": "primary", "api_key": "AIza0123456789"}, "gemini"),
        ({"name": "primary", "api_key": "sk-0123456789"}, "openai"),
        ({"name": "team-openai-2"}, "openai"),
        ({"name": "openai-compatible", "provider": "vllm", "base_url": "http://v:8000"}, "vllm"),
    ],
)
def test_whose_key_it_is(more: dict[str, Any], provider: str) -> None:
    assert plan_import({"providers": [entry(**more)]}, CATALOGUE).keys[0].provider == provider


@pytest.mark.parametrize(
    ("document", "pointer", "says"),
    [
        ([], "", "Expected `object`"),
        ({}, "", "missing required field `providers`"),
        ({"providers": []}, "/providers", "at least one key"),
        ({"providers": ["x"]}, "/providers/0", "Expected `object`"),
        ({"providers": [entry()], "strateggy": "x"}, "", "unknown field `strateggy`"),
        ({"providers": [entry()], "strategy": "best"}, "/strategy", "use one of"),
        ({"providers": [entry()], "name": "no spaces"}, "/name", "start with a letter"),
        ({"providers": [entry(wieght=3)]}, "/providers/0", "unknown field `wieght`"),
        ({"providers": [entry(weight="50")]}, "/providers/0/weight", "Expected `int`"),
        ({"providers": [entry(weight=-1)]}, "/providers/0/weight", ">= 0"),
        ({"providers": [entry(rate_limit={"rpn": 3})]}, "/providers/0/rate_limit", "unknown field `rpn`"),
        ({"providers": [entry(rate_limit=0)]}, "/providers/0/rate_limit", ">= 1"),
        ({"providers": [entry(api_key="")]}, "/providers/0/api_key", "is empty"),
        ({"providers": [entry(api_key="sk-...")]}, "/providers/0/api_key", "placeholder"),
        ({"providers": [entry(api_key="${OPENAI_API_KEY}")]}, "/providers/0/api_key", "placeholder"),
        ({"providers": [entry(api_key="Bearer abcdefgh")]}, "/providers/0/api_key", "spaces"),
        ({"providers": [entry(name="primary")]}, "/providers/0/provider", "add one of"),
        ({"providers": [entry(provider="opnai")]}, "/providers/0/provider", "not known"),
        ({"providers": [entry(api_key="sk-ant-0123456789")]}, "/providers/0/provider", "the key looks like"),
        ({"providers": [entry(name="azure-1")]}, "/providers/0/base_url", "base URL of your resource"),
        ({"providers": [entry(base_url="http://169.254.169.254")]}, "/providers/0/base_url", "link-local"),
        ({"providers": [entry(), entry(api_key="k2-0123456789")]}, "/providers/1/name", "own name"),
        ({"providers": [entry(), entry(name="openai-2")]}, "/providers/1/api_key", "list each key once"),
    ],
)
def test_what_to_mend(document: object, pointer: str, says: str) -> None:
    assert says in refused(document)[pointer]


def test_all_problems_are_told_at_once() -> None:
    problems = refused({"providers": [entry(weight=-1), entry(name="!"), entry(name="x")], "strategy": "best"})
    assert {"/strategy", "/providers/0/weight", "/providers/1/name", "/providers/2/provider"} <= set(problems)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries({"providers": st.lists(st.fixed_dictionaries({"name": json_values, "api_key": json_values}))})
    | json_values
)
def test_any_json_is_planned_or_refused(document: object) -> None:
    try:
        plan_import(document, CATALOGUE)
    except Invalid as error:
        told = error.errors
    else:
        told = (("", "a plan"),)
    assert told
