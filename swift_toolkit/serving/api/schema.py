"""The JSON of requests and responses (https://platform.openai.com/docs/api-reference)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

RequestBody: TypeAlias = Mapping[str, Any]
"""JSON from a client: the body of a request, or an object within it."""

# --- checked requests ---------------------------------------------------------------------------------------


class _OfTools(TypedDict, total=False):
    tool_call_id: str
    tool_calls: Sequence[RequestBody]


class RequestMessage(_OfTools):
    """One message in ms-swift's format; ``content`` has tags in place of media."""

    role: str
    content: str


# --- answers ------------------------------------------------------------------------------------------------


class UsageCounts(TypedDict):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(TypedDict):
    """A candidate token."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of an answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """Log probabilities in the format of chats, which is also ms-swift's."""

    content: Sequence[TokenLogprob] | None


class TextLogprobs(TypedDict):
    """Log probabilities in the format of completions."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class FunctionCall(TypedDict):
    """A function call that the model requests; ``arguments`` is text that should be JSON."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A tool call that the model requests."""

    id: str
    type: str
    function: FunctionCall


class ToolCallPiece(ToolCall):
    """A tool call in a stream."""

    index: int


class _Reasoning(TypedDict, total=False):
    reasoning_content: str


class _MessageParts(_Reasoning, total=False):
    tool_calls: list[ToolCall]


class AnswerMessage(_MessageParts):
    """The message of the model; ``content`` of a classifier is a class or a list of scores."""

    role: str
    content: object


class _DeltaParts(_Reasoning, total=False):
    tool_calls: list[ToolCallPiece]


class Delta(_DeltaParts):
    """A piece of the message of the model."""

    role: str
    content: str


class ChatChoice(TypedDict):
    """One answer of a chat."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatPiece(TypedDict):
    """A piece of the answer of a chat."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class TextChoice(TypedDict):
    """One completion, or a piece of it."""

    index: int
    text: object
    logprobs: TextLogprobs | None
    finish_reason: str | None


class _Head(TypedDict):
    id: str
    object: str
    created: int
    model: str


class WholeAnswer(_Head):
    """The answer to a chat or a completion."""

    choices: Sequence[ChatChoice] | Sequence[TextChoice]
    usage: UsageCounts


class _EventUsage(TypedDict, total=False):
    usage: UsageCounts | None


class AnswerPiece(_Head, _EventUsage):
    """One event of a stream."""

    choices: Sequence[ChatPiece] | Sequence[TextChoice]


class Vector(TypedDict):
    """An embedding, as a list or as base64 of packed 32-bit floats."""

    object: str
    index: int
    embedding: str | list[float]


class VectorUsage(TypedDict):
    """Token counts of the embedded texts."""

    prompt_tokens: int
    total_tokens: int


class Vectors(TypedDict):
    """The answer to a request for embeddings."""

    object: str
    data: list[Vector]
    model: str
    usage: VectorUsage


class ModelEntry(TypedDict):
    """One served model."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelList(TypedDict):
    """All served models."""

    object: str
    data: list[ModelEntry]


AnswerBody: TypeAlias = WholeAnswer | Vectors
"""The response to a request that does not stream."""
