"""What the chart owes its operators: the restricted Pod Security Standard, no secret in a manifest, tight networks."""

from __future__ import annotations

from typing import Any

import pytest
from chart import PROFILES, containers, merged, pod_specs, profile, render

SECRET_NAMES = ("PASSWORD", "SECRET", "KEK_KEYS", "PEPPERS", "TOKEN")


@pytest.mark.parametrize("name", PROFILES)
def test_pods_meet_the_restricted_standard(name: str) -> None:
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    specs = pod_specs(render(profile(name)))

    assert any(kind.startswith("Deployment/") for kind in specs)
    for where, spec in specs.items():
        assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), where
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] > 0
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        allowed = {"emptyDir", "configMap", "secret", "projected", "persistentVolumeClaim"}
        assert all(set(volume) & allowed for volume in spec.get("volumes", []))
        for container in containers(spec):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert "privileged" not in own
            assert not any("hostPort" in port for port in container.get("ports", []))


@pytest.mark.parametrize("name", PROFILES)
def test_containers_state_what_they_need_and_mount_no_api_token(name: str) -> None:
    for where, spec in pod_specs(render(profile(name))).items():
        assert spec["automountServiceAccountToken"] is False, where
        for container in containers(spec):
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, where
            assert "memory" in container["resources"]["limits"], where
            assert "cpu" not in container["resources"]["limits"], where
            assert ":" in container["image"].rpartition("/")[2]


@pytest.mark.parametrize("name", PROFILES)
def test_secrets_come_by_reference_only(name: str) -> None:
    rendered = render(profile(name))

    assert rendered.of_kind("Secret") == []
    for where, spec in pod_specs(rendered).items():
        for container in containers(spec):
            for variable in container.get("env", []):
                if any(word in variable["name"] for word in SECRET_NAMES) and not variable["name"].endswith("_FILE"):
                    assert variable["valueFrom"].keys() == {"secretKeyRef"}, (where, variable["name"])
                if "://" in variable.get("value", "") and "@" in variable["value"]:
                    assert ":$(" in variable["value"], (where, variable["name"])


@pytest.mark.parametrize("name", PROFILES)
def test_every_secret_file_is_mounted_and_open_to_our_group_alone(name: str) -> None:
    for where, spec in pod_specs(render(profile(name))).items():
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for container in containers(spec):
            files = set()
            for mount in container["volumeMounts"]:
                projected = volumes.get(mount["name"], {}).get("projected")
                if projected:
                    assert mount["readOnly"] is True
                    assert projected["defaultMode"] == 0o440
                    items = [item for source in projected["sources"] for item in source["secret"]["items"]]
                    files |= {f"{mount['mountPath']}/{item['path']}" for item in items}
            told = {each["value"] for each in container.get("env", []) if each["name"].endswith("_FILE")}
            assert told == files, where


@pytest.mark.parametrize("name", PROFILES)
def test_a_variable_that_is_put_into_another_stands_before_it(name: str) -> None:
    # Kubernetes leaves $(NAME) as it is when NAME comes later.
    for where, spec in pod_specs(render(profile(name))).items():
        for container in containers(spec):
            seen: set[str] = set()
            for variable in container.get("env", []):
                value = variable.get("value", "")
                wanted = {part.partition(")")[0] for part in value.split("$(")[1:]}
                assert wanted <= seen, (where, variable["name"])
                assert variable["name"] not in seen, (where, variable["name"])
                seen.add(variable["name"])


@pytest.mark.parametrize("name", PROFILES)
def test_only_the_migration_sees_the_owner_and_only_control_the_peppers(name: str) -> None:
    for where, spec in pod_specs(render(profile(name))).items():
        for container in containers(spec):
            names = {variable["name"].removesuffix("_FILE") for variable in container.get("env", [])}
            migrates = container["name"] == "migrate"
            assert ("LLM_PROXY_MIGRATION_URL" in names) == migrates, where
            assert ("LLM_PROXY_PEPPERS" in names) == (container["name"] == "control"), where
            assert ("DATABASE_URL" in names) == (container["name"] in ("gateway", "control")), where


def test_the_network_policies_cover_every_pod_of_ours_and_keep_metadata_out() -> None:
    rendered = render(profile("production"))

    policies = {each["metadata"]["name"]: each["spec"] for each in rendered.of_kind("NetworkPolicy")}
    assert set(policies) == {f"rel-llm-proxy-{component}" for component in ("gateway", "control", "migrate")}
    for name, policy in policies.items():
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        open_to_all = [rule for rule in policy["egress"] if "to" not in rule]
        assert all({port["port"] for port in rule["ports"]} <= {53} for rule in open_to_all), name
        blocks = [peer["ipBlock"] for rule in policy["egress"] for peer in rule.get("to", []) if "ipBlock" in peer]
        assert all("169.254.0.0/16" in block["except"] for block in blocks if block["cidr"] == "0.0.0.0/0")
    assert policies["rel-llm-proxy-migrate"]["ingress"] == []


@pytest.mark.parametrize("name", ["production", "declarations"])
def test_a_narrowed_policy_lets_in_the_pods_that_the_release_itself_asks_with(name: str) -> None:
    """Nobody else would: `helm test` and the Job of declarations would wait for an answer that cannot come."""
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    rendered = render(merged(profile(name), {"networkPolicy": {"ingressFrom": [prometheus]}}))
    asking = [rendered.one("Pod", "-smoke")["metadata"]["labels"]]
    asking += [job["spec"]["template"]["metadata"]["labels"] for job in rendered.of_kind("Job")]

    for component in ("gateway", "control"):
        (rule,) = rendered.one("NetworkPolicy", component)["spec"]["ingress"]
        first, ours = rule["from"]
        assert first == prometheus
        selector = ours["podSelector"]
        (listed,) = selector["matchExpressions"]
        for labels in asking:
            admitted = selector["matchLabels"].items() <= labels.items() and labels[listed["key"]] in listed["values"]
            assert admitted == (labels[listed["key"]] != "migrate")


def test_without_peers_the_policies_let_everybody_in() -> None:
    (rule,) = render(profile("minimal")).one("NetworkPolicy", "gateway")["spec"]["ingress"]
    assert "from" not in rule


def test_the_migration_leans_on_nothing_of_the_release() -> None:
    rendered = render(profile("production"))
    job = rendered.one("Job")
    spec: dict[str, Any] = job["spec"]["template"]["spec"]

    hook = job["metadata"]["annotations"]["helm.sh/hook"]
    assert hook == "pre-install,pre-upgrade"
    assert spec["serviceAccountName"] == "llm-proxy-migrations"
    ours = {each["metadata"]["name"] for each in rendered.manifests if each["kind"] in ("ConfigMap", "ServiceAccount")}
    used = {spec["serviceAccountName"]} | {volume.get("configMap", {}).get("name") for volume in spec["volumes"]}
    assert not ours & used
    assert spec["restartPolicy"] == "Never"


def test_health_and_metrics_are_not_routed() -> None:
    for name in ("production", "gateway-api-keda"):
        rendered = render(profile(name))
        paths = [
            path["path"]
            for each in rendered.of_kind("Ingress")
            for rule in each["spec"]["rules"]
            for path in rule["http"]["paths"]
        ]
        paths += [
            match["path"]["value"]
            for each in rendered.of_kind("HTTPRoute")
            for rule in each["spec"]["rules"]
            for match in rule["matches"]
        ]
        assert paths
        assert not {"/", "/livez", "/readyz", "/metrics"} & set(paths)
