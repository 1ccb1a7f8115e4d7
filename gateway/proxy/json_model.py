"""Reads the few fields of a JSON request that the gateway needs, and renames its model by bytes. Pure.

The body is relayed as it came. So what the gateway read and what the provider will read must be the same: a body in
which `model` stands twice, or in another spelling beside it, is refused (parsers disagree on which one wins).
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from gateway.proxy.faults import BadBody

MAX_MODEL_CHARS = 256
MAX_OUTPUT_TOKENS = 1_000_000

_MAX_DIGITS = 20
"""Of a longer number only the beginning is read: it is beyond the bound either way."""
_BEGIN_NUMBERS = frozenset(b"%d" % digit for digit in range(10)) | {b"-"}
_MAX_NUMBER_BYTES = 1024
_ABSENT = msgspec.Raw()
_Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_OUTPUT_TOKENS)]


class _Config(msgspec.Struct):
    max_output_tokens: _Count | None = msgspec.field(default=None, name="maxOutputTokens")


class Fields(msgspec.Struct):
    """What is decoded; every other field is skipped, though its syntax is checked."""

    model: str | None = None
    stream: bool | None = None
    max_completion_tokens: _Count | None = None
    max_output_tokens: _Count | None = None
    max_tokens: _Count | None = None
    generation_config: _Config | None = msgspec.field(default=None, name="generationConfig")

    @property
    def asked_output(self) -> int | None:
        """The maximum of output tokens that the caller sets, None for none."""
        config = self.generation_config
        of_gemini = config.max_output_tokens if config is not None else None
        return self.max_completion_tokens or self.max_output_tokens or self.max_tokens or of_gemini


class _AnyConfig(msgspec.Struct):
    max_output_tokens: msgspec.Raw = msgspec.field(default=_ABSENT, name="maxOutputTokens")


class _AnyFields(msgspec.Struct):
    """The same of a body in which some of them are not as documented: it is the provider's to refuse it.

    Nothing is made of them here: thirty megabytes of empty lists would be a gigabyte of objects.
    """

    model: msgspec.Raw = _ABSENT
    stream: msgspec.Raw = _ABSENT
    max_completion_tokens: msgspec.Raw = _ABSENT
    max_output_tokens: msgspec.Raw = _ABSENT
    max_tokens: msgspec.Raw = _ABSENT
    generation_config: msgspec.Raw = msgspec.field(default=_ABSENT, name="generationConfig")

    def read(self) -> Fields:
        """Read what can be read; a model that is no string is "", a maximum that is none is left out."""
        config = self.generation_config
        of_gemini = _ANY_CONFIG.decode(config).max_output_tokens if _begins(config, 1) == b"{" else _ABSENT
        counts = (self.max_completion_tokens, self.max_output_tokens, self.max_tokens, of_gemini)
        asked = next(filter(None, map(_count_in, counts)), None)
        model: str | None = None
        if _begins(self.model, 1) == b'"':
            model = msgspec.json.decode(self.model, type=str)
        elif _begins(self.model, 4) not in {b"", b"null"}:
            model = ""
        return Fields(model=model, stream=_begins(self.stream, 5) == b"true", max_tokens=asked)


def _begins(raw: msgspec.Raw, count: int) -> bytes:
    return bytes(memoryview(raw)[:count])


def _count_in(raw: msgspec.Raw) -> int | None:
    """Read a maximum; DecodeError for a number that is beyond all numbers, such as 1e400."""
    digits = _begins(raw, _MAX_DIGITS)
    if digits.isdigit():
        return min(int(digits), MAX_OUTPUT_TOKENS)
    if digits[:1] in _BEGIN_NUMBERS and len(memoryview(raw)) <= _MAX_NUMBER_BYTES:
        msgspec.json.decode(raw)
    return None


_DECODER = msgspec.json.Decoder(Fields)
_ANY_DECODER = msgspec.json.Decoder(_AnyFields)
_ANY_CONFIG = msgspec.json.Decoder(_AnyConfig)

# "model" in every spelling that some parser takes for it: JSON escapes, and letter case (Go matches keys without it).
_MODEL_KEY = re.compile(
    rb'"(?:m|\\u00[46]d)(?:o|\\u00[46]f)(?:d|\\u00[46]4)(?:e|\\u00[46]5)(?:l|\\u00[46]c)"', re.IGNORECASE
)
_VALUE = re.compile(rb'\s*+:\s*+("(?:[^"\\]|\\.)*+")')
_OVER = re.compile(rb"\s*+\}")
_AFTER_KEY = re.compile(rb"\s*+:")
# One step over JSON text: everything up to the next bracket, or up to the next string that may be a key.
_STEP = re.compile(rb'[^"{}\[\]]*+(?:([{}\[\]])|("(?:[^"\\]|\\.)*+"))')


def decode(body: bytes) -> Fields:
    """Decode the needed fields. Raises BadBody for what is no JSON object."""
    try:
        return _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_any(body)


def _decode_any(body: bytes) -> Fields:
    try:
        return _ANY_DECODER.decode(body).read()
    except msgspec.ValidationError as error:
        raise BadBody(
            "The request body is not a JSON object.",
            hint='Send an object such as {"model": "…", "messages": […]}.',
            debug=str(error),
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadBody(
            f"The request body is not valid JSON ({_public(error)}).",
            hint="Send UTF-8 JSON with the Content-Type application/json.",
            debug=str(error),
        ) from None
    except RecursionError:
        raise BadBody(
            "The request body is nested too deeply.", hint="Flatten it: no API takes a body nested this deep."
        ) from None


def model_name(value: object) -> str:
    """Return the model's name. Raises BadBody when it is missing or no name."""
    if value is None:
        raise BadBody("The request names no model.", hint='Add "model" to the body; GET /v1/models lists the choices.')
    if not isinstance(value, str) or not value or len(value) > MAX_MODEL_CHARS or not value.isprintable():
        raise BadBody(
            "The request's model is not a model name.",
            hint=f'Set "model" to a string of 1 to {MAX_MODEL_CHARS} printable characters.',
        )
    return value


