"""Gemini's native generateContent and streamGenerateContent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.balancing.outcome import TokenUsage
from gateway.simulation.text import Prompt, answer, count_tokens
from gateway.simulation.wire import BadRequest, Call, Reply, Stream, event, json_reply


def prompt_of_content(request: Mapping[str, Any]) -> Prompt:
    """Read a generateContent request; raises BadRequest."""
    contents = request.get("contents")
    if not isinstance(contents, list) or not contents:
        raise BadRequest("* GenerateContentRequest.contents: contents is not specified")
    texts = [_text(request.get("systemInstruction"))]
    last = ""
    for content in contents:
        text = _text(content)
        texts.append(text)
        if isinstance(content, Mapping) and content.get("role", "user") == "user":
            last = text
    config = request.get("generationConfig") or {}
    limit = config.get("maxOutputTokens")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise BadRequest("max_output_tokens must be positive")
    schema = config.get("responseSchema", {}) if config.get("responseMimeType") == "application/json" else None
    return Prompt(text="\n".join(texts), last=last, max_tokens=limit, schema=schema)


def _text(content: Any) -> str:
    if not isinstance(content, Mapping):
        return ""
    parts = content.get("parts") or []
    return "\n".join(part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str))


def generate(call: Call, *, streamed: bool) -> Reply | Stream:
    """Answer POST /v1beta/models/{model}:generateContent, or :streamGenerateContent?alt=sse."""
    prompt = prompt_of_content(call.request)
    said = answer(prompt, tokens=call.output_tokens)
    usage = TokenUsage(prompt.tokens, said.tokens, call.cached_tokens)
    finish = "MAX_TOKENS" if said.truncated else "STOP"

    def body(text: str, reason: str | None, output: int) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
        if reason:
            candidate["finishReason"] = reason
        counts = {
            "promptTokenCount": usage.input,
            "candidatesTokenCount": output,
            "totalTokenCount": usage.input + output,
        }
        return {
            "candidates": [candidate],
            "usageMetadata": counts,
            "modelVersion": call.model,
            "responseId": call.ident,
        }

    if not streamed:
        return json_reply(body(said.text, finish, usage.output), usage)
    pieces = said.pieces or ("",)
    final = len(pieces) - 1
    events = tuple(
        event(body(piece, finish if place == final else None, place + 1)) for place, piece in enumerate(pieces)
    )
    broken = {
        "error": {"code": 503, "message": "The model is overloaded. Please try again later.", "status": "UNAVAILABLE"}
    }
    return Stream(events, usage, 0, event(broken))


def count(call: Call) -> Reply:
    """Answer POST /v1beta/models/{model}:countTokens."""
    return json_reply({"totalTokens": count_tokens(prompt_of_content(call.request).text)})
