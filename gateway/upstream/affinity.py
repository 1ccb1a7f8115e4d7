"""What tells a conversation, or a shared prompt, from another one, so that it can stay where its prompt cache is. Pure.

Providers cache prompts from the first byte on. So the beginning decides: everything up to and with the first user
message, or the first `PREFIX_BYTES`. That is the same in each turn of a conversation, and in all requests that share a
long system prompt. A caller that knows better says so in OpenAI's `prompt_cache_key`.
"""

from __future__ import annotations

import json
import re
from hashlib import blake2b

import msgspec

PREFIX_BYTES = 4096
_LOOKED_AT = 4 * PREFIX_BYTES
"""So much of the turns is looked through: they may be megabytes, of which only the first count."""
_USER = b'"user"'
_NOTHING = msgspec.Raw(b"")
_GAP = re.compile(r"[\s,]*")
_scan = json.JSONDecoder().raw_decode


class _Prompt(msgspec.Struct):
    prompt_cache_key: msgspec.Raw = _NOTHING
    system: msgspec.Raw = _NOTHING
    instructions: msgspec.Raw = _NOTHING
    messages: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING
    contents: msgspec.Raw = _NOTHING
    system_instruction: msgspec.Raw = msgspec.field(default=_NOTHING, name="systemInstruction")


_PROMPT = msgspec.json.Decoder(_Prompt)


def affinity_of(body: bytes) -> str | None:
    """Return a name for the prompt's beginning; None for a body that has none. `body` is a JSON object."""
    try:
        prompt = _PROMPT.decode(body)
        key = memoryview(prompt.prompt_cache_key)
        said = msgspec.json.decode(key, type=str) if key[:1].tobytes() == b'"' else ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if said:
        return blake2b(said.encode(), digest_size=12).hexdigest()
    taken = bytearray()
    for fixed in (prompt.system, prompt.instructions, prompt.system_instruction):
        taken += memoryview(fixed)[: PREFIX_BYTES - len(taken)]
    for turns in (prompt.messages, prompt.input, prompt.prompt, prompt.contents):
        if len(taken) < PREFIX_BYTES:
            _take(taken, bytes(memoryview(turns)[:_LOOKED_AT]))
    return blake2b(taken, digest_size=12).hexdigest() if taken else None


def _take(taken: bytearray, turns: bytes) -> None:
    """Take from the beginning of the turns, which may be cut."""
    if not turns.startswith(b"["):
        taken += turns[: PREFIX_BYTES - len(taken)]
        return
    text, at = turns.decode("latin-1"), 1  # a character a byte: only where items end is asked
    while (gap := _GAP.match(text, at)) is not None and (at := gap.end()) < len(text) and text[at] != "]":
        try:
            end = _scan(text, at)[1]
        except (ValueError, RecursionError):
            end = len(text)  # it goes on beyond what is looked at
        item, at = turns[at:end], end
        taken += item[: PREFIX_BYTES - len(taken)]
        if _USER in item or len(taken) >= PREFIX_BYTES:
            return
