"""The result of each question and the figures of a run."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import cast

from swift_toolkit.evaluation.results import COLUMNS, Figures, Result, Scores, SideResult
from swift_toolkit.evaluation.scores import METRICS, Score, ScoreBoard, Scorer
from swift_toolkit.inference.exchange import Answer, Question, Side


class Summary:
    """Computes the figures of a run, one question at a time.

    Args:
        sides: the sides that were asked.
        scorer: scores answers against references; None if there are no references.
    """

    def __init__(self, sides: Sequence[Side], scorer: Scorer | None) -> None:
        self.sides, self.scorer = tuple(sides), scorer
        self.board = ScoreBoard()
        self.asked = 0
        self.failed = 0
        self.tokens_in = self.tokens_out = 0
        self.busy_seconds = 0.0
        self.latencies = array("d")

    def add(self, question: Question, answers: Mapping[Side, Answer]) -> Result:
        """Add one question and its answers; returns its result."""
        self.asked += 1
        self.failed += any(answer.error is not None for answer in answers.values())
        for answer in answers.values():
            self.tokens_in += answer.prompt_tokens
            self.tokens_out += answer.completion_tokens
            self.busy_seconds += answer.share
            if answer.error is None:
                self.latencies.append(answer.seconds)
        return _result(question, answers, self._scores(question, answers))

    def _scores(self, question: Question, answers: Mapping[Side, Answer]) -> dict[Side, Score]:
        """The scores by side; none if a side has no answer, so that both sides are scored on the same questions."""
        if self.scorer is None or question.reference is None:
            return {}
        if any(answer.text is None for answer in answers.values()):
            return {}
        scores = {
            side: self.scorer.score(answer.text or "", question.reference) for side, answer in answers.items()
        }
        for side, score in scores.items():
            self.board.add(side, question.category, score)
        return scores

    def figures(self) -> Figures:
        """The figures of the questions added so far."""
        ordered = sorted(self.latencies)
        return {
            "asked": self.asked,
            "answered": self.asked - self.failed,
            "failed": self.failed,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "seconds": round(self.busy_seconds, 3),
            "tokens_per_second": round(self.tokens_out / self.busy_seconds, 2) if self.busy_seconds else 0.0,
            "latency_p50": round(_nearest_rank(ordered, 50), 3),
            "latency_p95": round(_nearest_rank(ordered, 95), 3),
            "scores": self.board.means(),
        }


def _nearest_rank(ordered: Sequence[float], percent: int) -> float:
    """The smallest value that is not exceeded by at least ``percent``% of the values; 0 if there are none."""
    return ordered[-(-len(ordered) * percent // 100) - 1] if ordered else 0.0


def _result(question: Question, answers: Mapping[Side, Answer], scores: Mapping[Side, Score]) -> Result:
    tuned = _side_result(answers["tuned"], scores.get("tuned"))
    asked = {"id": question.id, "category": question.category, "question": question.text}
    result = cast("Result", {**asked, "reference": question.reference, **tuned})
    if len(question.messages) > 1:
        result["messages"] = list(question.messages)
    if "base" in answers:
        result["base"] = _side_result(answers["base"], scores.get("base"))
    return result


def _side_result(answer: Answer, score: Score | None) -> SideResult:
    result: SideResult = {
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "seconds": round(answer.seconds, 3),
    }
    if answer.error is not None:
        result["error"] = answer.error
    if score is not None:
        result["scores"] = score.as_dict()
    return result


def score_table(scores: Scores) -> tuple[list[str], list[list[str]]]:
    """The heading and rows of a table of scores: one row per category and metric, one column per side."""
    columns = [column for column in COLUMNS if any(column in of for of in scores.values())]
    rows = []
    for category, of in scores.items():
        for metric in of["tuned"]:
            values = [f"{of[one][metric]:{'+' if one == 'difference' else ''}.1f}" for one in columns]
            rows.append([category, str(of["count"]), METRICS[metric], *values])
    return ["category", "count", "score", *columns], rows
