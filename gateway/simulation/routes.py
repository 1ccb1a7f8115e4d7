"""Which path is which call: the table of the simulated provider's inference endpoints."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from gateway.simulation import anthropic_api, gemini_api, openai_chat, openai_media, openai_responses
from gateway.simulation.text import Prompt
from gateway.simulation.wire import Call, Dialect, Reply, Stream

Answerer = Callable[[Call], Reply | Stream]
Reader = Callable[[Mapping[str, Any]], Prompt]


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint: `prompt` reads what it asks for (None: the text of its input is counted).

    `default_model` serves requests that name none; None refuses them.
    """

    dialect: Dialect
    answer: Answerer
    prompt: Reader | None = None
    limited: bool = True
    form: bool = False
    default_model: str | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """A route with what its path carried; `model` is set where the path names it."""

    route: Route
    model: str | None = None
    streamed: bool | None = None


_OPENAI: Mapping[str, Route] = {
    "chat/completions": Route(Dialect.OPENAI, openai_chat.chat, openai_chat.prompt_of_chat),
    "completions": Route(Dialect.OPENAI, openai_chat.completion, openai_chat.prompt_of_completion),
    "responses": Route(Dialect.OPENAI, openai_responses.responses, openai_responses.prompt_of_response),
    "embeddings": Route(Dialect.OPENAI, openai_media.embeddings),
    "moderations": Route(Dialect.OPENAI, openai_media.moderations, default_model="omni-moderation-latest"),
    "images/generations": Route(Dialect.OPENAI, openai_media.images),
    "images/edits": Route(Dialect.OPENAI, openai_media.images, form=True, default_model="dall-e-2"),
    "images/variations": Route(Dialect.OPENAI, openai_media.images, form=True, default_model="dall-e-2"),
    "audio/speech": Route(Dialect.OPENAI, openai_media.speech),
    "audio/transcriptions": Route(Dialect.OPENAI, openai_media.transcription, form=True),
    "audio/translations": Route(Dialect.OPENAI, openai_media.transcription, form=True),
}
_ANTHROPIC: Mapping[str, Route] = {
    "messages": Route(Dialect.ANTHROPIC, anthropic_api.messages, anthropic_api.prompt_of_message),
    "messages/count_tokens": Route(Dialect.ANTHROPIC, anthropic_api.count, limited=False),
}
_GEMINI: Mapping[str, Route] = {
    "generateContent": Route(
        Dialect.GEMINI, partial(gemini_api.generate, streamed=False), gemini_api.prompt_of_content
    ),
    "streamGenerateContent": Route(
        Dialect.GEMINI, partial(gemini_api.generate, streamed=True), gemini_api.prompt_of_content
    ),
    "countTokens": Route(Dialect.GEMINI, gemini_api.count, limited=False),
}
# The same API under the base paths of OpenAI-compatible providers: /v1, Azure's /openai/v1, Groq's /openai/v1,
# OpenRouter's /api/v1, Gemini's /v1beta/openai, and a vendor's prefix in front (/anthropic/v1/messages).
_BASE = re.compile(r"^/(?:[a-z]+/)?v1(?:beta/openai)?/(.+)$")
_AZURE = re.compile(r"^/openai/deployments/([^/]+)/(.+)$")
_GEMINI_PATH = re.compile(r"^/v1(?:beta)?/models/([^/:]+):(\w+)$")


def match(path: str) -> Match | None:
    """Find the endpoint of a POST path, or None."""
    if found := _GEMINI_PATH.match(path):
        route = _GEMINI.get(found[2])
        return None if route is None else Match(route, found[1], found[2].startswith("stream"))
    if found := _AZURE.match(path):
        route = _OPENAI.get(found[2])
        return None if route is None else Match(route, found[1])
    found = _BASE.match(path)
    route = None if found is None else _OPENAI.get(found[1]) or _ANTHROPIC.get(found[1])
    return None if route is None else Match(route)


def models_path(path: str) -> str | None:
    """Return "" for the list of models, a name for one of them, None for any other GET path."""
    found = _BASE.match(path)
    if found is None:
        return None
    if found[1] == "models":
        return ""
    return found[1].removeprefix("models/") if found[1].startswith("models/") else None


def read_prompt(route: Route, request: Mapping[str, Any]) -> Prompt:
    """Return what a call asks for, so that it can be counted before it is answered; raises BadRequest."""
    if route.prompt is not None:
        return route.prompt(request)
    return Prompt(text=str(request.get("input") or request.get("prompt") or ""), max_tokens=0)
