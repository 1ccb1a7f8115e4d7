"""docs/oauth.md says what the code says."""

from __future__ import annotations

import json
import re
from pathlib import Path

from auth.client_metadata import REGISTRABLE_METHODS
from auth.details import Detail, parse_details
from auth.scopes import SCOPES

TEXT = (Path(__file__).parents[2] / "docs" / "oauth.md").read_text()


def test_the_table_of_scopes_is_the_codes() -> None:
    rows = dict(re.findall(r"^\| `([a-z:]+)` \| (.+) \|$", TEXT, re.M))
    assert {name: rows[name] for name in SCOPES} == {name: scope.allows for name, scope in SCOPES.items()}


def test_every_member_of_the_details_is_explained() -> None:
    members = set(Detail.__struct_fields__) - {"type", "limits"}
    assert members == {name for name in members if f"`{name}`" in TEXT}


def test_every_authentication_method_is_explained() -> None:
    assert all(f"`{name}`" in TEXT for name in REGISTRABLE_METHODS)


def test_the_printed_details_are_valid() -> None:
    printed = re.findall(r'authorization_details"?[:=] ?(\[\{.*?\}\])', TEXT, re.S)
    assert len(printed) == 2
    for each in printed:
        assert parse_details(json.loads(each))
