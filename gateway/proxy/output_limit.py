"""Lowers the maximum of output tokens in a request's body, by bytes; every other byte stays as it was. Pure.

What is written where: OpenAI's chat completions take `max_completion_tokens` or `max_tokens`, responses
`max_output_tokens`, completions and Anthropic's messages `max_tokens`, Gemini `generationConfig.maxOutputTokens` (each
API's reference). A body in which such a member stands twice is left alone: parsers disagree on which one wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

_STEP = re.compile(rb'[^"{}\[\]]*+(?:([{}\[\]])|("(?:[^"\\]|\\.)*+"))')
_COLON = re.compile(rb"\s*+:\s*+")
_WHOLE = re.compile(rb"[0-9]++(?![0-9.eE])")
_GEMINI, _GEMINI_LIMIT = "generationConfig", "maxOutputTokens"
_MEMBERS = {
    "chat/completions": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
}
_TAKES_COMPLETION_TOKENS = frozenset({"openai", "azure"})
"""Their newer models refuse `max_tokens`; other servers may not know its successor."""


class _Shape(msgspec.Struct):
    tools: Any = None
    functions: Any = None
    response_format: Any = None
    text: Any = None
    thinking: Any = None
    output_format: Any = None
    output_config: Any = None
    generation_config: Any = msgspec.field(default=None, name="generationConfig")


_SHAPE = msgspec.json.Decoder(_Shape)


def is_structured(body: bytes) -> bool:
    """Tell whether a cut answer would be useless: tools, a JSON form, or a budget for thinking that the limit holds."""
    try:
        shape = _SHAPE.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return True
    if shape.tools or shape.functions or shape.thinking or shape.output_format or shape.output_config:
        return True
    text = shape.text.get("format") if isinstance(shape.text, dict) else None
    for form in (shape.response_format, text):
        if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
            return True
    config = shape.generation_config
    return isinstance(config, dict) and any(
        config.get(name) for name in ("responseSchema", "responseJsonSchema", "responseMimeType", "thinkingConfig")
    )


def with_output_limit(body: bytes, path: str, provider: str, limit: int) -> bytes | None:
    """Return `body` with the output limited to `limit` tokens; None when it cannot be done safely.

    `path` is the operation's (`Operation.path`). A larger limit in the body is replaced; where it has none, the member
    that `provider` takes is added.
    """
    number = b"%d" % limit
    if path not in _MEMBERS:
        return _gemini(body, number)
    names = _MEMBERS[path]
    found = _members(body, 0)
    if found is None:
        return None
    present = [name for name in names if name in found]
    if not present:
        name = names[0] if len(names) == 1 or provider in _TAKES_COMPLETION_TOKENS else names[1]
        return _inserted(body, body.find(b"{"), b'"%b":%b' % (name.encode(), number))
    for name in sorted(present, key=lambda each: -found[each]):
        value = _WHOLE.match(body, found[name])
        if value is None:
            # null, or no number: the first is the same as unset, the provider refuses the second.
            if body[found[name] : found[name] + 4] != b"null":
                return None
            body = body[: found[name]] + number + body[found[name] + 4 :]
        elif int(value.group()) > limit:
            body = body[: value.start()] + number + body[value.end() :]
    return body


def _gemini(body: bytes, number: bytes) -> bytes | None:
    found = _members(body, 0)
    if found is None:
        return None
    at = found.get(_GEMINI)
    if at is None:
        return _inserted(body, body.find(b"{"), b'"generationConfig":{"maxOutputTokens":%b}' % number)
    if body[at : at + 1] != b"{":
        return None
    inside = _members(body, at)
    if inside is None:
        return None
    if _GEMINI_LIMIT not in inside:
        return _inserted(body, at, b'"maxOutputTokens":' + number)
    value = _WHOLE.match(body, inside[_GEMINI_LIMIT])
    return None if value is None else body[: value.start()] + number + body[value.end() :]


def _inserted(body: bytes, brace: int, member: bytes) -> bytes:
    """Put `member` first into the object that opens at `brace`."""
    empty = body[brace + 1 :].lstrip()[:1] == b"}"
    return body[: brace + 1] + member + (b"" if empty else b",") + body[brace + 1 :]


def _members(body: bytes, start: int) -> dict[str, int] | None:
    """Return where the value of each member of the object at `start` begins; None when one stands there twice."""
    found: dict[str, int] = {}
    for key, at in _keys(body, start):
        name = msgspec.json.decode(key, type=str)
        if name in found:
            return None
        found[name] = at
    return found


def _keys(body: bytes, start: int) -> Iterator[tuple[bytes, int]]:
    depth, at = 0, start
    while step := _STEP.match(body, at):
        at = step.end()
        bracket = step.group(1)
        if bracket is not None:
            depth += 1 if bracket in b"{[" else -1
            if depth == 0:
                return
        elif depth == 1 and (colon := _COLON.match(body, at)) is not None:
            yield step.group(2), colon.end()
            at = colon.end()
