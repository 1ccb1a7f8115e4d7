"""OpenAI's other endpoints: embeddings, models, moderations, images, audio."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.balancing.outcome import TokenUsage
from gateway.simulation.text import count_tokens
from gateway.simulation.wire import BadRequest, Call, Reply, json_reply

_DEFAULT_DIMENSIONS = 1_536
_MAX_DIMENSIONS = 4_096
_SPEECH_BYTES_PER_CHARACTER = 64
_BOUNDARY = re.compile(r'boundary=(?:"([^"]+)"|([^;\s]+))', re.IGNORECASE)
_FIELD = re.compile(r'\bname="([^"]*)"')
_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


def embeddings(call: Call) -> Reply:
    """Answer POST /v1/embeddings: unit vectors that depend on the text alone; base64 as the SDKs ask for it."""
    given = call.request.get("input")
    inputs = [given] if isinstance(given, str) or _is_tokens(given) else given
    if not isinstance(inputs, list) or not inputs:
        raise BadRequest("'input' must be a non-empty string or array.", "input")
    dimensions = call.request.get("dimensions") or _DEFAULT_DIMENSIONS
    if not isinstance(dimensions, int) or not 0 < dimensions <= _MAX_DIMENSIONS:
        raise BadRequest(f"Invalid 'dimensions': expected 1 to {_MAX_DIMENSIONS}.", "dimensions")
    packed = call.request.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _embedding(item, dimensions, packed)}
        for index, item in enumerate(inputs)
    ]
    tokens = sum(len(item) if _is_tokens(item) else count_tokens(str(item)) for item in inputs)
    shown = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_reply({"object": "list", "data": data, "model": call.model, "usage": shown}, TokenUsage(tokens, 0))


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(token, int) for token in value)


def _embedding(item: Any, dimensions: int, packed: bool) -> str | list[float]:
    seed = zlib.crc32(str(item).encode("utf-8", "surrogatepass")) or 1
    values: list[float] = []
    for _ in range(dimensions):
        # A xorshift generator: fast, and the same on every machine.
        seed ^= (seed << 13) & 0xFFFFFFFF
        seed ^= seed >> 17
        seed ^= (seed << 5) & 0xFFFFFFFF
        values.append(seed / 2**31 - 1.0)
    norm = sum(value * value for value in values) ** 0.5 or 1.0
    unit = [value / norm for value in values]
    return base64.b64encode(struct.pack(f"<{dimensions}f", *unit)).decode() if packed else unit


def models(names: Sequence[str], created: int) -> Reply:
    """Answer GET /v1/models."""
    data = [{"id": name, "object": "model", "created": created, "owned_by": "simulated"} for name in names]
    return json_reply({"object": "list", "data": data})


def model(name: str, created: int) -> Reply:
    """Answer GET /v1/models/{model}."""
    return json_reply({"id": name, "object": "model", "created": created, "owned_by": "simulated"})


def moderations(call: Call) -> Reply:
    """Answer POST /v1/moderations: only the word "violence" is flagged."""
    given = call.request.get("input", "")
    inputs = given if isinstance(given, list) else [given]
    results = []
    for item in inputs:
        flagged = "violence" in str(item).lower()
        hits = {name: flagged and name == "violence" for name in _CATEGORIES}
        results.append(
            {
                "flagged": flagged,
                "categories": hits,
                "category_scores": {name: 0.9 if hit else 0.0001 for name, hit in hits.items()},
                "category_applied_input_types": {name: ["text"] if hit else [] for name, hit in hits.items()},
            }
        )
    tokens = sum(count_tokens(str(item)) for item in inputs)
    return json_reply({"id": f"modr-{call.ident}", "model": call.model, "results": results}, TokenUsage(tokens, 0))


def images(call: Call) -> Reply:
    """Answer POST /v1/images/generations and /edits with a picture of one pixel."""
    count = call.request.get("n") or 1
    if not isinstance(count, int) or not 1 <= count <= 10:
        raise BadRequest("Invalid 'n': expected 1 to 10.", "n")
    prompt_tokens = count_tokens(str(call.request.get("prompt", "")))
    picture = {"b64_json": base64.b64encode(_pixel()).decode()}
    usage = {
        "input_tokens": prompt_tokens,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": prompt_tokens},
        "output_tokens": 272 * count,
        "total_tokens": prompt_tokens + 272 * count,
    }
    body = {"created": call.created, "data": [picture] * count, "output_format": "png", "usage": usage}
    return json_reply(body, TokenUsage(prompt_tokens, 272 * count))


def _pixel() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\x00\x00\x80\xff")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def speech(call: Call) -> Reply:
    """Answer POST /v1/audio/speech with bytes whose number depends on the text."""
    text = call.request.get("input")
    if not isinstance(text, str) or not text:
        raise BadRequest("Missing required parameter: 'input'.", "input")
    tokens = count_tokens(text)
    body = (b"ID3\x04" + text.encode("utf-8", "surrogatepass")) * _SPEECH_BYTES_PER_CHARACTER
    return Reply(body, TokenUsage(tokens, tokens), content_type="audio/mpeg")


def transcription(call: Call) -> Reply:
    """Answer POST /v1/audio/transcriptions: its "text" is the size and checksum of what arrived."""
    upload = call.request.get("file")
    if not isinstance(upload, bytes):
        raise BadRequest("Missing required parameter: 'file'.", "file")
    text = f"{len(upload)} bytes, crc32 {zlib.crc32(upload):08x}"
    usage = TokenUsage(count_tokens("x" * len(upload)) // 100 + 1, count_tokens(text))
    if call.request.get("response_format") == "text":
        return Reply(text.encode() + b"\n", usage, content_type="text/plain; charset=utf-8")
    shown = {
        "type": "tokens",
        "input_tokens": usage.input,
        "output_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
    }
    return json_reply({"text": text, "usage": shown}, usage)


def read_form(content_type: str, body: bytes) -> Mapping[str, Any]:
    """Decode multipart/form-data (RFC 7578): fields as text, files as bytes; raises BadRequest."""
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        raise BadRequest("We could not parse the multipart form of your request: its boundary is missing.")
    fence = b"--" + (boundary[1] or boundary[2]).encode("latin-1")
    head, *parts = (b"\r\n" + body).split(b"\r\n" + fence)
    if head or not parts or not parts[-1].startswith(b"--"):
        raise BadRequest("We could not parse the multipart form of your request: check its boundary.")
    form: dict[str, Any] = {}
    for part in parts[:-1]:
        headers, _, data = part.partition(b"\r\n\r\n")
        disposition = headers.decode("utf-8", "replace")
        name = _FIELD.search(disposition)
        if name is not None:
            form[name[1]] = data if "filename" in disposition else data.decode("utf-8", "replace")
    return form
