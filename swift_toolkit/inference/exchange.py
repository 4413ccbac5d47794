"""The data exchanged with an engine: orders, questions, answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias, TypedDict


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Args:
        text: the answer, None if there is none.
        finish_reason: ``stop`` (the model ended it) or ``length`` (``max_new_tokens`` did).
        prompt_tokens: number of tokens of the rendered prompt.
        completion_tokens: number of tokens of the answer.
        seconds: time from asking until the answer is complete; the questions of a batch end together.
        share: seconds since the previous answer was complete; the sum is the time that the engine was busy.
        error: the reason why the question was not answered.
    """

    text: str | None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    share: float = 0.0
    error: str | None = None


ChatMessage: TypeAlias = dict[str, Any]
"""``{"role": ..., "content": ...}`` in ms-swift's format; content is text or a list of parts."""

Inputs: TypeAlias = Mapping[str, Any]
"""Further inputs of a question by their names in ms-swift: ``images``, ``videos``, ``audios`` (lists of files or URLs),
``tools``, ``objects``, ``chat_template_kwargs``.
"""


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        index: its index in the set, from 0.
        id: its id in the results: the given id, else its number counted from 1.
        messages: messages for the model; the first may be from ``system``, the last is not from ``assistant``.
        reference: the expected answer, if known.
        category: the category it belongs to, if given.
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
        """The last turn, which tables show as the question."""
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
        """The parameters that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class EngineOrder:
    """The order that starts an engine.

    Args:
        arguments: argument list for ms-swift's own InferArguments parser.
        backend: ``pt``, ``vllm``, ``sglang`` or ``lmdeploy``.
        generation: generation parameters.
        environment: variables for the engine's process, added to this one's.
        adapter: the adapter that can be switched off, None if there is none.
        largest_batch: most questions asked together; None to choose it by device.
    """

    arguments: list[str]
    backend: str
    generation: Generation
    environment: Mapping[str, str]
    adapter: str | None = None
    largest_batch: int | None = None


class AskedOf(TypedDict):
    """The description of the model in the results.

    Keys:
        checkpoint, base: directories or names; the base is None if it is not known.
        train_type: how it was trained; ``full`` or ``merged`` if that is not known.
        backend, device: names of the backend and the device.
        code: how Python code in the checkpoint was handled, None if there is no code.
        merged: the adapter was merged into its base.
        generation: the generation settings that were set.
        seed: seed of the sampling.
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
