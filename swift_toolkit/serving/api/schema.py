"""The JSON that goes over the wire (https://platform.openai.com/docs/api-reference)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

JsonObject: TypeAlias = Mapping[str, Any]
"""What a client sent: the body of a request, or an object within it."""

# --- requests, once they are checked ------------------------------------------------------------------------


class _OfTools(TypedDict, total=False):
    tool_call_id: str
    tool_calls: Sequence[JsonObject]


class Message(_OfTools):
    """One message as ms-swift takes it; ``content`` has tags where media belong."""

    role: str
    content: str


# --- answers ------------------------------------------------------------------------------------------------


class UsageCounts(TypedDict):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(TypedDict):
    """A token that could have been written."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of an answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """Log probabilities in the form of chats, which is also ms-swift's."""

    content: Sequence[TokenLogprob] | None


class TextLogprobs(TypedDict):
    """Log probabilities in the form of completions."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class FunctionCall(TypedDict):
    """The function that a model wants to call; ``arguments`` is JSON, as far as the model writes it so."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call that a model wants made."""

    id: str
    type: str
    function: FunctionCall


class ToolCallPiece(ToolCall):
    """The same in a stream."""

    index: int


class _Reasoning(TypedDict, total=False):
    reasoning_content: str


class _MessageParts(_Reasoning, total=False):
    tool_calls: list[ToolCall]


class AnswerMessage(_MessageParts):
    """What the model says; ``content`` of a classifier is a class or a list of scores."""

    role: str
    content: object


class _DeltaParts(_Reasoning, total=False):
    tool_calls: list[ToolCallPiece]


class Delta(_DeltaParts):
    """A piece of what the model says."""

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
    """An embedding; as base64 it is packed 32-bit floats."""

    object: str
    index: int
    embedding: str | list[float]


class VectorUsage(TypedDict):
    """Tokens of the texts that were embedded."""

    prompt_tokens: int
    total_tokens: int


class Vectors(TypedDict):
    """The answer to a request for embeddings."""

    object: str
    data: list[Vector]
    model: str
    usage: VectorUsage


class ModelEntry(TypedDict):
    """One model that is served."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelList(TypedDict):
    """All that are served."""

    object: str
    data: list[ModelEntry]


Answer: TypeAlias = WholeAnswer | Vectors
"""What a request that does not stream gets."""
