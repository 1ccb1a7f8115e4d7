"""What metering decodes of an answer, and what it makes of it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from gateway.balancing.outcome import TokenUsage

MAX_COUNT = 2**31 - 1
"""Counts are stored as Postgres integers; a provider that claims more is not believed."""


class Usage(msgspec.Struct):
    prompt_tokens: Any = None
    completion_tokens: Any = None
    total_tokens: Any = None
    prompt_tokens_details: Any = None
    input_tokens: Any = None
    output_tokens: Any = None
    input_tokens_details: Any = None
    cache_creation_input_tokens: Any = None
    cache_read_input_tokens: Any = None
    cache_creation: Any = None


class GeminiUsage(msgspec.Struct, rename="camel"):
    prompt_token_count: Any = None
    candidates_token_count: Any = None
    thoughts_token_count: Any = None
    tool_use_prompt_token_count: Any = None
    cached_content_token_count: Any = None


class Body(msgspec.Struct):
    """The few fields of an answer (or of one stream event) that metering reads; `raw` parts stay undecoded."""

    model: Any = None
    usage: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()
    """Responses API events carry the whole response object here."""
    message: msgspec.Raw = msgspec.Raw()
    """Anthropic's `message_start` carries the message here."""
    usage_metadata: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="usageMetadata")
    model_version: Any = msgspec.field(default=None, name="modelVersion")


class Reading(msgspec.Struct, frozen=True):
    """What one body or event told. The parts are None where it is silent, so that readings can be merged.

    `written` and `written_1h` are input tokens that went into the cache. `is_opening`: it was said before the answer
    came, so that `output` is no more than a beginning.
    """

    model: str | None = None
    input: int | None = None
    output: int | None = None
    cached_input: int | None = None
    written: int | None = None
    written_1h: int | None = None
    is_opening: bool = False

    @property
    def has_usage(self) -> bool:
        """Tell whether any token count was reported."""
        return self.input is not None or self.output is not None

    def over(self, earlier: Reading) -> Reading:
        """Merge: what this reading says wins, what it leaves out comes from `earlier`."""
        return Reading(
            model=self.model or earlier.model,
            input=self.input if self.input is not None else earlier.input,
            output=self.output if self.output is not None else earlier.output,
            cached_input=self.cached_input if self.cached_input is not None else earlier.cached_input,
            written=self.written if self.written is not None else earlier.written,
            written_1h=self.written_1h if self.written_1h is not None else earlier.written_1h,
            is_opening=self.is_opening if self.has_usage else earlier.is_opening,
        )

    def tokens(self) -> TokenUsage | None:
        """Return the counts as reported, None if there are none."""
        count, output, cached = self.input or 0, self.output, self.cached_input or 0
        if output is None and self.input is None:
            return None
        cached = cached if cached < count else count
        if not self.written:
            return TokenUsage(count, output or 0, cached)
        written = min(self.written, count - cached)
        return TokenUsage(count, output or 0, cached, True, written, min(self.written_1h or 0, written))


Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]


class PlainDetails(msgspec.Struct):
    cached_tokens: Count | None = 0
    cache_write_tokens: Count | None = None


class PlainWrites(msgspec.Struct):
    """Anthropic's writes to the cache by how long they are kept."""

    ephemeral_1h_input_tokens: Count | None = None


class PlainUsage(msgspec.Struct):
    """A usage object whose counts are counts."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    total_tokens: Count | None = None
    prompt_tokens_details: PlainDetails | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    input_tokens_details: PlainDetails | None = None
    cache_creation_input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation: PlainWrites | None = None


class Plain(msgspec.Struct):
    """The commonest answer, decoded in one go: no envelope around it, and its fields of the documented types."""

    model: str
    usage: PlainUsage
    response: None = None
    message: None = None
    usage_metadata: None = msgspec.field(default=None, name="usageMetadata")
