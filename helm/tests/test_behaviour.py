"""The numbers and switches that decide how a rollout goes."""

from __future__ import annotations

from typing import Any

import pytest
from chart import merged, nested, profile, render

MINIMAL = profile("minimal")


def pod(values: dict[str, object], component: str = "gateway") -> dict[str, object]:
    spec: dict[str, object] = render(values).one("Deployment", component)["spec"]["template"]["spec"]
    return spec


def test_the_grace_period_covers_lead_and_drain() -> None:
    values = merged(MINIMAL, {"gateway": {"drainLeadSeconds": 7, "drainSeconds": 500}})

    spec = pod(values)

    assert spec["terminationGracePeriodSeconds"] == 7 + 500 + 25
    (container,) = spec["containers"]  # type: ignore[misc, attr-defined]
    told = {each["name"]: each.get("value") for each in container["env"]}
    assert (told["LLM_PROXY_DRAIN_LEAD"], told["LLM_PROXY_DRAIN"]) == ("7", "500")


def test_liveness_and_readiness_ask_different_things() -> None:
    (container,) = pod(MINIMAL)["containers"]  # type: ignore[misc, attr-defined]

    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["startupProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_each_process_is_started_by_its_own_command() -> None:
    for component in ("gateway", "control"):
        (container,) = pod(MINIMAL, component)["containers"]  # type: ignore[misc, attr-defined]
        assert container["args"] == [component]


@pytest.mark.parametrize("kind", ["hpa", "keda"])
def test_an_autoscaler_owns_the_replicas(kind: str) -> None:
    changes = {"gateway": {"autoscaling": {"type": kind, "prometheusAddress": "http://prometheus:9090"}}}
    rendered = render(merged(MINIMAL, changes))

    assert "replicas" not in rendered.one("Deployment", "gateway")["spec"]
    assert "replicas" in rendered.one("Deployment", "control")["spec"]
    scaler = rendered.one("HorizontalPodAutoscaler" if kind == "hpa" else "ScaledObject")
    assert scaler["spec"]["scaleTargetRef"]["name"] == "rel-llm-proxy-gateway"


def test_migrations_run_once_in_the_chosen_place() -> None:
    for mode, jobs, inits in (("hook", 1, 0), ("initContainer", 0, 1), ("none", 0, 0)):
        rendered = render(merged(MINIMAL, nested("migrations.mode", mode)))
        spec = rendered.one("Deployment", "gateway")["spec"]["template"]["spec"]
        assert (len(rendered.of_kind("Job")), len(spec.get("initContainers", []))) == (jobs, inits)


def test_connections_count_pods_while_rolling() -> None:
    values = merged(MINIMAL, {"gateway": {"replicas": 4}, "control": {"replicas": 2}, "database": {"poolSize": 5}})

    notes = render(values, notes=True).text

    assert "at most 77 while rolling (5 gateway x 8 + 3 control x 12 + 1 for migrations)" in notes


def test_a_new_chart_version_alone_rolls_no_pod() -> None:
    labels = render(MINIMAL).one("Deployment", "gateway")["spec"]["template"]["metadata"]["labels"]

    assert "helm.sh/chart" not in labels


def test_the_digest_wins_over_the_tag() -> None:
    digest = "sha256:" + "a" * 64
    values = merged(MINIMAL, {"image": {"tag": "1.0", "digest": digest}})

    (container,) = pod(values)["containers"]  # type: ignore[misc, attr-defined]

    assert container["image"] == f"registry.example.com/llm-proxy@{digest}"


def test_policies_let_out_to_the_port_that_the_urls_name() -> None:
    elsewhere = merged(profile("minimal"), {"database": {"host": "db.internal", "port": 6432}})

    for policy in render(elsewhere).of_kind("NetworkPolicy"):
        ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule.get("ports", [])}
        assert {5432, 6432} <= ports, policy["metadata"]["name"]


@pytest.mark.parametrize(
    ("changes", "url"),
    [
        ({}, "http://rel-llm-proxy-control:80"),
        ({"tls": {"existingSecret": "llm-tls"}}, "https://llm.example.com"),
        ({"tls": {"existingSecret": "t"}, "declarations": {"url": "https://in.example"}}, "https://in.example"),
    ],
)
def test_declarations_are_applied_where_the_certificate_holds(changes: dict[str, Any], url: str) -> None:
    job = render(merged(profile("declarations"), changes)).one("Job", "-apply")

    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert {"name": "LLM_PROXY_URL", "value": url} in container["env"]


def test_pods_that_run_once_go_where_they_may_and_end() -> None:
    """A migration that no node takes, or whose side-car stays, holds every upgrade up."""
    jobs = {
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "podAnnotations": {"linkerd.io/inject": "disabled"},
    }
    rendered = render(merged(profile("declarations"), {"jobs": jobs}))
    templates = [job["spec"]["template"] for job in rendered.of_kind("Job")] + [rendered.one("Pod", "-smoke")]

    assert len(templates) == 3
    for template in templates:
        assert template["spec"]["nodeSelector"] == jobs["nodeSelector"]
        assert template["spec"]["tolerations"] == jobs["tolerations"]
        assert template["metadata"]["annotations"].items() >= jobs["podAnnotations"].items()  # type: ignore[attr-defined]
    assert rendered.one("Pod", "-smoke")["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert "nodeSelector" not in rendered.one("Deployment", "gateway")["spec"]["template"]["spec"]
