"""Takes a request's body in: bounded, in time, and read only as far as the gateway needs it.

JSON is held whole (it may have to be sent again to another key). Multipart uploads are held up to `HOLD_BYTES`, or up
to JSON's bound for as long as the model has not come: curl sends parts in the order of its options, and OpenAI's own
examples name the file first. The rest is relayed while it comes in, and such an upload can be sent once only.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec

from gateway.balancing.prompt_size import SMALL_BYTES, prompt_tokens
from gateway.proxy.channel import Channel
from gateway.proxy.faults import BadBody, BodyTooSlow, WrongContentType
from gateway.proxy.form_model import ModelCut, boundary_of, find_model
from gateway.proxy.head import RequestHead
from gateway.proxy.json_model import add_model, decode, locate_model, model_name, replace_model
from gateway.proxy.routes import Operation
from gateway.proxy.upload import Upload, too_large

HOLD_BYTES = 256 * 1024
"""How much of an upload is held to find its model; one that is no longer than this can be tried on another key."""
BIG_JSON_BYTES = 256 * 1024
"""Above this the search for a repeated `model` leaves the event loop, and the output's maximum is left alone."""
DEFAULT_OUTPUT_TOKENS = 512
"""What is reserved for an answer whose request sets no maximum; settled by the real count afterwards."""
DEFAULT_MODERATION = "omni-moderation-latest"
"""The model of moderations that name none (OpenAI API reference)."""
_MODEL_NEEDED = frozenset({"audio.transcriptions", "audio.translations"})
"""Uploads that have no default model."""


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """`max_body_bytes` bounds JSON, `max_upload_bytes` multipart; a held body may take `body_s` to arrive."""

    max_body_bytes: int = 32 * 1024 * 1024
    max_upload_bytes: int = 512 * 1024 * 1024
    body_s: float = 60.0


class Intake(msgspec.Struct):
    """A request's body as taken in. `model` is the caller's name for it, "" if none is named (image edits).

    `span` is where the model's name stands in the held bytes, None if it does not. `output_unset`: the caller sets no
    maximum of output tokens, `est_output_tokens` is a guess.
    """

    model: str
    held: bytes
    span: tuple[int, int] | None = None
    rest: Channel | None = None
    length: int | None = None
    wants_stream: bool = False
    est_input_tokens: int = 0
    est_output_tokens: int = 0
    output_unset: bool = False
    max_bytes: int = 0
    is_form: bool = False

    @property
    def replayable(self) -> bool:
        """Tell whether the whole body is held."""
        return self.rest is None

    @property
    def is_sizeable(self) -> bool:
        """Tell whether its maximum of output tokens may be lowered, which takes a walk through all of it."""
        return not self.is_form and len(self.held) < BIG_JSON_BYTES

    def body(self, model: str) -> bytes | Upload:
        """Return what is sent upstream, with `model` in place of the caller's name and every other byte unchanged."""
        held = self.held
        if model != self.model and self.span is not None:
            held = self._form_with(model) if self.is_form else replace_model(held, self.span, model)
        if self.rest is None:
            return held
        grown = len(held) - len(self.held)
        return Upload(held, self.rest, None if self.length is None else self.length + grown, self.max_bytes + grown)

    def _form_with(self, model: str) -> bytes:
        assert self.span is not None
        return self.held[: self.span[0]] + model.encode() + self.held[self.span[1] :]


NO_BODY = Intake(model="", held=b"")


async def take_in(
    channel: Channel, operation: Operation, limits: IntakeLimits, deployment: str | None = None
) -> Intake:
    """Read what `operation` takes from `channel`. Raises a RequestFault, or CallerGone.

    `deployment` is the model of an Azure path, whose JSON bodies need not name one: it is added to those.
    """
    if operation.body == "none":
        return NO_BODY
    head, length = channel.head, channel.length
    is_form = head.is_form
    if not head.is_json or operation.body == "multipart":
        _judge_type(head, operation)
    bound = limits.max_upload_bytes if is_form else limits.max_body_bytes
    if length is not None and length > bound:
        raise too_large(bound)
    if is_form:
        boundary = boundary_of(head.content_type)
        return await _take_form(channel, operation, boundary, length, limits)
    return await _take_json(channel, operation, bound, limits.body_s, deployment)


