"""The chart and the program agree: variables, metrics, paths, packaged files. Needs no Helm."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from gateway.crew import END_S, REAP_S
from gateway.last_resort import BEYOND_S
from gateway.proxy.routes import is_inference
from gateway.telemetry import Metrics
from gateway.traffic_metrics import TrafficMetrics
from gateway.variables import VARIABLES
from tests.metering.rows import usage_row

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "llm-proxy"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
ENV_TEMPLATE = (CHART / "templates" / "_env.tpl").read_text()

KNOWN = {variable.name: variable for variable in VARIABLES}
OTHERS = {"APP_PASSWORD", "OWNER_PASSWORD", "PGSSLROOTCERT"}
"""Passwords that Kubernetes puts into a URL, and libpq's variable that asyncpg reads by itself."""
PLATFORM = {
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AZURE_FEDERATED_TOKEN_FILE",
}
"""What the clouds' webhooks put into pods that have a workload identity."""
SCRAPED = {"namespace", "pod", "job", "le"}
"""Labels that Prometheus adds; it renames a metric's own `job`."""


def set_by_the_chart() -> set[str]:
    """Return the variables that the templates name, and secrets by the path of their file."""
    return set(re.findall(r'(?:- name: |"name" ")([A-Z][A-Z0-9_]+)', ENV_TEMPLATE))


def test_secrets_are_given_by_file_and_only_they_can_be() -> None:
    by_file = set(re.findall(r'env.fromFile" \(dict "name" "([A-Z_]+)"', ENV_TEMPLATE))

    assert by_file
    assert all(KNOWN[name].secret for name in by_file)


def config_names() -> set[str]:
    """Return the variables that `config` may hold."""
    return set(SCHEMA["properties"]["config"]["properties"])


def test_the_program_reads_every_variable_that_the_chart_sets() -> None:
    assert set_by_the_chart() - OTHERS <= set(KNOWN)
    assert config_names() <= set(KNOWN)
    assert not set_by_the_chart() & config_names()


def test_what_the_program_can_be_told_can_be_said_in_values() -> None:
    groups = {"Listening and identity", "People", "Database", "Custody", "Traffic", "Operations"}
    wanted = {variable.name for variable in VARIABLES if variable.group in groups}

    missing = wanted - set_by_the_chart() - config_names() - PLATFORM
    assert not missing, "add them to `config` in helm/llm-proxy/values.schema.json (a secret: to templates/_env.tpl)"


def test_values_name_every_provider_of_keks() -> None:
    schemes = set(re.findall(r"`([a-z+]+://)", KNOWN["LLM_PROXY_KEK"].meaning))
    pattern = SCHEMA["properties"]["encryption"]["properties"]["kek"]["pattern"]

    assert {"gcpkms://", "azurekv://", "vault+http://"} <= schemes
    for uri in ("env", "file:/keys/keyring", *(f"{scheme}place/key" for scheme in schemes)):
        assert re.search(pattern, uri), uri
        assert re.search(pattern, f"{uri},env"), uri


def test_no_secret_can_be_given_in_values() -> None:
    assert {name for name in config_names() if KNOWN[name].secret} == set()
    for name in set_by_the_chart() & {variable.name for variable in VARIABLES if variable.secret}:
        for use in re.findall(rf"- name: {name}\n  value: (.+)", ENV_TEMPLATE):
            assert "$(" in use, name


def test_defaults_of_the_chart_suit_the_program() -> None:
    assert KNOWN["LLM_PROXY_DATABASE_POOL"].default == str(VALUES["database"]["poolSize"])
    for name, value in VALUES["config"].items():
        KNOWN[name].parse(value)


def test_inference_goes_to_the_gateway_and_nothing_else_does() -> None:
    prefixes = VALUES["routes"]["gatewayPaths"]

    assert all(is_inference(f"{prefix}/x".encode()) for prefix in prefixes)
    for served in (
        "/v1/chat/completions",
        "/v1beta/models/m:generateContent",
        "/pools/p/v1/models",
        "/openai/v1/models",
    ):
        assert any(served.startswith(f"{prefix}/") for prefix in prefixes), served
    assert not any(is_inference(f"{prefix}/x".encode()) for prefix in VALUES["routes"]["controlPaths"])


