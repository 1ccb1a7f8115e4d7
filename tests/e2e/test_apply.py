"""`llm-proxy apply` against the running program: declared, done, done again, changed, rotated and pruned."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from auth.errors import Fault
from auth.secret import Secret
from gateway.apply.document import DocumentInvalid
from gateway.cli.program import program
from gateway.http_client import Credentials, ManagementClient
from tests.e2e.conftest import RunningGateway

FIRST, SECOND = "sim-key-declared-first-000001", "sim-key-declared-second-00001"


def declaration(slug: str) -> dict[str, Any]:
    key = {"provider": "simulated", "base_url": "http://127.0.0.1:9", "api_key": {"env": "DECLARED_KEY"}}
    return {
        "version": 1,
        "tenants": {
            slug: {
                "name": "Declared Ltd",
                "settings": {"note": "ours"},
                "quotas": {
                    "shared": {
                        "provider": "simulated",
                        "limits": {"rpm": 100, "models": {"gpt-4o*": {"rpm": 9, "concurrency": 2}, "o3": {"tpd": 7}}},
                    }
                },
                "pools": {
                    "main": {
                        "strategy": "weighted_round_robin",
                        "default": True,
                        "settings": {
                            "retry": {"max_attempts": 2},
                            "model_aliases": {"fast": "gpt-4o-mini"},
                            "fallbacks": [{"pool": "spare", "on": ["outage"]}],
                        },
                        "keys": {
                            "one": {**key, "quota": "shared", "weight": 5},
                            "two": {**key, "limits": {"rpm": 10, "tpm": 1000}, "models": ["gpt-4o*"]},
                        },
                    },
                    "spare": {"settings": {"fallbacks": [{"pool": "main"}]}, "keys": {"three": key}},
                },
                "clients": {
                    "web": {
                        "scopes": ["inference", "tokens:issue"],
                        "authorization_details": [{"type": "llm_proxy", "pools": ["main"], "rpm": 5}],
                    },
                    "ops": {"scopes": ["usage:read"], "token_lifetime_s": 600},
                },
            }
        },
    }


@pytest.fixture
def apply(gateway: RunningGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("DECLARED_KEY", FIRST)

    def run(document: dict[str, Any], *words: str) -> Result:
        files = tmp_path / "files"  # a directory, as Kubernetes mounts one
        files.mkdir(exist_ok=True)
        (files / "declared.json").write_text(json.dumps(document))
        profile = str(gateway.home / "operator.json")
        result = CliRunner().invoke(program, ["apply", "-f", str(files), "--profile", profile, *words])
        assert FIRST not in result.output
        assert SECOND not in result.output
        return result

    return run


def done(result: Result) -> str:
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_declared_done_and_done_again(
    gateway: RunningGateway, apply: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = declaration("declared")
    tenant = document["tenants"]["declared"]

    shown = apply(document, "--dry-run")
    assert shown.exit_code == 2
    assert "+ key declared/main/one" in shown.output
    assert "9 to create" in shown.output
    assert isinstance(apply(document).exception, DocumentInvalid)  # new secrets have nowhere to go

    assert "+ tenant declared" in done(apply(document, "--credentials-out", str(tmp_path / "out")))
    assert "nothing to do" in done(apply(document))
    assert "nothing to do" in done(apply(document, "--dry-run", "--prune"))

    # The client works, and is as narrow as declared; the first client, which may do everything, is gone.
    profile = tmp_path / "out" / "declared.web.json"
    assert profile.stat().st_mode & 0o077 == 0
    held = json.loads(profile.read_text())
    credentials = Credentials(held["base_url"], held["client_id"], Secret(held["client_secret"]))
    with ManagementClient(credentials) as web:
        answer = web.issue_token()
    assert set(answer["scope"].split()) == {"inference", "tokens:issue"}
    assert answer["authorization_details"][0]["pools"] == ["main"]

    # What was changed by hand or in the file goes back to what is declared; a new secret is rotated in, once.
    tenant["quotas"]["shared"]["limits"] = {"tpm": 9000, "models": {"gpt-4o*": {"concurrency": 3}}}
    tenant["pools"]["main"]["settings"] = {"retry": {"budget_ratio": 0.5}}
    tenant["pools"]["main"]["keys"]["two"].update(limits={"rpm": 20}, weight=3, region="eu")
    tenant["clients"]["ops"]["status"] = "disabled"
    monkeypatch.setenv("DECLARED_KEY", SECOND)
    dry = apply(document, "--dry-run")
    assert dry.exit_code == 2
    assert "weight: 1 -> 3" in dry.output
    assert "secret: " in dry.output
    done(apply(document))
    assert "nothing to do" in done(apply(document))
    monkeypatch.setenv("DECLARED_KEY", FIRST)
    assert "nothing to do" in done(apply(document))  # an older secret than the one in use is not brought back

    # Pruning takes what apply made, and nothing else.
    with operator_in(gateway, "declared", "pools:write", "pools:read") as inside:
        inside.request("POST", "/api/v1/pools", {"name": "theirs"})
    del tenant["pools"]["spare"]
    del tenant["pools"]["main"]["keys"]["two"]
    del tenant["clients"]["ops"]
    assert "--prune removes it" in done(apply(document))
    assert "0 to create, 0 to change, 4 to remove" in done(apply(document, "--prune"))
    assert "nothing to do" in done(apply(document, "--prune"))
    with operator_in(gateway, "declared", "pools:read", "clients:read", "audit:read") as inside:
        assert {pool["name"] for pool in inside.items("/api/v1/pools")} == {"main", "theirs"}
        assert {client["name"] for client in inside.items("/api/v1/clients")} == {"web"}
        assert "operator.act" in {event["action"] for event in inside.items("/api/v1/audit")}

    # Whole tenants go only when that was said as well.
    assert "--prune removes it" in done(apply({"version": 1, "tenants": {}}, "--prune"))
    assert "- tenant declared with all it owns" in done(
        apply({"version": 1, "tenants": {}}, "--prune", "--prune-tenants")
    )


def test_what_exists_is_adopted_and_what_others_own_is_left(apply: Callable[..., Result]) -> None:
    """`acme` is the demo tenant, which nobody declared."""
    document: dict[str, Any] = {"version": 1, "tenants": {"acme": {"quotas": {"mine": {"provider": "openai"}}}}}

    assert "= tenant acme exists already" in done(apply(document))
    assert "nothing to do" in done(apply(document, "--prune"))
    other = apply(document, "--owner", "other")
    assert isinstance(other.exception, Fault)
    assert other.exception.code == "plan_refused"
    document["tenants"]["acme"]["quotas"] = {}
    assert "1 to remove" in done(apply(document, "--prune"))


def test_an_operator_that_may_not_act_is_told(gateway: RunningGateway, tmp_path: Path) -> None:
    profile = tmp_path / "tenant.json"
    body = {"base_url": gateway.base_url, "client_id": gateway.client_id, "client_secret": gateway.client_secret}
    profile.write_text(json.dumps(body))
    profile.chmod(0o600)
    file = tmp_path / "declared.yaml"
    file.write_text("version: 1\ntenants: {acme: {}}\n")

    result = CliRunner().invoke(program, ["apply", "-f", str(file), "--profile", str(profile)])

    assert isinstance(result.exception, Fault)
    assert "platform" in result.exception.public


@contextmanager
def operator_in(gateway: RunningGateway, slug: str, *scopes: str) -> Iterator[ManagementClient]:
    held = json.loads((gateway.home / "operator.json").read_text())
    credentials = Credentials(held["base_url"], held["client_id"], Secret(held["client_secret"]))
    with ManagementClient(credentials) as operator:
        tenant = next(item for item in operator.items("/api/v1/tenants") if item["slug"] == slug)
        with operator.within(tenant["id"], scopes) as inside:
            yield inside