def _judge_type(head: RequestHead, operation: Operation) -> None:
    """Raise a RequestFault for a body of a kind that `operation` does not take."""
    if head.content_encoding and head.content_encoding != b"identity":
        raise WrongContentType(
            "The request body is compressed.", hint="Send it without Content-Encoding: its model must be read."
        )
    if head.is_form and operation.body == "json":
        raise WrongContentType(
            f"{operation.name} takes JSON, not a form.", hint="Send the Content-Type application/json."
        )
    if not head.is_form and operation.body == "multipart":
        raise WrongContentType(
            f"{operation.name} takes an upload.", hint="Send multipart/form-data with the file and the model as parts."
        )
    if not head.is_form and not head.is_json:
        raise WrongContentType(
            f"The Content-Type {head.media_type.decode('latin-1')[:80]!r} is none that {operation.name} takes.",
            hint="Send the Content-Type application/json.",
        )


async def _take_json(
    channel: Channel, operation: Operation, bound: int, body_s: float, deployment: str | None
) -> Intake:
    body = await channel.receive()
    if not channel.body_over:
        body, _ = await _read_on(channel, body, bound, body_s)
    size = len(body)
    if size > bound:
        raise too_large(bound)
    if not size:
        raise BadBody("The request has no body.", hint='Send a JSON object such as {"model": "…"}.')
    fields = decode(body)
    asked_output = fields.asked_output if operation.generates else 0
    model, span = "", None
    if operation.model_in_path:
        pass
    elif fields.model is None and operation.name == "moderations":
        model = DEFAULT_MODERATION
    else:
        if fields.model is None and deployment is not None:
            body, fields.model = add_model(body, deployment), deployment
        model = model_name(fields.model)
        span = locate_model(body) if size < BIG_JSON_BYTES else await asyncio.to_thread(locate_model, body)
    est_input_tokens = size // 4 + 1
    if size > SMALL_BYTES:
        est_input_tokens = await _prompt_tokens(body)
    return Intake(
        model=model,
        held=body,
        span=span,
        wants_stream=fields.stream is True,
        est_input_tokens=est_input_tokens,
        est_output_tokens=DEFAULT_OUTPUT_TOKENS if asked_output is None else asked_output,
        output_unset=asked_output is None,
    )


async def _prompt_tokens(body: bytes) -> int:
    return prompt_tokens(body) if len(body) < BIG_JSON_BYTES else await asyncio.to_thread(prompt_tokens, body)


async def _take_form(
    channel: Channel, operation: Operation, boundary: bytes, length: int | None, limits: IntakeLimits
) -> Intake:
    held, found, more = await _read_to_model(channel, boundary, limits)
    if len(held) > limits.max_upload_bytes:
        raise too_large(limits.max_upload_bytes)
    if found is None and operation.name in _MODEL_NEEDED:
        raise BadBody("The form names no model.", hint="Add a part named model, best before the file.")
    intake = Intake(
        model="",
        held=held,
        rest=channel if more else None,
        length=length,
        max_bytes=limits.max_upload_bytes,
        est_input_tokens=256,
        is_form=True,
    )
    if found is not None:
        intake.model, intake.span = found
    return intake


async def _read_to_model(
    channel: Channel, boundary: bytes, limits: IntakeLimits
) -> tuple[bytes, tuple[str, tuple[int, int]] | None, bool]:
    """Read `HOLD_BYTES`, then four times as much for as long as no whole model is in it; tell whether more may follow.

    So the beginning is looked through again at most for a third of the bytes.
    """
    held, bound = b"", HOLD_BYTES
    most = min(limits.max_body_bytes, limits.max_upload_bytes)
    while True:
        more_bytes, more = await _read(channel, bound - len(held), limits.body_s)
        held += more_bytes
        ended = not more or len(held) >= most
        try:
            found = find_model(held, boundary)
        except ModelCut:
            if ended:
                raise
            found = None
        if found is not None or ended:
            return held, found, more
        bound = min(bound * 4, most)


async def _read(channel: Channel, bound: int, body_s: float) -> tuple[bytes, bool]:
    """Read until the end or until more than `bound` bytes came; return them and whether more may follow."""
    first = await channel.receive()
    return (first, False) if channel.body_over else await _read_on(channel, first, bound, body_s)


async def _read_on(channel: Channel, first: bytes, bound: int, body_s: float) -> tuple[bytes, bool]:
    """Do so behind the `first` bytes.

    A caller that sends no byte at all is the server's to end; the deadline here is for those that never finish.
    """
    if len(first) > bound:
        return first, True
    parts, size = [first], len(first)
    try:
        async with asyncio.timeout(body_s):
            while size <= bound:
                chunk = await channel.receive()
                if not chunk:
                    return b"".join(parts), False
                parts.append(chunk)
                size += len(chunk)
            return b"".join(parts), True
    except TimeoutError:
        raise BodyTooSlow(
            f"The request body did not arrive within {body_s:g} s.", hint="Send it faster, or check your connection."
        ) from None
