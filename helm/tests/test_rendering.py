"""Every profile in ci/ lints, renders with both Helms and is valid for every Kubernetes that we name."""

from __future__ import annotations

import json

import pytest
import yaml
from chart import CHART, HELMS, KUBERNETES, PROFILES, lint, profile, render, schema_errors


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("name", PROFILES)
def test_lints(name: str, helm: str) -> None:
    done = lint(CHART / "ci" / f"{name}.yaml", helm)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("name", PROFILES)
def test_both_helms_render_the_same(name: str) -> None:
    three, four = (render(profile(name), helm=helm).manifests for helm in HELMS)

    def key(manifest: dict[str, object]) -> str:
        return json.dumps(manifest, sort_keys=True)

    assert sorted(map(key, three)) == sorted(map(key, four))


@pytest.mark.parametrize("kubernetes", KUBERNETES)
@pytest.mark.parametrize("name", PROFILES)
def test_manifests_are_valid_for(name: str, kubernetes: str) -> None:
    rendered = render(profile(name), kubernetes=kubernetes)

    assert rendered.manifests
    assert [error for each in rendered.manifests for error in schema_errors(each, kubernetes)] == []


@pytest.mark.parametrize("name", PROFILES)
def test_names_are_unique_and_references_hold(name: str) -> None:
    rendered = render(profile(name))

    names = [(each["kind"], each["metadata"]["name"]) for each in rendered.manifests]
    assert len(names) == len(set(names))
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in rendered.of_kind("Deployment")]
    labels += [each["spec"]["template"]["metadata"]["labels"] for each in rendered.of_kind("StatefulSet")]
    for service in rendered.of_kind("Service"):
        selector = service["spec"]["selector"].items()
        assert sum(selector <= each.items() for each in labels) == 1, service["metadata"]["name"]
    services = {each["metadata"]["name"] for each in rendered.of_kind("Service")}
    for route in rendered.of_kind("HTTPRoute"):
        assert {ref["name"] for rule in route["spec"]["rules"] for ref in rule["backendRefs"]} <= services
    for ingress in rendered.of_kind("Ingress"):
        paths = [path for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]
        assert {path["backend"]["service"]["name"] for path in paths} <= services


def test_a_long_release_name_still_gives_valid_names() -> None:
    rendered = render({**profile("cnpg"), "fullnameOverride": "a" * 60})

    assert all(len(each["metadata"]["name"]) <= 63 for each in rendered.manifests)


@pytest.mark.parametrize("name", PROFILES)
def test_notes_tell_the_next_commands(name: str) -> None:
    notes = render(profile(name), notes=True).text.partition("NOTES:")[2]

    assert "helm -n llm test rel" in notes
    assert "llm-proxy bootstrap" in notes
    assert "Database connections: at most" in notes


def test_the_dashboards_and_alerts_arrive_whole() -> None:
    rendered = render(profile("production"))

    (config_map,) = [each for each in rendered.of_kind("ConfigMap") if "dashboards" in each["metadata"]["name"]]
    files = {path.name: json.loads(path.read_text()) for path in (CHART / "dashboards").glob("*.json")}
    assert {name: json.loads(text) for name, text in config_map["data"].items()} == files
    written = [
        rule["alert"]
        for path in (CHART / "alerts").glob("*.yaml")
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]
    groups = rendered.one("PrometheusRule")["spec"]["groups"]
    assert sorted(rule["alert"] for group in groups for rule in group["rules"]) == sorted(written)
