"""What goes to an engine and what comes back: orders, questions, answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Answer:
    """What came back for one question.

    Args:
        text: the answer, None if there is none.
        finish_reason: ``stop`` (the model ended it) or ``length`` (``max_new_tokens`` did).
        prompt_tokens: tokens of the rendered prompt.
        completion_tokens: tokens of the answer.
        seconds: from asking to the answer's end. Questions that are asked together end together.
        share: seconds since the answer before it was complete; all of them sum to the time the engine was
            busy.
        error: why the question could not be answered.
    """

    text: str | None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    share: float = 0.0
    error: str | None = None


ChatMessage = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """One question, ready to be asked.

    Args:
        index: its place in the set, from 0.
        id: its name in the results: the one given, else its place counted from 1.
        messages: what the model is shown, ``{"role": ..., "content": ...}`` each; the first may be from
            ``system``, the last is not from ``assistant``.
        reference: the answer hoped for, if known.
        category: what to group it under, if given.
        extra: further inputs by ms-swift's names: ``images``, ``videos``, ``audios`` (lists of files or
            addresses), ``tools``, ``objects``, ``chat_template_kwargs``.
    """

    index: int
    id: str
    messages: tuple[ChatMessage, ...]
    reference: str | None = None
    category: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The last turn: what a table shows as the question."""
        content = self.messages[-1]["content"]
        return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


Side = Literal["tuned", "base"]


@dataclass(frozen=True)
class EngineOrder:
    """What an engine is started with.

    Args:
        arguments: for ms-swift's own InferArguments parser.
        backend: ``pt``, ``vllm``, ``sglang`` or ``lmdeploy``.
        generation: ``RequestConfig``'s fields, and ``seed``.
        environment: variables for the engine's process, added to this one's.
        adapter: the adapter that can be switched off, None if there is none to switch.
        largest_batch: questions asked together at most; None to choose it from the device.
    """

    arguments: list[str]
    backend: str
    generation: Mapping[str, Any]
    environment: Mapping[str, str]
    adapter: str | None = None
    largest_batch: int | None = None
