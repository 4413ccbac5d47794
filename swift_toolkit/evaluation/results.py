"""The JSON of a finished answers file: ``{"meta": Meta, "summary": Figures, "results": [Result, ...]}``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias, TypedDict

from swift_toolkit.inference.exchange import AskedOf, ChatMessage, Side

Column = Literal["base", "tuned", "difference"]
COLUMNS: tuple[Column, ...] = ("base", "tuned", "difference")
"""The columns of a table of scores, from left to right."""


class CategoryScores(TypedDict, total=False):
    """The mean scores of a category by metric, from 0 to 100.

    Keys:
        count: number of scored answers.
        tuned, base: scores of each side that was asked.
        difference: tuned minus base, if both were asked.
    """

    count: int
    tuned: dict[str, float]
    base: dict[str, float]
    difference: dict[str, float]


Scores: TypeAlias = Mapping[str, CategoryScores]
"""By category, ``all`` first."""


class Meta(AskedOf):
    """The description of a run.

    Keys:
        template, system, dtype: properties of the loaded model.
        versions: versions of the packages that answers depend on.
        questions: the questions file.
        sides: the sides that were asked.
        prompt: the first prompt as the model sees it.
        started: local time of the start.
    """

    template: str | None
    system: str | None
    dtype: str
    versions: Mapping[str, str]
    questions: str
    sides: Sequence[Side]
    prompt: str | None
    started: str


class FileMeta(Meta):
    """The description with the format version of the file and the fingerprint of the run."""

    format: int
    fingerprint: str


class Figures(TypedDict):
    """The figures of all results. ``seconds`` is the time that the engine was busy, in all sessions of an interrupted
    run; latencies are in seconds.
    """

    asked: int
    answered: int
    failed: int
    tokens_in: int
    tokens_out: int
    seconds: float
    tokens_per_second: float
    latency_p50: float
    latency_p95: float
    scores: Scores


class _OfAnswer(TypedDict, total=False):
    error: str
    scores: dict[str, float]


class SideResult(_OfAnswer):
    """The answer of one side; ``error`` if it failed, ``scores`` if there is a reference."""

    answer: str | None
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class _OfQuestion(TypedDict, total=False):
    messages: list[ChatMessage]
    base: SideResult


class Result(SideResult, _OfQuestion):
    """One question and its answer from the tuned model.

    ``base`` is the answer of the base if it was asked too; ``messages`` is the question if it has several messages.
    """

    id: str
    category: str | None
    question: str
    reference: str | None


class Finished(TypedDict):
    """The content of the file without the results."""

    meta: FileMeta
    summary: Figures


Results: TypeAlias = Iterator[Result]


def side_of(result: Result, side: Side) -> SideResult:
    """The answer of ``side``."""
    return result["base"] if side == "base" else result


def shown_answer(result: SideResult) -> str:
    """An answer, or the reason why there is none."""
    return f"failed: {result['error']}" if result.get("error") is not None else str(result["answer"])
