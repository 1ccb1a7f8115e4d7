"""The envelope opens for exactly the bytes, data key and context it was sealed with."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tenants.envelope import OVERHEAD_BYTES, Context, length_prefixed, open_sealed, seal
from tenants.errors import SealBroken

DATA_KEY = bytes(range(32))
CONTEXT = Context(UUID(int=1), UUID(int=2), ("provider-key", "pool", "key", "1", "openai"))


def counting_bytes(n: int) -> bytes:
    return bytes(i % 251 for i in range(n))


contexts = st.builds(Context, st.uuids(), st.uuids(), st.lists(st.text(max_size=12), max_size=6).map(tuple))


@given(st.binary(max_size=300), contexts, st.binary(min_size=32, max_size=32))
def test_what_was_sealed_opens(plaintext: bytes, context: Context, data_key: bytes) -> None:
    blob = seal(data_key, context, plaintext)
    assert len(blob) == len(plaintext) + OVERHEAD_BYTES
    assert open_sealed(data_key, context, blob) == plaintext


def test_known_answer() -> None:
    """A change of the format shows here: stored envelopes must go on opening."""
    blob = seal(DATA_KEY, CONTEXT, b"sk-test", random_bytes=counting_bytes)
    assert blob.hex() == KNOWN
    assert open_sealed(DATA_KEY, CONTEXT, bytes.fromhex(KNOWN)) == b"sk-test"


KNOWN = (
    "01000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fd660a8773b657c5507decce9cc42de981a"
    "bcba0944a29b67018d8cdaae1ae9ba000102030405060708090a0bb764ff8c50d584bec9b0121c65f6e66bab47fe7fa4cf62"
)


@settings(max_examples=300)
@given(st.data())
def test_any_flipped_bit_is_refused(data: st.DataObject) -> None:
    blob = bytearray(seal(DATA_KEY, CONTEXT, b"sk-secret-value"))
    bit = data.draw(st.integers(0, len(blob) * 8 - 1))
    blob[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(SealBroken):
        open_sealed(DATA_KEY, CONTEXT, bytes(blob))


@given(contexts, contexts)
def test_any_other_context_is_refused(sealed_for: Context, opened_as: Context) -> None:
    assume(sealed_for != opened_as)
    with pytest.raises(SealBroken):
        open_sealed(DATA_KEY, opened_as, seal(DATA_KEY, sealed_for, b"sk-secret-value"))


@pytest.mark.parametrize(
    "other",
    [
        replace(CONTEXT, data_key_id=UUID(int=9)),
        replace(CONTEXT, tenant_id=UUID(int=9)),
        *(
            replace(CONTEXT, parts=(*CONTEXT.parts[:i], "other", *CONTEXT.parts[i + 1 :]))
            for i in range(len(CONTEXT.parts))
        ),
        replace(CONTEXT, parts=("provider-keypool", "", *CONTEXT.parts[2:])),
        replace(CONTEXT, parts=(*CONTEXT.parts, "")),
    ],
)
def test_each_part_of_the_context_is_bound(other: Context) -> None:
    with pytest.raises(SealBroken):
        open_sealed(DATA_KEY, other, seal(DATA_KEY, CONTEXT, b"sk-secret-value"))


@given(st.integers(0, OVERHEAD_BYTES + 6))
def test_any_truncation_is_refused(length: int) -> None:
    with pytest.raises(SealBroken):
        open_sealed(DATA_KEY, CONTEXT, seal(DATA_KEY, CONTEXT, b"sk-test")[:length])


@given(st.binary(min_size=32, max_size=32))
def test_another_data_key_is_refused(other: bytes) -> None:
    assume(other != DATA_KEY)
    with pytest.raises(SealBroken, match="another data key or context"):
        open_sealed(other, CONTEXT, seal(DATA_KEY, CONTEXT, b"sk-test"))


def test_two_envelopes_of_one_secret_share_no_bytes_to_compare() -> None:
    first, second = seal(DATA_KEY, CONTEXT, b"sk-test"), seal(DATA_KEY, CONTEXT, b"sk-test")
    assert first[1:33] != second[1:33]
    assert first[-23:] != second[-23:]


@given(st.lists(st.binary(max_size=5), max_size=5), st.lists(st.binary(max_size=5), max_size=5))
def test_the_encoding_of_contexts_is_injective(left: list[bytes], right: list[bytes]) -> None:
    assert (length_prefixed(*left) == length_prefixed(*right)) == (left == right)


def test_a_data_key_of_another_size_is_a_defect() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        seal(b"short", CONTEXT, b"")
