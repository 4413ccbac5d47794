"""The orders to the process of an engine and its reports, one JSON object per line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec

from swift_toolkit.inference.exchange import ChatMessage, Generation, Inputs, Question, Side

# --- orders -------------------------------------------------------------------------------------------------


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The first line. The fields are those of `exchange.EngineOrder`."""

    arguments: Sequence[str]
    backend: str
    adapter: str | None
    largest_batch: int | None


class EngineQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """A question for an engine; the fields are those of `exchange.Question`."""

    index: int
    messages: Sequence[ChatMessage]
    extra: Inputs


class _Order(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", tag=str.lower):
    """An order in any line after the first."""


class Ask(_Order, frozen=True, kw_only=True):
    """Answer questions, in any order."""

    side: Side
    questions: Sequence[EngineQuestion]


class Stream(_Order, frozen=True, kw_only=True):
    """Answer one question piece by piece."""

    side: Side
    question: EngineQuestion


class Stop(_Order, frozen=True, kw_only=True):
    """End the answer that is streaming at its next token."""


class Render(_Order, frozen=True, kw_only=True):
    """Show the prompt of a question as the model sees it."""

    question: EngineQuestion


class Settings(_Order, frozen=True, kw_only=True):
    """Change the settings for all further answers."""

    generation: Generation


AnyOrder: TypeAlias = Ask | Stream | Stop | Render | Settings


def asked(question: Question) -> EngineQuestion:
    """The part of a question that an engine needs."""
    return EngineQuestion(index=question.index, messages=question.messages, extra=question.extra)


# --- reports ------------------------------------------------------------------------------------------------


class _Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=str.lower):
    """One report."""


class EngineLoading(_Report, frozen=True, kw_only=True, tag="loading"):
    """ms-swift is imported, and the model is being loaded."""


class EngineReady(_Report, frozen=True, kw_only=True, tag="ready"):
    """The model is loaded.

    Args:
        template: template of the model, by its name in ms-swift.
        system: the template's own system prompt.
        dtype: dtype of the weights.
        max_model_len: length of the context in tokens; None if that is not known.
        thinks: the template can think before it answers.
        largest_batch: most questions answered together.
        window: number of questions considered when grouping questions of similar length.
        versions: versions of the packages that answers depend on.
    """

    template: str | None
    system: str | None
    dtype: str
    max_model_len: int | None
    thinks: bool
    largest_batch: int
    window: int
    versions: Mapping[str, str]


class Rendered(_Report, frozen=True, kw_only=True):
    """The prompt, None if it cannot be rendered."""

    text: str | None


class EnginePiece(_Report, frozen=True, kw_only=True, tag="piece"):
    """A piece of the answer that is streaming."""

    text: str


class Answered(_Report, frozen=True, kw_only=True):
    """The answer to a question; the fields are those of `exchange.Answer`."""

    index: int
    text: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    error: str | None = None


class Streamed(Answered, frozen=True, kw_only=True, tag="streamed"):
    """The end of a streamed answer; its text was sent in pieces."""


class EngineFailed(_Report, frozen=True, kw_only=True, tag="failed"):
    """The engine cannot be loaded or has failed."""

    type: str
    message: str


EngineReport: TypeAlias = (
    EngineLoading | EngineReady | Rendered | EnginePiece | Answered | Streamed | EngineFailed
)
