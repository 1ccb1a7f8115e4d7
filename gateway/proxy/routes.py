"""Which paths are inference, and what they ask for: an allow-list of exact shapes. Pure.

Everything else is refused here, so that no traversal, absolute form or encoded slash ever reaches a provider: what is
sent upstream is built from this table, never from the caller's path. Sources: OpenAI API reference, Anthropic Messages
API, Gemini API (v1beta), Azure OpenAI v1 and deployment paths.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from auth.scopes import INFERENCE, USAGE_READ

Dialect = Literal["openai", "anthropic", "gemini"]
BodyKind = Literal["json", "multipart", "any", "none"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that can be asked of a provider.

    `path` is what follows the provider's prefix for the dialect ("chat/completions"); `name` labels usage and metrics.
    `body`: "any" takes JSON or multipart, "none" is what the gateway answers itself. `generates` tells whether output
    tokens are to be expected, `counts` that it counts the prompt's tokens alone, which costs nothing. `model_in_path`:
    the model stands in the path (Gemini) and not in the body. `scope` is what the token needs.
    """

    name: str
    path: str
    dialect: Dialect
    body: BodyKind = "json"
    method: str = "POST"
    generates: bool = False
    model_in_path: bool = False
    scope: str = INFERENCE
    counts: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A recognised request: the operation, the pool named in the path, the model named in the path."""

    operation: Operation
    pool: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Unroutable:
    """Not an inference request that is served: `status` 404 or 405 (then `allow` lists the methods), or 400."""

    status: int
    dialect: Dialect
    sentence: str
    allow: str = ""


LIST_MODELS = "models.list"
GET_MODEL = "models.get"
POOL_STATE = "pools.state"
"""Operations that the gateway answers itself."""

_OPENAI = [
    Operation("chat.completions", "chat/completions", "openai", generates=True),
    Operation("completions", "completions", "openai", generates=True),
    Operation("embeddings", "embeddings", "openai"),
    Operation("responses", "responses", "openai", generates=True),
    Operation("moderations", "moderations", "openai"),
    Operation("images.generations", "images/generations", "openai"),
    Operation("images.edits", "images/edits", "openai", "any"),
    Operation("images.variations", "images/variations", "openai", "multipart"),
    Operation("audio.speech", "audio/speech", "openai"),
    Operation("audio.transcriptions", "audio/transcriptions", "openai", "multipart"),
    Operation("audio.translations", "audio/translations", "openai", "multipart"),
    Operation(LIST_MODELS, "models", "openai", "none", "GET"),
]
_ANTHROPIC = [
    Operation("messages", "messages", "anthropic", generates=True),
    Operation("messages.count_tokens", "messages/count_tokens", "anthropic", counts=True),
]
_FIXED: dict[str, Operation] = {operation.path: operation for operation in [*_OPENAI, *_ANTHROPIC]}
_GEMINI: dict[str, Operation] = {
    action: Operation(action, action, "gemini", generates=generates, model_in_path=True, counts=action == "countTokens")
    for action, generates in {
        "generateContent": True,
        "streamGenerateContent": True,
        "embedContent": False,
        "batchEmbedContents": False,
        "countTokens": False,
    }.items()
}
_ANTHROPIC_LIST = Operation(LIST_MODELS, "models", "anthropic", "none", "GET")
_GEMINI_LIST = Operation(LIST_MODELS, "models", "gemini", "none", "GET")
_GET: dict[Dialect, Operation] = {
    dialect: Operation(GET_MODEL, "models", dialect, "none", "GET", model_in_path=True)
    for dialect in ("openai", "anthropic", "gemini")
}

_STATE = Operation(POOL_STATE, "state", "openai", "none", "GET", scope=USAGE_READ)

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_MODEL = re.compile(r"[A-Za-z0-9@][A-Za-z0-9._:@+-]{0,127}(?:/[A-Za-z0-9@][A-Za-z0-9._:@+-]{0,127}){0,3}")
_GEMINI_CALL = re.compile(rf"({_MODEL.pattern}):([A-Za-z]+)")
# Everything a served path can hold. A percent sign is taken only where a model name may need one (":" and "/").
_PLAIN = re.compile(rb"/[A-Za-z0-9._~:@+/-]*")
_ENCODED_IN_MODEL = {b"%3A": b":", b"%3a": b":", b"%2F": b"/", b"%2f": b"/", b"%40": b"@"}
_PREFIXES = (b"/v1/", b"/v1beta/", b"/pools/", b"/openai/")

_CACHE_BOUND = 4096
_cache: dict[tuple[str, bytes, bool], Route | Unroutable] = {}


def is_inference(raw_path: bytes) -> bool:
    """Tell whether the data path answers `raw_path` (also when the answer is a refusal)."""
    return raw_path.startswith(_PREFIXES)


def match(method: str, raw_path: bytes, *, is_anthropic: bool = False) -> Route | Unroutable:
    """Recognise a request by its method and raw path; `is_anthropic`: it carries an `anthropic-version` header.

    That header settles the dialect of `/v1/models`, which OpenAI's and Anthropic's SDKs share.
    """
    key = (method, raw_path, is_anthropic)
    found = _cache.get(key)
    if found is None:
        found = _match(method, raw_path, is_anthropic)
        if len(_cache) < _CACHE_BOUND and isinstance(found, Route):
            _cache[key] = found
    return found


def _match(method: str, raw_path: bytes, is_anthropic: bool) -> Route | Unroutable:
    dialect: Dialect = "anthropic" if is_anthropic or raw_path.endswith(b"/v1/messages") else "openai"
    if b"/v1beta/" in raw_path:
        dialect = "gemini"
    path = _decode(raw_path)
    if path is None:
        return Unroutable(
            400,
            dialect,
            "The request path holds characters or segments that no API path has; send it as the API documents it, "
            "without '..', '//', backslashes or percent-encoded slashes outside a model name.",
        )
    pool: str | None = None
    rest = path[1:]
    if rest.startswith("pools/"):
        pool, _, rest = rest[6:].partition("/")
        if not _SEGMENT.fullmatch(pool):
            return Unroutable(404, dialect, "The path names no pool: use /pools/{name}/v1/….")
        if rest == "state" and method == "GET":
            return Route(_STATE, pool)
    found = _operation(rest, is_anthropic)
    if found is None:
        return Unroutable(
            404,
            dialect,
            f"{path[:200]} is not served by this gateway. Inference paths are /v1/chat/completions, /v1/completions, "
            "/v1/embeddings, /v1/responses, /v1/models, /v1/images/*, /v1/audio/*, /v1/moderations, /v1/messages and "
            "/v1beta/models/{model}:generateContent, each also under /pools/{name}.",
        )
    operation, model = found
    if method != operation.method:
        sentence = f"{operation.name} takes {operation.method}, not {method[:20]}."
        return Unroutable(405, operation.dialect, sentence, allow=operation.method)
    return Route(operation, pool, model)


def _operation(rest: str, is_anthropic: bool) -> tuple[Operation, str | None] | None:
    version, _, tail = rest.partition("/")
    if version == "openai":
        # Azure's SDK: /openai/v1/… as above, or /openai/deployments/{deployment}/…, where the body names the model too.
        if tail.startswith("v1/"):
            version, tail = "v1", tail[3:]
        elif tail.startswith("deployments/"):
            deployment, _, tail = tail[12:].partition("/")
            operation = _FIXED.get(tail)
            if not _SEGMENT.fullmatch(deployment) or operation is None or operation.dialect != "openai":
                return None
            return operation, deployment
    if version == "v1":
        if tail == "models" and is_anthropic:
            return _ANTHROPIC_LIST, None
        if tail.startswith("models/") and _MODEL.fullmatch(tail[7:]):
            return _GET["anthropic" if is_anthropic else "openai"], tail[7:]
        fixed = _FIXED.get(tail)
        return (fixed, None) if fixed else None
    if version == "v1beta":
        if tail == "models":
            return _GEMINI_LIST, None
        if tail.startswith("models/"):
            call = _GEMINI_CALL.fullmatch(tail[7:])
            if call and call[2] in _GEMINI:
                return _GEMINI[call[2]], call[1]
            if _MODEL.fullmatch(tail[7:]):
                return _GET["gemini"], tail[7:]
    return None


def _decode(raw_path: bytes) -> str | None:
    """Return the path as text; None when it could be read in two ways."""
    if b"%" in raw_path:
        cut = raw_path.find(b"/models/")
        if cut < 0:
            return None
        tail = raw_path[cut:]
        for encoded, plain in _ENCODED_IN_MODEL.items():
            tail = tail.replace(encoded, plain)
        raw_path = raw_path[:cut] + tail
    if not _PLAIN.fullmatch(raw_path) or b"//" in raw_path or b"/./" in raw_path or b"/../" in raw_path:
        return None
    if raw_path.endswith((b"/..", b"/.")):
        return None
    return raw_path.decode("ascii")
