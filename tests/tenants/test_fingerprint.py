"""What identifies a key tells too little to use or guess it."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.secret import Secret
from tenants.fingerprint import fingerprint_of, prefix_of

A, B = UUID(int=1), UUID(int=2)


@given(st.text(max_size=200))
def test_a_prefix_is_at_most_seven_characters_and_a_third(value: str) -> None:
    prefix = prefix_of(Secret(value))
    assert value.startswith(prefix)
    assert len(prefix) <= 7
    assert len(prefix) * 3 <= len(value)


@pytest.mark.parametrize(
    ("value", "prefix"), [("sk-proj-abcdefghijklmnop", "sk-proj"), ("123456789", "123"), ("ab", "")]
)
def test_prefixes(value: str, prefix: str) -> None:
    assert prefix_of(Secret(value)) == prefix


def test_fingerprints_find_repeats_in_one_tenant_only() -> None:
    key = Secret("sk-proj-abcdefghijklmnop")
    assert fingerprint_of(A, key) == fingerprint_of(A, Secret(key.reveal()))
    assert fingerprint_of(A, key) != fingerprint_of(B, key)
    assert fingerprint_of(A, key) != fingerprint_of(A, Secret("sk-proj-abcdefghijklmnoq"))
    assert len(fingerprint_of(A, key)) == 16
