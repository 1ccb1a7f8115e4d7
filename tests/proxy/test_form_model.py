"""The model in an upload: found at the real boundary, and refused where it could be read in two ways."""

from __future__ import annotations

from contextlib import suppress

import pytest

from gateway.proxy.faults import BadBody
from gateway.proxy.form_model import ModelWatch, boundary_of, find_model

FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\n%b\r\n'
MODEL = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n'
END = b"--x--\r\n"


@pytest.mark.parametrize(
    "body",
    [
        MODEL % b"m" + FILE % (b"f", b"data") + END,
        FILE % (b"f", b"data") + MODEL % b"m" + END,
        b"preamble\r\n" + MODEL % b"m" + END,
        b"--x\r\ncontent-type: text/plain\r\ncontent-disposition: FORM-DATA; NAME=model\r\n\r\nm\r\n" + END,
        FILE % (b"; name=model", b"evil") + MODEL % b"m" + END,
        FILE % (b"f", b'\r\nContent-Disposition: form-data; name="model"\r\n\r\nevil') + MODEL % b"m" + END,
        MODEL % b"m" + b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\nno end yet',
    ],
)
def test_found(body: bytes) -> None:
    found = find_model(body, b"x")
    assert found is not None
    model, (start, end) = found
    assert (model, body[start:end]) == ("m", b"m")


@pytest.mark.parametrize("body", [b"", END, FILE % (b"f", b"d") + END, FILE % (b"; name=model", b"evil") + END])
def test_absent(body: bytes) -> None:
    assert find_model(body, b"x") is None


@pytest.mark.parametrize(
    "body",
    [
        MODEL % b"a" + MODEL % b"b" + END,
        MODEL % b"a" + FILE % (b"f", b"d") + MODEL % b"b" + END,
        MODEL % b"" + END,
        MODEL % b"a\r\nb" + END,
        (MODEL % b"cut").removesuffix(b"\r\n"),
        b'--x\r\ncontent-disposition: form-data; name="file"; name="model"\r\n\r\nm\r\n' + END,
        MODEL % b"m" + b"--x\r\n" * 1001 + END,
    ],
)
def test_refused(body: bytes) -> None:
    with pytest.raises(BadBody):
        find_model(body, b"x")


def test_a_late_model_is_noticed_over_chunk_borders() -> None:
    late = MODEL % b"forbidden" + END
    for cut in range(1, len(late)):
        watch = ModelWatch(MODEL % b"allowed" + FILE % (b"f", b"d" * 500))
        watch.check(b"d" * 1000)
        assert _notices(watch, late[:cut], late[cut:])


def _notices(watch: ModelWatch, *chunks: bytes) -> bool:
    try:
        for chunk in chunks:
            watch.check(chunk)
    except BadBody:
        return True
    return False


def test_a_file_is_not_taken_for_a_model() -> None:
    watch = ModelWatch(MODEL % b"allowed")
    for _ in range(10):
        watch.check(bytes(range(256)) * 10)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b'multipart/form-data; charset=utf-8; boundary="a b"', b"a b"),
        (b"Multipart/Form-Data;boundary=abc; x=y", b"abc"),
    ],
)
def test_boundaries(content_type: bytes, boundary: bytes) -> None:
    assert boundary_of(content_type) == boundary


def test_no_body_makes_the_search_quadratic() -> None:
    """Hours if it did: the test's own time limit is the assertion."""
    for body in (
        b"--x\r\n" * 50_000,
        b"content-disposition:" * 12_000,
        b"--x\r\ncontent-disposition: form-data" + b";" * 250_000,
        b'--x\r\ncontent-disposition: form-data; a="' + b"\\" * 3000 + b"\r\n\r\n",
    ):
        with suppress(BadBody):
            find_model(body, b"x")
        ModelWatch(b"").check(body)
