"""The local keyring: wraps, tells its keys apart, and refuses what is unsafe."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest

from tenants.errors import KekDisabled, KeyringUnsafe, SealBroken
from tenants.keyring import LocalKeyring, Wrapped, create_keyring_file, load_keyring_file, parse_keyring

OLD, NEW = bytes(range(32)), bytes(range(32, 64))
CONTEXT = ("data-key", "tenant", "id")


def line(key: bytes) -> str:
    return base64.b64encode(key).decode()


async def test_an_older_key_opens_and_the_first_one_wraps() -> None:
    before = LocalKeyring([OLD])
    wrapped = await before.wrap(CONTEXT, b"d" * 32)
    after = LocalKeyring([NEW, OLD])
    assert await after.unwrap(CONTEXT, wrapped) == b"d" * 32
    assert (await after.wrap(CONTEXT, b"d" * 32)).kek_uri == after.uri != before.uri
    assert after.opens(before.uri)
    assert not before.opens(after.uri)


async def test_a_missing_or_disabled_key_is_refused_as_disabled() -> None:
    keyring = LocalKeyring([OLD])
    wrapped = await keyring.wrap(CONTEXT, b"d" * 32)
    with pytest.raises(KekDisabled) as missing:
        await LocalKeyring([NEW]).unwrap(CONTEXT, wrapped)
    assert "keyring" in missing.value.hint
    assert await keyring.status(keyring.uri) == "enabled"
    keyring.disable(keyring.uri)
    assert await keyring.status(keyring.uri) == "disabled"
    with pytest.raises(KekDisabled):
        await keyring.unwrap(CONTEXT, wrapped)


async def test_context_and_bytes_are_bound() -> None:
    keyring = LocalKeyring([OLD])
    wrapped = await keyring.wrap(CONTEXT, b"d" * 32)
    for context in (("data-key", "tenant", "other"), ("data-keytenant", "id"), CONTEXT[:2]):
        with pytest.raises(SealBroken):
            await keyring.unwrap(context, wrapped)
    for changed in (
        wrapped.blob[:-1],
        b"\x02" + wrapped.blob[1:],
        b"",
        wrapped.blob[:-1] + bytes([wrapped.blob[-1] ^ 1]),
    ):
        with pytest.raises(SealBroken):
            await keyring.unwrap(CONTEXT, Wrapped(wrapped.kek_uri, changed))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        ("secret", "not 32 bytes in base64"),
        (line(b"x" * 31), "not 32 bytes in base64"),
        (f"{line(OLD)}\n{line(NEW)[:-3]}", "Key 2 of the test"),
        (line(bytes(32)), "one byte repeated"),
    ],
)
def test_unsafe_keyrings_are_refused_without_showing_a_key(text: str, says: str) -> None:
    with pytest.raises(KeyringUnsafe, match=says) as refused:
        parse_keyring(text, source="the test")
    assert "openssl rand -base64 32" in refused.value.hint
    assert text == "" or text not in refused.value.public + refused.value.hint + refused.value.debug


def test_lines_commas_and_comments() -> None:
    assert parse_keyring(f"# new first\n{line(NEW)} # 2026\n{line(OLD)}", source="t") == [NEW, OLD]
    assert parse_keyring(f"{line(NEW)},{line(OLD)}", source="t") == [NEW, OLD]


def test_a_created_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keyring"
    created = create_keyring_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_keyring_file(path).uri == created.uri
    with pytest.raises(FileExistsError):
        create_keyring_file(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keyring"
    create_keyring_file(path)
    path.chmod(mode)
    with pytest.raises(KeyringUnsafe, match="open to others") as refused:
        load_keyring_file(path)
    assert "chmod 600" in refused.value.hint


def test_a_missing_file_says_what_it_means(tmp_path: Path) -> None:
    with pytest.raises(KeyringUnsafe, match="does not exist") as refused:
        load_keyring_file(tmp_path / "none")
    assert "backup" in refused.value.hint