def locate_model(body: bytes) -> tuple[int, int]:
    """Return (start, end) of the value of the top-level `model`, quotes included; `body` has passed `decode`.

    Raises BadBody when the key stands there twice or in two spellings.
    """
    first = _MODEL_KEY.search(body)
    if first is None:
        raise BadBody("The request names no model.", hint='Spell the key "model" without escapes.')
    if _MODEL_KEY.search(body, first.end()) is not None:
        return _value(body, _only_top_level_key(body))
    # There is one candidate only, and the decoder has found the field: this is it.
    return _value(body, first.end())


def add_model(body: bytes, model: str) -> bytes:
    """Return `body`, which has passed `decode`, with a first member that names the model."""
    start = body.index(b"{") + 1
    comma = b"" if _OVER.match(body, start) else b","
    return body[:start] + b'"model":' + msgspec.json.encode(model) + comma + body[start:]


def replace_model(body: bytes, span: tuple[int, int], model: str) -> bytes:
    """Return `body` with the value at `span` replaced and every other byte as it was."""
    return body[: span[0]] + msgspec.json.encode(model) + body[span[1] :]


def _value(body: bytes, key_end: int) -> tuple[int, int]:
    found = _VALUE.match(body, key_end)
    if found is None:
        raise BadBody("The request's model is not a string.", hint='Set "model" to the name of a model.')
    return found.span(1)


def _only_top_level_key(body: bytes) -> int:
    """Return where the one top-level key that reads as "model" ends. Walks the text once, brackets and strings only."""
    depth, at, found = 0, 0, -1
    while step := _STEP.match(body, at):
        at = step.end()
        bracket = step.group(1)
        if bracket is not None:
            depth += 1 if bracket in b"{[" else -1
        elif depth == 1 and _MODEL_KEY.fullmatch(step.group(2)) and _AFTER_KEY.match(body, at):
            if found >= 0:
                raise BadBody(
                    "The request names its model twice.", hint='Leave one "model" at the top level of the body.'
                )
            found = at
    return found


def _public(error: Exception) -> str:
    # The decoder's messages say where, never what.
    text = str(error)
    return text if len(text) < 120 and text.isprintable() else "malformed"
