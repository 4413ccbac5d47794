"""Answers of the engine in OpenAI's format (https://platform.openai.com/docs/api-reference)."""

from __future__ import annotations

import base64
import struct
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from swift_toolkit.inference.stop_text import StopText, as_text
from swift_toolkit.serving.api.fields import COMPLETIONS
from swift_toolkit.serving.api.request import ApiRequest
from swift_toolkit.serving.api.schema import (
    AnswerMessage,
    AnswerPiece,
    ChatChoice,
    ChatLogprobs,
    ChatPiece,
    Delta,
    ModelEntry,
    ModelList,
    TextChoice,
    TextLogprobs,
    ToolCall,
    UsageCounts,
    Vectors,
    WholeAnswer,
)


@dataclass(frozen=True)
class Usage:
    """Token counts of a prompt and its answers."""

    prompt_tokens: int
    completion_tokens: int

    def counts(self) -> UsageCounts:
        """The counts in OpenAI's format."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens
        )


def usage_of(answers: Iterable[Any]) -> Usage:
    """The total usage of several answers of the engine."""
    total = Usage(0, 0)
    for one in answers:
        total += Usage(one.usage.prompt_tokens, one.usage.completion_tokens)
    return total


@dataclass(frozen=True)
class Form:
    """Formats the answers to one request.

    Args:
        request: the request.
        with_tools: the request offers functions.
        id: id of the answer.
        created: start of the answer, in seconds since 1970.
    """

    request: ApiRequest
    with_tools: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def _plain(self) -> bool:
        return self.request.path == COMPLETIONS

    def whole(self, answers: Sequence[Any]) -> WholeAnswer:
        """The answer to a request that does not stream; ``answers`` has one answer of the engine per prompt."""
        choices = [*enumerate(choice for one in answers for choice in one.choices)]
        made: list[TextChoice] | list[ChatChoice]
        if self._plain:
            made = [self._text_choice(*one) for one in choices]
        else:
            made = [self._chat_choice(*one) for one in choices]
        return {
            "id": self._id,
            "object": "text_completion" if self._plain else "chat.completion",
            "created": self.created,
            "model": self.request.model,
            "choices": made,
            "usage": usage_of(answers).counts(),
        }

    @property
    def _id(self) -> str:
        return f"{'cmpl' if self._plain else 'chatcmpl'}-{self.id}"

    def _text_choice(self, index: int, choice: Any) -> TextChoice:
        text, reason = self._cut(choice.message.content, choice.finish_reason)
        logprobs = text_logprobs(choice.logprobs, text, reason)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _chat_choice(self, index: int, choice: Any) -> ChatChoice:
        content, reason = self._cut(choice.message.content, choice.finish_reason)
        message: AnswerMessage = {"role": "assistant", "content": content}
        if getattr(choice.message, "reasoning_content", None):
            message["reasoning_content"] = choice.message.reasoning_content
        if calls := self._calls(choice.message):
            message["tool_calls"], reason = calls, "tool_calls"
        logprobs = (
            _trimmed(choice.logprobs, content) if isinstance(choice.message.content, str) else choice.logprobs
        )
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def _cut(self, content: Any, reason: str | None) -> tuple[Any, str | None]:
        """Cut the content before the first stop text. A class or score becomes text: clients expect nothing else."""
        if not isinstance(content, str):
            return None if content is None else as_text(content), reason
        stop = StopText(self.request.sampling.stop)
        text = stop.feed(content, last=True)
        return text, self.request.sampling.why_ended(reason, stop.found)

    def _calls(self, message: Any) -> list[ToolCall]:
        return [asdict(one) for one in message.tool_calls or []] if self.with_tools else []  # type: ignore[misc]

    def piece(self, choice: Any, text: str, reason: str | None) -> AnswerPiece:
        """Format one event of a stream.

        Args:
            choice: the engine's piece.
            text: the part of it to show.
            reason: the finish reason; None if the answer continues.
        """
        if self._plain:
            logprobs = text_logprobs(choice.logprobs, None, reason)
            text_piece: TextChoice = {
                "index": 0,
                "text": text,
                "logprobs": logprobs,
                "finish_reason": reason,
            }
            return self._event([text_piece], None)
        delta: Delta = {"role": "assistant", "content": text}
        if getattr(choice.delta, "reasoning_content", None):
            delta["reasoning_content"] = choice.delta.reasoning_content
        if calls := self._calls(choice.delta):
            delta["tool_calls"] = [{"index": index, **one} for index, one in enumerate(calls)]
            reason = "tool_calls"
        piece: ChatPiece = {
            "index": 0,
            "delta": delta,
            "logprobs": choice.logprobs,
            "finish_reason": reason,
        }
        return self._event([piece], None)

    def last(self, usage: Usage) -> AnswerPiece:
        """The event with the usage."""
        return self._event([], usage)

    def _event(self, choices: list[ChatPiece] | list[TextChoice], usage: Usage | None) -> AnswerPiece:
        event: AnswerPiece = {
            "id": self._id,
            "object": "text_completion" if self._plain else "chat.completion.chunk",
            "created": self.created,
            "model": self.request.model,
            "choices": choices,
        }
        if self.request.include_usage:
            event["usage"] = usage.counts() if usage else None
        return event

    def vectors(self, answers: Sequence[Any]) -> Vectors:
        """The answer to a request for embeddings."""
        packed = [self._packed(one.data[0].embedding) for one in answers]
        tokens = usage_of(answers).prompt_tokens
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(packed)
            ],
            "model": self.request.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    def _packed(self, vector: Sequence[float]) -> str | list[float]:
        if not self.request.base64:
            return list(vector)
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _trimmed(logprobs: ChatLogprobs | None, content: object) -> ChatLogprobs | None:
    """The log probabilities of the tokens that remain in ``content`` after it was cut."""
    if not logprobs or not isinstance(content, str):
        return logprobs
    tokens, length = logprobs.get("content") or [], 0
    for index, one in enumerate(tokens):
        if length >= len(content) and length > 0:
            return {"content": tokens[:index]}
        length += len(one["token"])
    return logprobs


def text_logprobs(logprobs: ChatLogprobs | None, text: str | None, reason: str | None) -> TextLogprobs | None:
    """Log probabilities in the format of completions, which differs from that of chats."""
    kept = _trimmed(logprobs, text) if reason == "stop" else logprobs
    if not kept:
        return None
    tokens = kept.get("content") or []
    offsets, length = [], 0
    for one in tokens:
        offsets.append(length)
        length += len(one["token"])
    return {
        "tokens": [one["token"] for one in tokens],
        "token_logprobs": [one["logprob"] for one in tokens],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in one.get("top_logprobs") or []} for one in tokens
        ],
        "text_offset": offsets,
    }


def model_list(names: Iterable[str]) -> ModelList:
    """The answer to ``GET /v1/models``."""
    return {"object": "list", "data": [model_entry(name) for name in names]}


_STARTED = int(time.time())


def model_entry(name: str) -> ModelEntry:
    """The answer to ``GET /v1/models/NAME``."""
    return {"id": name, "object": "model", "created": _STARTED, "owned_by": "swift-toolkit"}
