"""Deterministic answers: the same prompt always gets the same words, and a token is a piece of the answer."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

_SENTENCE = (
    "the gateway keeps every key behind one door and sends each request where room is left while tokens flow "
    "back as they come so that callers never see a limit only an answer"
)
_WORDS = tuple(_SENTENCE.split(" "))
_CHARACTERS_PER_TOKEN = 4
_ECHO = "echo:"
_SCHEMA_DEPTH = 8


def count_tokens(text: str) -> int:
    """Count tokens as providers estimate them before they tokenise: four characters each, rounded up."""
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What of a request decides its answer, in any dialect.

    `text` is the whole prompt (it is what is counted), `last` the caller's last words. `tool` names a function that the
    answer calls instead of talking; `schema` is the JSON schema the answer must fit ({} = any object, None = prose).
    """

    text: str
    last: str = ""
    extra_tokens: int = 0
    max_tokens: int | None = None
    tool: str | None = None
    schema: Mapping[str, Any] | None = None

    @property
    def tokens(self) -> int:
        """The prompt's size as the provider bills it."""
        return max(1, count_tokens(self.text) + self.extra_tokens)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said; each piece is one token. `truncated`: it ran into `max_tokens`."""

    pieces: tuple[str, ...]
    truncated: bool = False
    tool: str | None = None
    arguments: str = field(default="{}")

    @property
    def text(self) -> str:
        """The pieces in one string."""
        return "".join(self.pieces)

    @property
    def tokens(self) -> int:
        """The answer's size as the provider bills it."""
        return count_tokens(self.arguments) + 4 if self.tool else len(self.pieces)


def answer(prompt: Prompt, *, tokens: int | None = None) -> Answer:
    """Make the answer to a prompt; `tokens` fixes its length, `max_tokens` caps it either way.

    A last message that starts with "echo:" is repeated, which lets tests check that text survives the way.
    """
    if prompt.tool is not None:
        return Answer((), tool=prompt.tool, arguments=_encode({"input": prompt.last[:100]}))
    if prompt.schema is not None:
        pieces = tuple(_split(_encode(example(prompt.schema) if prompt.schema else {"answer": "42"})))
    elif prompt.last.lower().startswith(_ECHO):
        pieces = tuple(_split(prompt.last[len(_ECHO) :].strip()))
    else:
        seed = zlib.crc32(prompt.text.encode("utf-8", "surrogatepass"))
        pieces = _words(seed, 8 + seed % 17 if tokens is None else tokens)
    if prompt.max_tokens is not None and len(pieces) > prompt.max_tokens:
        return Answer(pieces[: max(0, prompt.max_tokens)], truncated=True)
    return Answer(pieces)


def _words(seed: int, count: int) -> tuple[str, ...]:
    if count <= 0:
        return ()
    first = _WORDS[seed % len(_WORDS)].capitalize()
    rest = (" " + _WORDS[(seed + place) % len(_WORDS)] for place in range(1, count - 1))
    return (first, *rest, ".")[:count] if count > 1 else (first,)


def _split(text: str) -> list[str]:
    return [text[at : at + _CHARACTERS_PER_TOKEN] for at in range(0, len(text), _CHARACTERS_PER_TOKEN)]


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def example(schema: Mapping[str, Any], depth: int = 0) -> Any:
    """Make a value that fits the plain parts of a JSON schema: types, properties, items, enum, const, anyOf."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    if depth > _SCHEMA_DEPTH:
        return None
    for union in ("anyOf", "oneOf", "allOf"):
        if schema.get(union):
            return example(schema[union][0], depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind == "object" or "properties" in schema:
        return {name: example(part, depth + 1) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [example(schema.get("items", {}), depth + 1)]
    return {"integer": 1, "number": 1.5, "boolean": True, "null": None}.get(str(kind), "text")
