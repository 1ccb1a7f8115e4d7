"""What tells a conversation, or a shared prompt, from another one, so that it can stay where its prompt cache is. Pure.

Providers cache prompts from the first byte on. So the beginning decides: everything up to and with the first user
message, or the first `PREFIX_BYTES`. That is the same in each turn of a conversation, and in all requests that share a
long system prompt. A caller that knows better says so in OpenAI's `prompt_cache_key`.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec

PREFIX_BYTES = 4096
_USER = b'"user"'
_NOTHING = msgspec.Raw(b"")


class _Prompt(msgspec.Struct):
    prompt_cache_key: Any = None
    system: msgspec.Raw = _NOTHING
    instructions: msgspec.Raw = _NOTHING
    messages: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING
    contents: msgspec.Raw = _NOTHING
    system_instruction: msgspec.Raw = msgspec.field(default=_NOTHING, name="systemInstruction")


_PROMPT = msgspec.json.Decoder(_Prompt)
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])


def affinity_of(body: bytes) -> str | None:
    """Return a name for the prompt's beginning; None for a body that has none. `body` is a JSON object."""
    try:
        prompt = _PROMPT.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    if isinstance(prompt.prompt_cache_key, str) and prompt.prompt_cache_key:
        return blake2b(prompt.prompt_cache_key.encode(), digest_size=12).hexdigest()
    taken = bytearray()
    for fixed in (prompt.system, prompt.instructions, prompt.system_instruction):
        taken += bytes(fixed)[: PREFIX_BYTES - len(taken)]
    for turns in (prompt.messages, prompt.input, prompt.prompt, prompt.contents):
        if len(taken) < PREFIX_BYTES:
            _take(taken, bytes(turns))
    return blake2b(taken, digest_size=12).hexdigest() if taken else None


def _take(taken: bytearray, turns: bytes) -> None:
    if not turns.startswith(b"["):
        taken += turns[: PREFIX_BYTES - len(taken)]
        return
    for item in _ITEMS.decode(turns):
        raw = bytes(item)
        taken += raw[: PREFIX_BYTES - len(taken)]
        if _USER in raw or len(taken) >= PREFIX_BYTES:
            return