def expressions() -> list[tuple[str, str]]:
    """Return (where, PromQL) of every alert, panel and scaler."""
    found = [
        (rule["alert"], rule["expr"])
        for path in sorted((CHART / "alerts").glob("*.yaml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]
    for path in sorted((CHART / "dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        found += [
            (f"{path.name}: {panel['title']}", target["expr"])
            for panel in dashboard["panels"]
            for target in panel.get("targets", [])
        ]
    scaler = re.search(r"query: .*?\"(sum.*?)\"", (CHART / "templates" / "autoscaling.yaml").read_text())
    assert scaler
    return [*found, ("ScaledObject", scaler[1])]


@pytest.fixture(scope="module")
def metrics() -> dict[str, set[str]]:
    """Return what `/metrics` publishes: each sample name with its labels."""
    published = Metrics()
    TrafficMetrics(published).record(usage_row())
    found: dict[str, set[str]] = {}
    for family in published.registry.collect():
        labels = set().union(*(sample.labels for sample in family.samples)) if family.samples else set()
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        for suffix in suffixes:
            found[family.name + suffix] = labels
    for metric in vars(published).values():
        if hasattr(metric, "_labelnames"):
            for name in found:
                if name.startswith(metric._name):
                    found[name] |= set(metric._labelnames)
    # Values that are read at scrape time are registered by the parts that own them, when a process starts.
    for path in (ROOT / "gateway").rglob("*.py"):
        for kind, name in re.findall(r"(gauge|counter)\(\s*\"(llm_proxy_\w+)\"", path.read_text()):
            found[name + ("_total" if kind == "counter" else "")] = set()
    return found


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_every_metric_named_is_published(where: str, expression: str, metrics: dict[str, set[str]]) -> None:
    names = set(re.findall(r"\b((?:llm_proxy|process)_[a-z_]+)\b", expression))

    assert names, where
    assert names <= set(metrics), where
    labels = set(re.findall(r"\b([a-z_]+)(?:=~|!~|!=|=)\"", expression))
    for listed in re.findall(r"\bby \(([^)]*)\)", expression):
        labels |= {label.strip() for label in listed.split(",") if label.strip()}
    allowed = SCRAPED | {"service"} | set().union(*(metrics[name] for name in names))
    assert labels <= allowed, where


def test_the_dashboards_ask_the_chosen_source_and_have_ids_of_their_own() -> None:
    for path in (CHART / "dashboards").glob("*.json"):
        dashboard = json.loads(path.read_text())
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(ids) == len(set(ids))
        asking = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
        assert {panel["datasource"]["uid"] for panel in asking} == {"${datasource}"}
        assert dashboard["uid"] == path.stem


def test_the_readme_says_what_the_values_are() -> None:
    command: list[str | Path] = [sys.executable, ROOT / "helm" / "readme.py", "--check"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_the_chart_carries_the_version_of_the_program() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert version
    assert chart["appVersion"] == version[1]


def test_the_image_holds_the_packages_and_the_migrations_and_runs_as_a_number() -> None:
    containerfile = (ROOT / "Containerfile").read_text()
    allowed = {line[1:] for line in (ROOT / ".containerignore").read_text().split() if line.startswith("!")}
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", containerfile, re.MULTILINE))
    sources = {source for line in copied for source in line.split()}

    assert sources == allowed
    assert {"auth", "tenants", "gateway", "llm_proxy", "alembic"} <= sources
    assert all((ROOT / source).exists() for source in sources)
    (user,) = re.findall(r"^USER (\S+)$", containerfile, re.MULTILINE)
    assert user == f"{VALUES['podSecurityContext']['runAsUser']}:{VALUES['podSecurityContext']['runAsGroup']}"


def test_the_grace_period_is_longer_than_an_end_may_take() -> None:
    template = (CHART / "templates" / "_workload.tpl").read_text()
    (beyond,) = re.findall(r"PeriodSeconds: {{ add \$v.drainLeadSeconds \$v.drainSeconds (\d+) }}", template)
    assert int(beyond) > END_S + REAP_S + BEYOND_S
