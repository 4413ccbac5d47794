"""What goes to an engine and what comes back: orders, questions, answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias, TypedDict


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


ChatMessage: TypeAlias = dict[str, Any]
"""``{"role": ..., "content": ...}`` as ms-swift takes it; content is text or a list of parts."""

Inputs: TypeAlias = Mapping[str, Any]
"""Further inputs of a question by ms-swift's names: ``images``, ``videos``, ``audios`` (lists of files or addresses),
``tools``, ``objects``, ``chat_template_kwargs``.
"""


@dataclass(frozen=True)
class Question:
    """One question, ready to be asked.

    Args:
        index: its place in the set, from 0.
        id: its name in the results: the one given, else its place counted from 1.
        messages: what the model is shown; the first may be from ``system``, the last is not from ``assistant``.
        reference: the expected answer, if known.
        category: what to group it under, if given.
        extra: further inputs.
    """

    index: int
    id: str
    messages: tuple[ChatMessage, ...]
    reference: str | None = None
    category: str | None = None
    extra: Inputs = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The last turn: what a table shows as the question."""
        content = self.messages[-1]["content"]
        return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


Side = Literal["tuned", "base"]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How answers are generated; None leaves it to ms-swift. All but ``seed`` are fields of its RequestConfig."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    num_beams: int | None = None
    stop: list[str] | None = None
    seed: int | None = None

    def given(self) -> dict[str, object]:
        """What is not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class EngineOrder:
    """What an engine is started with.

    Args:
        arguments: for ms-swift's own InferArguments parser.
        backend: ``pt``, ``vllm``, ``sglang`` or ``lmdeploy``.
        generation: how it answers.
        environment: variables for the engine's process, added to this one's.
        adapter: the adapter that can be switched off, None if there is none to switch.
        largest_batch: questions asked together at most; None to choose it from the device.
    """

    arguments: list[str]
    backend: str
    generation: Generation
    environment: Mapping[str, str]
    adapter: str | None = None
    largest_batch: int | None = None


class AskedOf(TypedDict):
    """What the results say about what was asked.

    Keys:
        checkpoint, base: directories or names; the base is None where it is not known.
        train_type: how it was trained; ``full`` or ``merged`` where that is not known.
        backend, device: what it ran with, by name.
        code: what became of Python code that the checkpoint brings, None without any.
        merged: the adapter was merged into its base.
        generation: the settings of an answer that were set.
        seed: of the draws.
    """

    checkpoint: str
    base: str | None
    train_type: str
    backend: str
    device: str
    code: str | None
    merged: bool
    generation: Mapping[str, object]
    seed: int | None
