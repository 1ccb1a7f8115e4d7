"""Which members a place of a shape has, and that a misspelt one is told with them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import pytest
from msgspec import UNSET, Meta, Struct, UnsetType

from auth.errors import Invalid
from tenants.checks import convert_checked
from tenants.members import members_at
from tenants.rotation_plan import RotationSettings


class Leaf(Struct, forbid_unknown_fields=True):
    size: int = 0


class Tree(Struct, forbid_unknown_fields=True, rename={"kind": "type"}):
    kind: str = ""
    leaf: Leaf | None = None
    many: Annotated[list[Leaf], Meta(max_length=3)] | UnsetType = UNSET
    named: dict[str, Annotated[Leaf, Meta(description="one")]] = {}
    pair: tuple[Leaf, ...] = ()
    mixed: Leaf | list[Leaf] | int = 0
    free: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("path", "members"),
    [
        ("", ("type", "leaf", "many", "named", "pair", "mixed", "free")),
        ("leaf", ("size",)),
        ("many/0", ("size",)),
        ("many/*", ("size",)),
        ("named/*", ("size",)),
        ("pair/2", ("size",)),
        ("mixed", ()),
        ("type", ()),
        ("type/x", ()),
        ("free/x/y", ()),
        ("none/at/all", ()),
    ],
)
def test_members(path: str, members: tuple[str, ...]) -> None:
    assert members_at(Tree, [step for step in path.split("/") if step]) == members


def test_a_misspelt_member_is_told_with_those_that_there_are() -> None:
    asked = {"schedule": {"interval": 3600}}

    with pytest.raises(Invalid) as caught:
        convert_checked(asked, RotationSettings, "/settings")

    [(pointer, sentence)] = caught.value.errors
    assert pointer == "/settings/schedule"
    assert sentence.endswith("unknown field `interval`; use interval_s, cron, time_zone, jitter_s, blackouts")


def test_the_names_are_those_that_msgspec_reads() -> None:
    assert set(msgspec.json.decode(msgspec.json.encode(Tree(leaf=Leaf())))) <= set(members_at(Tree, []))
