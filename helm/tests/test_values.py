"""Values: every documented one reaches a manifest; unknown and contradictory ones are refused with the mend."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest
import yaml
from chart import CHART, PROFILES, Refused, defaults, merged, nested, profile, render, schema, schema_errors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MINIMAL = profile("minimal")
PARAMS = re.findall(r"^\s*## @param (\S+)", (CHART / "values.yaml").read_text(), re.MULTILINE)
OBJECT = {"changed": "yes"}
SAMPLES: dict[str, Any] = {
    # Where the kind of a value does not tell what a valid change is.
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}],
    "config": {"LLM_PROXY_LOG_LEVEL": "debug"},
    "issuer": "https://changed.example.com",
    "declarations.files": {"changed.yaml": "version: 1"},
    "declarations.secrets": ["changed"],
    "declarations.url": "https://changed.example.com",
    "image.digest": "sha256:" + "c" * 64,
    "image.pullSecrets": ["changed"],
    "encryption.kek": "file:/changed",
    "encryption.vault.tokenPath": "/changed",
    "routes.hosts": ["changed.example.com"],
    "routes.gatewayPaths": ["/changed"],
    "routes.controlPaths": ["/changed"],
    "networkPolicy.providerExcept": ["10.0.0.0/8"],
    "networkPolicy.providerPorts": [8443],
    "networkPolicy.extraEgress": [{"ports": [{"port": 9}]}],
    "networkPolicy.providerCIDR": "10.0.0.0/8",
    "metrics.rules.disabled": ["LLMProxyNoLeader"],
    "migrations.mode": "none",
    "gateway.autoscaling.prometheusAddress": "http://changed:9090",
    "gateway.autoscaling.authenticationRef": {"name": "changed", "kind": "TriggerAuthentication"},
    "externalSecret.storeRef": {"name": "changed", "kind": "SecretStore"},
    "externalSecret.data": [{"secretKey": "changed", "remoteRef": {"key": "changed"}}],
    "tmpSizeLimit": "1Gi",
    "gateway.state.sizeLimit": "1Gi",
    "gateway.spool.sizeLimit": "2Gi",
    "gateway.spool.processSize": "256MiB",
    "cnpg.storageSize": "9Gi",
    "devDatabase.storageSize": "9Gi",
    "httpRoute.requestTimeout": "90s",
    "httpRoute.parentRefs": [{"name": "changed"}],
    "metrics.serviceMonitor.interval": "99s",
    "gateway.topologySpreadConstraints": [{"maxSkew": 9, "topologyKey": "x", "whenUnsatisfiable": "ScheduleAnyway"}],
}
DECLARED = (
    "url",
    "files",
    "operatorSecret",
    "secrets",
    "owner",
    "prune",
    "backoffLimit",
    "activeDeadlineSeconds",
    "resources",
)
NEEDS = {
    "tls.clientCASecret": ("minimal", {"tls": {"existingSecret": "llm-tls"}}),
    "encryption.shares": ("minimal", {}),
    "encryption.sharesClaim": (
        "minimal",
        {"encryption": {"shares": "file:/var/lib/llm-proxy/shares", "sharesClaim": "shares"}},
    ),
    "encryption.azure.clientSecretKey": ("minimal", {"encryption": {"azure": {"existingSecret": "azure"}}}),
    "oidc.key": ("minimal", {"oidc": {"existingSecret": "llm-oidc"}}),
    "declarations.enabled": ("declarations", {}),
    "declarations.existingConfigMap": (
        "minimal",
        {"declarations": {"enabled": True, "operatorSecret": "operator", "existingConfigMap": "declared"}},
    ),
    **{f"declarations.{name}": ("declarations", {}) for name in DECLARED},
    "database.maxConnections": ("minimal", {"database": {"maxConnections": 200}}),
    "database.port": ("production", {}),
    "gateway.service.nodePort": ("dev", {}),
    "control.service.nodePort": ("dev", {"control": {"service": {"type": "NodePort"}}}),
    "control.service.trafficDistribution": ("production", {}),
    "database.directUrlKey": ("gateway-api-keda", {}),
    "tests.enabled": ("minimal", {}),
}


def changed(path: str, node: dict[str, Any], old: Any) -> Any:
    """Return another valid value."""
    if path in SAMPLES:
        return SAMPLES[path]
    if "enum" in node:
        return next(value for value in reversed(node["enum"]) if value != old)
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return old + 1
    if isinstance(old, str):
        return "changed"
    if isinstance(old, dict):
        return OBJECT if node.get("additionalProperties", True) is not False else {"requests": {"cpu": "7"}}
    if path.endswith("extraEnv"):
        return [{"name": "CHANGED", "value": "yes"}]
    return [OBJECT]


def at(tree: dict[str, Any], path: str) -> Any:
    for part in path.split("."):
        tree = tree[part]
    return tree


@pytest.mark.parametrize("path", PARAMS)
def test_every_documented_value_reaches_a_manifest_or_refuses(path: str) -> None:
    node = schema()
    for part in path.split("."):
        node = node["properties"][part]
    profile_name, extra = NEEDS.get(path, ("", {}))
    tried = [profile_name] if profile_name else ["production", "gateway-api-keda", "cnpg", "dev", "minimal"]

    for name in tried:
        base = merged(profile(name), extra)
        old = at(merged(defaults(), base), path)
        try:
            after = render(merged(base, nested(path, changed(path, node, old)))).text
        except Refused as refused:
            assert "to mend" in str(refused), f"{path}: {refused}"  # noqa: PT017
            continue
        if after != render(base).text:
            return
    if path == "database.maxConnections":  # It guards, and reaches no manifest.
        with pytest.raises(Refused, match="database connections"):
            render(merged(MINIMAL, nested(path, 20)))
        return
    pytest.fail(f"{path} changes nothing in any profile")


def strict_objects(node: dict[str, Any], path: str = "") -> list[str]:
    """List the objects with named properties that take unknown ones."""
    loose = []
    if "properties" in node and node.get("additionalProperties") is not False:
        loose.append(path or "(root)")
    for key, child in node.get("properties", {}).items():
        loose += strict_objects(child, f"{path}.{key}".strip("."))
    return loose


def test_the_schema_is_strict_and_says_what_values_yaml_says() -> None:
    found = schema()

    jsonschema.Draft7Validator.check_schema(found)
    assert strict_objects(found) == []
    jsonschema.Draft7Validator(found).validate(defaults())
    described = dict(re.findall(r"^\s*## @param (\S+) (.+)$", (CHART / "values.yaml").read_text(), re.MULTILINE))
    for path, meaning in described.items():
        node = found
        for part in path.split("."):
            node = node["properties"][part]
        assert node["description"] == meaning, path


def test_every_schema_property_is_a_value() -> None:
    def paths(node: dict[str, Any], prefix: str = "") -> list[str]:
        found = []
        for key, child in node.get("properties", {}).items():
            path = f"{prefix}{key}"
            found += [path] if "description" in child else paths(child, f"{path}.")
        return found

    assert sorted(paths(schema())) == sorted(PARAMS)


@pytest.mark.parametrize("helm", ["helm-3", "helm-4"])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gateway": {"replica": 3}}, "replica"),
        ({"config": {"LLM_PROXY_TYPO": "1"}}, "LLM_PROXY_TYPO"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"issuer": "llm.example.com"}, "issuer"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"gateway": {"autoscaling": {"type": "both"}}}, "type"),
        ({"gateway": {"replicas": "2"}}, "replicas"),
    ],
)
def test_what_no_value_may_be_is_refused_by_the_schema(changes: dict[str, Any], sentence: str, helm: str) -> None:
    with pytest.raises(Refused, match=sentence):
        render(merged(MINIMAL, changes), helm=helm)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image": {"repository": ""}}, "image.repository is empty"),
        ({"issuer": ""}, "issuer is empty"),
        ({"declarations": {"enabled": True, "files": {"a.yaml": "version: 1"}}}, "operatorSecret is empty"),
        ({"declarations": {"enabled": True, "operatorSecret": "x"}}, "either files or existingConfigMap"),
        ({"existingSecret": ""}, "set existingSecret"),
        ({"cnpg": {"enabled": True, "appRoleSecret": "x"}, "devDatabase": {"enabled": True}}, "choose one database"),
        ({"cnpg": {"enabled": True}}, "cnpg.appRoleSecret is empty"),
        ({"devDatabase": {"enabled": True}}, "set migrations.mode to initContainer"),
        ({"devDatabase": {"enabled": True}, "database": {"host": "db"}}, "database.host is set although"),
        ({"database": {"host": "db", "directUrlKey": "x"}}, "directUrlKey goes with URLs"),
        ({"gateway": {"replicas": 1}}, "protects nothing"),
        ({"control": {"replicas": 1}}, "control.pdb.enabled"),
        ({"gateway": {"maxSurge": 0}}, "no pod could ever be replaced"),
        ({"gateway": {"service": {"nodePort": 30080}}}, "needs gateway.service.type"),
        ({"gateway": {"autoscaling": {"type": "keda"}}}, "prometheusAddress is empty"),
        ({"gateway": {"autoscaling": {"type": "hpa", "minReplicas": 20}}}, "above maxReplicas"),
        ({"gateway": {"autoscaling": {"type": "hpa", "targetCPUUtilization": 0}}}, "nothing to go by"),
        ({"gateway": {"autoscaling": {"type": "hpa"}, "resources": {"requests": {"cpu": None}}}}, "requests.cpu"),
        ({"ingress": {"enabled": True}}, "routes.hosts is empty"),
        ({"httpRoute": {"enabled": True}, "routes": {"hosts": ["a.example"]}}, "parentRefs is empty"),
        ({"externalSecret": {"enabled": True}}, "externalSecret needs"),
        ({"encryption": {"shares": "file:/var/lib/llm-proxy/shares"}}, "encryption.sharesClaim is empty"),
        ({"encryption": {"sharesClaim": "shares"}}, "goes with encryption.shares"),
        ({"encryption": {"spare": "vault://v:8200/transit/k"}}, "vault:// needs a token"),
        ({"tls": {"clientCASecret": "ca"}}, "needs tls.existingSecret"),
        ({"config": {"LLM_PROXY_CLIENT_CERTIFICATES": "server"}}, "the pods do not end TLS"),
        ({"encryption": {"kek": "vault://v:8200/transit/k,env"}}, "vault:// needs a token"),
        ({"database": {"maxConnections": 50}}, "above database.maxConnections"),
        ({"commonLabels": {"app.kubernetes.io/name": "x"}}, "commonLabels holds app.kubernetes.io/name"),
        (
            {"gateway": {"podLabels": {"app.kubernetes.io/component": "x"}}},
            "gateway.podLabels holds app.kubernetes.io/component",
        ),
        ({"gateway": {"workers": 3}}, "less than gateway.workers (3) times"),
        ({"gateway": {"spool": {"processSize": "1200M", "sizeLimit": "1Gi"}}}, "a pod beyond it is evicted"),
        (
            {"encryption": {"kek": "env,vault://v:8200/transit/k", "vault": {"tokenPath": "/t"}}},
            "Vault's port 8200 is closed by networkPolicy",
        ),
        (
            {"devDatabase": {"enabled": True}, "migrations": {"mode": "initContainer"}, "database": {"port": 6432}},
            "listens on 5432",
        ),
    ],
)
def test_contradictions_are_refused_with_the_mend(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Refused, match=re.escape(sentence)):
        render(merged(MINIMAL, changes))


def test_all_contradictions_are_told_at_once() -> None:
    with pytest.raises(Refused, match=r"4 value\(s\) to mend"):
        render({})


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    name=st.sampled_from(PROFILES),
    kubernetes=st.sampled_from(["1.29.0", "1.31.0", "1.37.0"]),
    switches=st.fixed_dictionaries(
        {},
        optional={
            "metrics.serviceMonitor.enabled": st.booleans(),
            "metrics.rules.enabled": st.booleans(),
            "metrics.dashboards.enabled": st.booleans(),
            "networkPolicy.enabled": st.booleans(),
            "serviceAccount.create": st.booleans(),
            "tests.enabled": st.booleans(),
            "migrations.mode": st.sampled_from(["hook", "initContainer", "none"]),
            "gateway.autoscaling.type": st.sampled_from(["none", "hpa", "keda"]),
            "gateway.replicas": st.integers(0, 5),
            "gateway.pdb.enabled": st.booleans(),
            "gateway.drainLeadSeconds": st.integers(0, 600),
            "control.replicas": st.integers(0, 3),
            "control.pdb.enabled": st.booleans(),
            "commonLabels": st.dictionaries(st.from_regex(r"[a-z]{1,9}", fullmatch=True), st.just("true"), max_size=2),
            "gateway.extraEnv": st.just([{"name": "EXTRA", "value": "1: {}"}]),
            "database.caSecret": st.sampled_from(["", "ca"]),
        },
    ),
)
def test_any_combination_is_valid_or_refused_with_the_mend(
    name: str, kubernetes: str, switches: dict[str, Any]
) -> None:
    values = profile(name)
    for path, value in switches.items():
        values = merged(values, nested(path, value))
    try:
        rendered = render(values, kubernetes=kubernetes)
    except Refused as refused:
        assert "to mend" in str(refused), yaml.safe_dump(values)  # noqa: PT017
        return
    assert [error for each in rendered.manifests for error in schema_errors(each, kubernetes)] == []
