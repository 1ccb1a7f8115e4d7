"""Declarations: the formats, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.apply.document import Document, DocumentInvalid, merge_documents, read_document
from tenants.pool_schemas import Fallback

YAML = """
version: 1
tenants:
  acme:
    pools:
      main:
        keys:
          one: {provider: openai, api_key: {env: ONE}, weight: 3}
"""
TOML = """
version = 1
[tenants.acme.pools.main.keys.one]
provider = "openai"
weight = 3
api_key = {env = "ONE"}
"""
KEY = {"provider": "openai", "api_key": {"env": "ONE"}, "weight": 3}
JSON = json.dumps({"version": 1, "tenants": {"acme": {"pools": {"main": {"keys": {"one": KEY}}}}}})


def test_three_formats_say_the_same() -> None:
    found = [read_document(YAML, "x.yaml"), read_document(TOML, "x.toml"), read_document(JSON, "x.json")]

    assert found[0] == found[1] == found[2]
    assert "ONE" in repr(found[0])


def test_names_in_yaml_are_text() -> None:
    fallback = "{pool: spare, on: [outage]}"
    text = f"version: 1\ntenants: {{acme: {{pools: {{main: {{settings: {{fallbacks: [{fallback}]}}}}, 2026: {{}}}}}}}}"

    pools = read_document(text, "x.yaml").tenants["acme"].pools

    assert pools["main"].settings.fallbacks == [Fallback(pool="spare", on=["outage"])]
    assert "2026" in pools


def test_yaml_anchors_may_be_merged() -> None:
    text = "version: 1\ntenants: {acme: {pools: {main: &main {strategy: weighted}, spare: {<<: *main, default: true}}}}"

    pools = read_document(text, "x.yaml").tenants["acme"].pools

    assert (pools["spare"].strategy, pools["spare"].default, pools["main"].default) == ("weighted", True, False)


def test_the_page_shows_a_declaration_that_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs/apply.md").read_text()
    text = page.split("```yaml\n")[1].split("```")[0]

    acme = read_document(text, "tenants.yaml").tenants["acme"]

    assert set(acme.pools) == {"main", "spare"}


def with_key(**changes: object) -> str:
    key = {**KEY, **changes}
    tenant = {"quotas": {"q": {"provider": "groq"}}, "pools": {"main": {"keys": {"one": key}}}}
    return json.dumps({"version": 1, "tenants": {"acme": tenant}})


@pytest.mark.parametrize(
    ("text", "name", "sentence"),
    [
        ("", "x.yaml", "Expected `object`"),
        ("version: 2", "x.yaml", "version"),
        ("version: 1\ntenants: {Acme: {}}", "x.yaml", "Expected `str` matching regex"),
        ("version: 1\ntenants: {acme: {}, acme: {}}", "x.yaml", "acme is named twice, line 2"),
        ("version: 1\n: -\n  - [", "x.yaml", "is not YAML"),
        ("a: &a [*a]", "x.yaml", "is not"),
        ("!!python/object/apply:os.system [id]", "x.yaml", "is not YAML"),
        ("{", "x.json", "is not readable"),
        ("=", "x.toml", "is not readable"),
        (with_key(weigth=3), "x.json", "unknown field `weigth`; use provider, api_key, base_url"),
        (with_key(api_key={}), "x.json", "exactly one of env and file"),
        (with_key(api_key={"env": "A", "file": "b"}), "x.json", "exactly one of env and file"),
        (with_key(api_key={"inline": "sk-written-down"}), "x.json", "written into the file"),
        (with_key(api_key="sk-written-down"), "x.json", "Expected `object`"),
        (with_key(quota="missing"), "x.json", "not declared among"),
        (with_key(quota="q"), "x.json", "one of groq, not of openai"),
        (with_key(quota="q", limits={"rpm": 1}), "x.json", "limits belong to the quota"),
    ],
)
def test_what_is_refused(text: str, name: str, sentence: str) -> None:
    with pytest.raises(DocumentInvalid) as caught:
        read_document(text, name)
    said = f"{caught.value.public} {caught.value.errors}"
    assert sentence in said
    assert "sk-written-down" not in said


def test_inline_secrets_only_when_allowed_and_never_shown() -> None:
    document = read_document(with_key(api_key={"inline": "sk-written-down"}), "x.json", allow_inline=True)

    assert "sk-written-down" not in repr(document)


def test_a_tenant_stands_in_one_file() -> None:
    one, other = read_document(YAML, "a.yaml"), read_document(JSON, "b.json")
    with pytest.raises(DocumentInvalid, match=r"a\.yaml and in b\.json"):
        merge_documents({"a.yaml": one, "b.json": other})
    assert merge_documents({"a.yaml": one, "c": Document(version=1)}) == one
