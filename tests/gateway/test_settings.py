"""Settings: what is read, what is refused and in which words; the page that is made from the table."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from auth.secret import Secret
from gateway.cli.operate import written
from gateway.configuration_page import configuration_page
from gateway.custody import parse_peppers
from gateway.database import DatabaseAway
from gateway.preflight import database_findings, preflight, role_findings, static_findings
from gateway.schema import RoleCheck
from gateway.settings import ConfigurationInvalid, is_loopback, read_settings, unread
from gateway.variables import VARIABLES
from tests.conftest import TestDatabase

KEY = base64.b64encode(bytes(range(32))).decode()
GOOD = {
    "DATABASE_URL": "postgresql://u:p@h/d",
    "LLM_PROXY_ISSUER": "https://llm.example.com",
    "LLM_PROXY_KEK": "env",
    "LLM_PROXY_KEK_KEYS": KEY,
    "LLM_PROXY_PEPPERS": f"1:{KEY}",
}


def test_the_defaults_suit_development() -> None:
    settings = read_settings({})
    assert (settings.host, settings.port, settings.home) == ("127.0.0.1", 8080, Path(".llm-proxy"))
    assert settings.database_url is None
    assert settings.max_body_bytes == 32 << 20
    assert not settings.allow_private_upstreams


def test_the_page_says_what_the_table_says() -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text() == configuration_page(), "write it anew: llm-proxy config reference > docs/configuration.md"


def test_a_value_is_shown_as_it_may_be_written() -> None:
    told = {"LLM_PROXY_OIDC_OPERATORS": "email=ada@example.com,groups=llm", "LLM_PROXY_STATE_MAX_AGE": "1234567.5"}
    settings = read_settings(told)

    for variable in VARIABLES:
        value = getattr(settings, variable.field)
        if not variable.secret and value is not None:
            assert variable.parse(written(value)) == value, variable.name
    assert written(settings.oidc_operators) == told["LLM_PROXY_OIDC_OPERATORS"]
    assert [written(value) for value in (None, (), True, 10.0)] == ["not set", "not set", "true", "10"]


def test_names_and_fields_are_unique() -> None:
    assert len({variable.name for variable in VARIABLES}) == len({variable.field for variable in VARIABLES})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("PORT", "http", "whole number"),
        ("PORT", "65536", "whole number"),
        ("PORT", "-1", "whole number"),
        ("DATABASE_URL", "mysql://h/d", "postgresql://"),
        ("LLM_PROXY_ISSUER", "llm.example.com", "http or https URL"),
        ("LLM_PROXY_ISSUER", "https://llm.example.com/?a=1", "query"),
        ("LLM_PROXY_ISSUER", "https://user@llm.example.com", "user"),
        ("LLM_PROXY_OIDC_ISSUER", "login.example.com", "http or https URL"),
        ("LLM_PROXY_OIDC_SCOPE", "email profile", "openid"),
        ("LLM_PROXY_OIDC_OPERATORS", "ada@example.com", "claim=value"),
        ("LLM_PROXY_OIDC_OPERATORS", "preferred_username=ada", "vouches"),
        ("LLM_PROXY_KEK", "keyring", "file:PATH"),
        ("LLM_PROXY_KEK", "gcp-kms://x", "file:PATH"),
        ("LLM_PROXY_TRUSTED_PROXIES", "ingress", "'ingress' is neither"),
        ("LLM_PROXY_TRUSTED_PROXIES", "127.0.0.1, 10.0.0.1/8", "'10.0.0.1/8' is neither"),
        ("LLM_PROXY_TRUSTED_PROXIES", "*", "such as 127.0.0.1,10.0.0.0/8"),
        ("LLM_PROXY_MAX_BODY", "0", "size"),
        ("LLM_PROXY_MAX_BODY", "lots", "size"),
        ("DATABASE_URL", "postgresql://u:half/s3cret@h:5432/d", "percent-encoded"),
        ("DATABASE_URL", "postgresql://u:p@h1:5432,h2:nine/d", "percent-encoded"),
        ("LLM_PROXY_MAX_BODY", "32", "1KiB or more"),
        ("LLM_PROXY_DRAIN", "nan", "number of seconds"),
        ("LLM_PROXY_LOG_FORMAT", "xml", "one of auto, human, json"),
        ("LLM_PROXY_ALLOW_PRIVATE_UPSTREAMS", "maybe", "true or false"),
        ("LLM_PROXY_PEPPERS_FILE", "/nonexistent/peppers", "cannot be read"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str, sentence: str) -> None:
    with pytest.raises(ConfigurationInvalid) as caught:
        read_settings({name: value})
    [(variable, text)] = caught.value.errors
    assert variable == name.removesuffix("_FILE")
    assert sentence in text


def test_prices_that_cannot_be_read_are_found_before_the_start(tmp_path: Path) -> None:
    settings = read_settings({**GOOD, "LLM_PROXY_PRICES": str(tmp_path / "prices.json")})

    [(name, sentence)] = static_findings(settings)

    assert name == "LLM_PROXY_PRICES"
    assert "No such file" in sentence


def test_a_misspelt_variable_is_told_with_the_one_that_is_near() -> None:
    environ = {
        "LLM_PROXY_TRUSTED_PROXYS": "10.0.0.0/8",
        "LLM_PROXY_REGION_FILE": "/run/region",
        "LLM_PROXY_Q": "x",
        "LLM_PROXY_PEPPERS_FILE": "/run/peppers",
        "LLM_PROXY_GATEWAY_SERVICE_HOST": "10.0.0.1",
        "LLM_PROXY_GATEWAY_PORT_80_TCP_ADDR": "10.0.0.1",
        "PROXY": "x",
    }

    assert unread(environ) == [
        "LLM_PROXY_Q is read by nothing.",
        "LLM_PROXY_REGION_FILE is read by nothing: did you mean LLM_PROXY_REGION?",
        "LLM_PROXY_TRUSTED_PROXYS is read by nothing: did you mean LLM_PROXY_TRUSTED_PROXIES?",
    ]


def test_addresses_and_networks_of_both_families_are_trusted_proxies() -> None:
    told = "127.0.0.1, 10.0.0.0/8,::1,fd00::/8"

    assert read_settings({"LLM_PROXY_TRUSTED_PROXIES": told}).trusted_proxies == told


def test_every_wrong_value_is_told_at_once() -> None:
    with pytest.raises(ConfigurationInvalid) as caught:
        read_settings({"PORT": "x", "LLM_PROXY_DRAIN": "y"})
    assert {name for name, _ in caught.value.errors} == {"PORT", "LLM_PROXY_DRAIN"}


def test_a_secret_may_come_from_a_file_but_not_twice(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("postgresql://u:p@h/d\n")
    settings = read_settings({"DATABASE_URL_FILE": str(file)})
    assert settings.database_url == Secret("postgresql://u:p@h/d")
    with pytest.raises(ConfigurationInvalid, match="cannot be used"):
        read_settings({"DATABASE_URL_FILE": str(file), "DATABASE_URL": "postgresql://h/d"})


def test_settings_never_print_their_secrets() -> None:
    assert "p@h" not in repr(read_settings(GOOD))
    assert KEY not in repr(read_settings(GOOD))


@pytest.mark.parametrize(("size", "bytes_"), [("1024", 1024), ("2k", 2048), ("3 MiB", 3 << 20), ("1GB", 1 << 30)])
def test_sizes(size: str, bytes_: int) -> None:
    assert read_settings({"LLM_PROXY_MAX_BODY": size}).max_body_bytes == bytes_


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://[::1]:8080", True),
        ("http://localhost", True),
        ("http://localhost.example.com", False),
        ("http://10.0.0.1", False),
    ],
)
def test_loopback(url: str, loopback: bool) -> None:
    assert is_loopback(url) is loopback


class TestPreflight:
    def test_a_good_environment_has_no_findings(self) -> None:
        assert static_findings(read_settings(GOOD)) == []

    @pytest.mark.parametrize("missing", ["DATABASE_URL", "LLM_PROXY_ISSUER", "LLM_PROXY_KEK", "LLM_PROXY_PEPPERS"])
    def test_what_is_missing_is_named(self, missing: str) -> None:
        found = static_findings(read_settings({name: value for name, value in GOOD.items() if name != missing}))
        assert [name for name, _ in found] == [missing]

    @pytest.mark.parametrize(
        ("name", "value", "sentence"),
        [
            ("LLM_PROXY_ISSUER", "http://llm.example.com", "use https"),
            ("LLM_PROXY_OIDC_CLIENT_ID", "gateway", "LLM_PROXY_OIDC_ISSUER is not set"),
            ("LLM_PROXY_OIDC_OPERATORS", "email=ada@example.com", "LLM_PROXY_OIDC_ISSUER is not set"),
            ("LLM_PROXY_OIDC_ISSUER", "https://login.example.com", "LLM_PROXY_OIDC_CLIENT_ID is not set"),
            ("LLM_PROXY_KEK", "file:/nonexistent/keyring", "does not exist"),
            ("LLM_PROXY_KEK", "vault://vault:8200/transit/key", "Vault token"),
            ("LLM_PROXY_KEK", "awskms://eu-central-1", "malformed"),
            ("LLM_PROXY_KEK_SPARE", "env", "losing one loses both"),
            ("LLM_PROXY_KEK_KEYS", "c2hvcnQ=", "32 bytes"),
            ("LLM_PROXY_KEK_KEYS", base64.b64encode(bytes(32)).decode(), "repeated"),
            ("LLM_PROXY_PEPPERS", "1:c2hvcnQ=", "32 random bytes"),
            ("LLM_PROXY_PEPPERS", KEY, "version:base64"),
            ("LLM_PROXY_PEPPERS", f"1:{KEY},1:{KEY}", "twice"),
            ("LLM_PROXY_PEPPERS", "1:" + base64.b64encode(bytes(32)).decode(), "32 random bytes"),
        ],
    )
    def test_what_is_unsafe_is_refused(self, name: str, value: str, sentence: str) -> None:
        [(_, text)] = static_findings(read_settings({**GOOD, name: value}))
        assert sentence in text

    def test_a_keyring_open_to_others_is_refused(self, tmp_path: Path) -> None:
        keyring = tmp_path / "keyring"
        keyring.write_text(KEY)
        keyring.chmod(0o644)
        settings = read_settings({**GOOD, "LLM_PROXY_KEK": f"file:{keyring}"})
        [(name, text)] = static_findings(settings)
        assert name == "LLM_PROXY_KEK"
        assert "chmod 600" in text
        keyring.chmod(0o600)
        assert static_findings(settings) == []

    def test_http_is_fine_on_loopback(self) -> None:
        assert static_findings(read_settings({**GOOD, "LLM_PROXY_ISSUER": "http://127.0.0.1:8080"})) == []

    def test_peppers_are_read_by_version(self) -> None:
        other = base64.b64encode(bytes(range(100, 140))).decode()
        assert set(parse_peppers(Secret(f"1:{KEY},7:{other}"))) == {1, 7}

    @pytest.mark.parametrize(
        ("role", "word"),
        [
            (RoleCheck("r", superuser=True, bypasses_rls=True, owns_tables=True), "superuser"),
            (RoleCheck("r", superuser=False, bypasses_rls=True, owns_tables=False), "bypasses"),
            (RoleCheck("r", superuser=False, bypasses_rls=False, owns_tables=True), "owns"),
        ],
    )
    def test_a_role_that_rls_does_not_bind_is_refused(self, role: RoleCheck, word: str) -> None:
        [(_, text)] = role_findings(role)
        assert word in text
        assert "migrate --login" in text

    async def test_against_a_real_database(self, test_database: TestDatabase) -> None:
        await preflight(read_settings({**GOOD, "DATABASE_URL": test_database.url}))
        with pytest.raises(ConfigurationInvalid) as caught:
            await preflight(read_settings({**GOOD, "DATABASE_URL": test_database.owner_url}))
        assert "superuser" in caught.value.errors[0][1]
        with pytest.raises(ConfigurationInvalid) as caught:
            await preflight(read_settings({**GOOD, "DATABASE_URL": "postgresql://u:p@127.0.0.1:1/d"}))
        assert "does not answer" in caught.value.errors[0][1]

    async def test_the_direct_url_leads_to_the_same_database_as_a_role_that_is_bound(
        self, test_database: TestDatabase
    ) -> None:
        async def found(direct_url: str) -> list[tuple[str, str]]:
            settings = read_settings({**GOOD, "DATABASE_URL": test_database.url, "DATABASE_DIRECT_URL": direct_url})
            return await database_findings(settings)

        assert await found(test_database.url) == []
        [(name, text)] = await found(test_database.owner_url)
        assert (name, "superuser" in text) == ("DATABASE_DIRECT_URL", True)
        place, _, _ = test_database.url.rpartition("/")
        [(name, text)] = await found(f"{place}/postgres")
        assert (name, "another database" in text) == ("DATABASE_DIRECT_URL", True)
        with pytest.raises(DatabaseAway) as caught:
            await found("postgresql://u:p@127.0.0.1:1/d")
        assert "DATABASE_DIRECT_URL" in caught.value.debug

    async def test_a_database_that_refuses_us_has_answered(self, test_database: TestDatabase) -> None:
        """Whoever reads that it does not answer looks at the network, and not at the Secret."""
        scheme, _, rest = test_database.url.partition("://")
        place, _, database = rest.rpartition("@")[2].rpartition("/")
        for url in (f"{scheme}://nobody:mistaken@{place}/{database}", f"{test_database.url.rpartition('/')[0]}/none"):
            [(name, text)] = await database_findings(read_settings({**GOOD, "DATABASE_URL": url}))
            assert name == "DATABASE_URL"
            assert text.startswith("The database refuses the connection (Invalid"), text
            assert "user, password and database name" in text
            assert "mistaken" not in text
