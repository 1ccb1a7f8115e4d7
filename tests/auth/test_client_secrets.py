"""Client secrets: form, checksum, MAC, two live ones, and the same work for an unknown client."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.client_secrets import Peppers, StoredSecret, match, new_secret, well_formed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PEPPERS = Peppers({1: b"a" * 32, 2: b"b" * 32})
CLIENT = uuid4()


class CountingPeppers(Peppers):
    """Counts MACs: the unknown client must cost what the known one costs."""

    macs = 0

    def mac(self, client: UUID, secret: str, version: int | None = None) -> bytes:
        self.macs += 1
        return super().mac(client, secret, version)


def stored(secret: str, *, version: int = 2, client: UUID = CLIENT, expires_at: datetime | None = None) -> StoredSecret:
    return StoredSecret(uuid4(), PEPPERS.mac(client, secret, version), version, expires_at, None)


@given(st.binary(min_size=32, max_size=32))
def test_every_minted_secret_is_well_formed_and_safe_in_basic(entropy: bytes) -> None:
    secret = new_secret(entropy).reveal()
    assert re.fullmatch(r"lps_[0-9A-Za-z]{49}", secret)
    assert well_formed(secret)


@given(st.binary(min_size=32, max_size=32), st.integers(4, 52), st.sampled_from("09AZaz"))
def test_one_wrong_character_shows(entropy: bytes, place: int, char: str) -> None:
    secret = new_secret(entropy).reveal()
    other = secret[:place] + char + secret[place + 1 :]
    assert well_formed(other) == (other == secret)


@given(st.text(max_size=60))
def test_no_text_crashes_the_check(text: str) -> None:
    assert not well_formed(text)


def test_secrets_differ() -> None:
    assert len({new_secret().reveal() for _ in range(100)}) == 100


def test_both_live_secrets_match_and_an_expired_one_does_not() -> None:
    old, new = new_secret().reveal(), new_secret().reveal()
    rows = [stored(old, expires_at=NOW + timedelta(hours=1)), stored(new)]
    assert match(PEPPERS, CLIENT, rows, old, now=NOW) is rows[0]
    assert match(PEPPERS, CLIENT, rows, new, now=NOW) is rows[1]
    assert match(PEPPERS, CLIENT, rows, old, now=NOW + timedelta(hours=1)) is None
    assert match(PEPPERS, CLIENT, rows, new_secret().reveal(), now=NOW) is None


def test_an_older_pepper_still_verifies_and_an_unknown_one_matches_nothing() -> None:
    secret = new_secret().reveal()
    assert match(PEPPERS, CLIENT, [stored(secret, version=1)], secret, now=NOW)
    without = Peppers({2: b"b" * 32})
    assert match(without, CLIENT, [stored(secret, version=1)], secret, now=NOW) is None
    forged = StoredSecret(uuid4(), b"", 7, None, None)
    assert match(PEPPERS, CLIENT, [forged], secret, now=NOW) is None


def test_a_mac_moved_to_another_clients_row_does_not_verify() -> None:
    secret = new_secret().reveal()
    assert match(PEPPERS, uuid4(), [stored(secret)], secret, now=NOW) is None


@pytest.mark.parametrize("known", [True, False])
def test_an_unknown_client_costs_the_same_macs(known: bool) -> None:
    peppers = CountingPeppers({1: b"a" * 32})
    secret = new_secret().reveal()
    match(peppers, CLIENT if known else None, [stored(secret)] if known else [], secret, now=NOW)
    assert peppers.macs == 2


@pytest.mark.parametrize("bad", [{}, {0: b"a" * 32}, {1: b"short"}])
def test_weak_peppers_are_refused(bad: dict[int, bytes]) -> None:
    with pytest.raises(ValueError):
        Peppers(bad)


def test_peppers_do_not_print() -> None:
    assert "aaaa" not in repr(PEPPERS)
