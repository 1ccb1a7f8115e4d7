"""The chart as the tests see it: rendered by a real Helm, parsed, validated against Kubernetes' schemas."""

from __future__ import annotations

import functools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from referencing import Registry, Resource

HERE = Path(__file__).resolve().parent
CHART = HERE.parent / "llm-proxy"
TOOLS = HERE.parent.parent / ".venv-chart" / "tools"
HELMS = ("helm-3", "helm-4")
PROFILES = sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))
KUBERNETES = tuple(f"1.{minor}.0" for minor in range(29, 38))

Manifest = dict[str, Any]


class Refused(Exception):
    """Helm did not render; the text is what a person would read."""


@dataclass(frozen=True)
class Rendered:
    """What `helm template` printed, and the same parsed."""

    text: str
    manifests: tuple[Manifest, ...]

    def of_kind(self, kind: str) -> list[Manifest]:
        """Return the manifests of one kind."""
        return [each for each in self.manifests if each["kind"] == kind]

    def one(self, kind: str, suffix: str = "") -> Manifest:
        """Return the one manifest of a kind whose name ends so."""
        (found,) = [each for each in self.of_kind(kind) if each["metadata"]["name"].endswith(suffix)]
        return found


def profile(name: str) -> dict[str, Any]:
    """Return the values of ci/`name`.yaml."""
    values: dict[str, Any] = yaml.safe_load((CHART / "ci" / f"{name}.yaml").read_text())
    return values


def defaults() -> dict[str, Any]:
    """Return values.yaml."""
    values: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return values


def schema() -> dict[str, Any]:
    """Return values.schema.json."""
    found: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    return found


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Lay `changes` (nested) over `values`, as Helm does with several values files."""
    result = dict(values)
    for key, change in changes.items():
        old = result.get(key)
        result[key] = merged(old, change) if isinstance(old, dict) and isinstance(change, dict) else change
    return result


def nested(path: str, value: Any) -> dict[str, Any]:
    """Return {"a": {"b": value}} for "a.b"."""
    for part in reversed(path.split(".")):
        value = {part: value}
    result: dict[str, Any] = value
    return result


def render(
    values: dict[str, Any], *, helm: str = "helm-4", kubernetes: str = "1.34.0", notes: bool = False
) -> Rendered:
    """Render the chart; raises Refused with Helm's message. The same call gives the same object: do not change it."""
    return _render(yaml.safe_dump(values), helm, kubernetes, notes)


@functools.cache
def _render(values: str, helm: str, kubernetes: str, notes: bool) -> Rendered:
    verb = ["install", "--dry-run=client"] if notes else ["template", "--kube-version", kubernetes]
    command = [TOOLS / helm, *verb, "rel", CHART, "-n", "llm", "-f", "-"]
    done = subprocess.run(command, input=values, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(done.stderr)
    if notes:
        return Rendered(done.stdout, ())
    loaded = yaml.load_all(done.stdout, yaml.CSafeLoader)
    return Rendered(done.stdout, tuple(each for each in loaded if each))


def lint(values_file: Path, helm: str) -> subprocess.CompletedProcess[str]:
    """Run `helm lint --strict`."""
    command = [TOOLS / helm, "lint", "--strict", CHART, "-f", values_file]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@functools.cache
def _definitions(minor: str) -> tuple[Path, Resource[Any]]:
    root = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    (folder,) = root.glob(f"v{minor}.*-local-strict")
    return folder, Resource.from_contents(json.loads((folder / "_definitions.json").read_text()))


@functools.cache
def _custom() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((HERE / "custom_resources.yaml").read_text())
    return found


@functools.cache
def _validator(minor: str, api_version: str, kind: str) -> jsonschema.Draft202012Validator:
    if own := _custom().get(f"{api_version}/{kind}"):
        return jsonschema.Draft202012Validator(own)
    group, _, version = api_version.rpartition("/")
    name = "-".join(part for part in (kind.lower(), group.split(".")[0], version) if part)
    folder, definitions = _definitions(minor)
    contents = json.loads((folder / f"{name}.json").read_text())
    registry = definitions @ Registry()
    return jsonschema.Draft202012Validator(contents, registry=Resource.from_contents(contents) @ registry)


def schema_errors(manifest: Manifest, kubernetes: str) -> list[str]:
    """Validate one manifest strictly (unknown fields are errors) for a Kubernetes version."""
    minor = ".".join(kubernetes.split(".")[:2])
    validator = _validator(minor, manifest["apiVersion"], manifest["kind"])
    name = f"{manifest['kind']}/{manifest['metadata']['name']}"
    return [f"{name} {'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(manifest)]


def pod_specs(rendered: Rendered) -> dict[str, dict[str, Any]]:
    """Return every pod specification, by kind and name."""
    found = {}
    for manifest in rendered.manifests:
        spec = (
            manifest["spec"] if manifest["kind"] == "Pod" else manifest.get("spec", {}).get("template", {}).get("spec")
        )
        if isinstance(spec, dict) and "containers" in spec:
            found[f"{manifest['kind']}/{manifest['metadata']['name']}"] = spec
    return found


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the containers and init containers of a pod specification."""
    return [*spec.get("initContainers", []), *spec["containers"]]
