"""The command line's own parts: which gateway it talks to, how it says errors, what it refuses before asking anyone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from auth.errors import Fault, Invalid
from auth.secret import Secret
from gateway.cli.clients import chosen
from gateway.cli.connection import NoProfile, find_credentials, read_profile
from gateway.cli.keys import print_key
from gateway.cli.output import print_fault, reach, show
from gateway.cli.program import program
from gateway.control.docs_page import docs_page
from gateway.dev.home import DevHome
from gateway.http_client import Credentials
from gateway.settings import read_settings

VALUES: tuple[object, ...] = (None, True, [], ["a", "b"], {}, 3)
PROFILE = {"base_url": "http://127.0.0.1:8080/", "client_id": "c", "client_secret": "s"}


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(PROFILE))
    path.chmod(0o600)
    return path


def test_a_profile_is_read(profile: Path) -> None:
    assert read_profile(profile) == Credentials("http://127.0.0.1:8080", "c", Secret("s"))


def test_a_profile_open_to_others_is_refused(profile: Path) -> None:
    profile.chmod(0o640)
    with pytest.raises(NoProfile, match="open to others"):
        read_profile(profile)


@pytest.mark.parametrize("content", ["", "[]", '{"base_url": "x"}'])
def test_a_broken_profile_is_told(profile: Path, content: str) -> None:
    profile.write_text(content)
    with pytest.raises(NoProfile, match="cannot be used"):
        read_profile(profile)


def test_the_environment_comes_before_the_development_profile(profile: Path) -> None:
    environment = {"LLM_PROXY_HOME": str(profile.parent)}
    assert find_credentials(read_settings(environment), None, "dev.json").client_id == "c"
    environment |= {"LLM_PROXY_URL": "https://llm.example.com", "LLM_PROXY_CLIENT_ID": "other"}
    with pytest.raises(NoProfile, match="only some are set"):
        find_credentials(read_settings(environment), None, "dev.json")
    environment |= {"LLM_PROXY_CLIENT_SECRET": "x"}
    assert find_credentials(read_settings(environment), None, "dev.json").client_id == "other"
    assert find_credentials(read_settings(environment), profile, "dev.json").client_id == "c"


def test_nothing_to_talk_to_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoProfile) as caught:
        find_credentials(read_settings({"LLM_PROXY_HOME": str(tmp_path)}), None, "dev.json")
    assert "llm-proxy dev" in caught.value.hint


def test_every_command_has_help() -> None:
    names = []
    for name, command in program.commands.items():
        names.append(name)
        assert command.help, name
        for sub_name, sub in getattr(command, "commands", {}).items():
            assert sub.help, (name, sub_name)
            assert sub.name == sub_name
    panels = CliRunner().invoke(program, ["--help"]).output
    assert "─ Commands ─" not in panels, "put it into a panel"
    assert all(name in panels for name in names)
    assert all(title in panels for title in ("Run", "Manage", "Operate"))


@pytest.mark.parametrize(
    "words",
    [
        ["pool", "update", "main"],
        ["pool", "update", "main", "--alias", "x"],
        ["key", "add", "k", "--pool", "p", "--provider", "openai", "--limit", "rps=3"],
        ["key", "update", "main/k"],
        ["tenant", "update", "acme"],
        ["client", "update", "c"],
        ["simulated-provider", "--config", "/nonexistent"],
    ],
)
def test_what_is_wrong_is_refused_before_anyone_is_asked(words: list[str]) -> None:
    result = CliRunner().invoke(program, words)
    assert result.exit_code == 2, result.output


CLIENTS = [
    {"client_id": "lpc_1", "name": "web"},
    {"client_id": "lpc_2", "name": "batch"},
    {"client_id": "lpc_3", "name": "web"},
    {"client_id": "lpc_4", "name": "lpc_2"},
]


@pytest.mark.parametrize(("wanted", "found"), [("lpc_3", "lpc_3"), ("batch", "lpc_2"), ("lpc_2", "lpc_2")])
def test_a_client_is_named_by_its_id_or_by_a_name_of_its_own(wanted: str, found: str) -> None:
    assert chosen(CLIENTS, wanted) == found


@pytest.mark.parametrize(
    ("wanted", "hint"), [("web", "lpc_1, lpc_3"), ("", "Known: batch"), ("../tenants", "Known: batch, lpc_2, web")]
)
def test_a_client_that_is_none_or_one_of_several_is_not_guessed(wanted: str, hint: str) -> None:
    with pytest.raises(Fault) as refused:
        chosen(CLIENTS, wanted)
    assert hint in refused.value.hint


def test_values_in_tables() -> None:
    assert [show(value) for value in VALUES] == ["-", "yes", "-", "a, b", "-", "3"]
    assert reach({"current": {"prefix": "sk-"}}, "current.prefix") == "sk-"
    assert reach({"current": None}, "current.prefix") is None


def test_a_key_is_printed_in_short_lines(capsys: pytest.CaptureFixture[str]) -> None:
    current = {"id": "0" * 36, "number": 2, "state": "current", "prefix": "sk-ab", "fingerprint": "c7d4", "error": None}

    print_key({"name": "one", "current": current, "version": 7}, as_json=False)
    print_key({"name": "new", "current": None}, as_json=False)

    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert words == [
        ["name", "one"],
        ["current", "version", "2,", "sk-ab…,", "fingerprint", "c7d4"],
        ["name", "new"],
        ["current", "-"],
    ]


def test_the_docs_page_escapes_and_needs_nobody() -> None:
    page = docs_page(
        {
            "info": {"title": "<b>", "version": "1", "description": "Send `a <b>`."},
            "paths": {"/x": {"get": {"summary": "<script>alert(1)</script>", "tags": ["t"], "responses": {}}}},
            "components": {"schemas": {"A<": {"type": "object"}}},
        }
    )
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert "&lt;script&gt;" in page
    assert "<p>Send <code>a &lt;b&gt;</code>.</p>" in page


def test_the_development_home_keeps_its_secrets_private(tmp_path: Path) -> None:
    home = DevHome(tmp_path / "home")
    password, peppers = home.secrets()
    assert (password, peppers) == DevHome(tmp_path / "home").secrets()
    assert home.keyring() == DevHome(tmp_path / "home").keyring()
    assert home.provider_port() == 0
    home.keep_provider_port(4711)
    assert home.provider_port() == 4711
    for path in home.path.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    assert home.path.stat().st_mode & 0o066 == 0


def test_a_fault_says_each_thing_once(capsys: pytest.CaptureFixture[str]) -> None:
    print_fault(
        Invalid("name is taken.", hint="Choose another.", errors=(("/name", "is taken"), ("/weight", "x" * 100)))
    )
    assert capsys.readouterr().err.splitlines() == [
        "error: name is taken.",
        "  - /weight: " + "x" * 100,
        "Choose another.",
    ]
