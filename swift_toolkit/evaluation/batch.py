"""Runs a set of questions on a checkpoint.

The steps: read and check the questions; find or create the answers file; ask the missing questions, first the tuned
model, then the base; compute the figures and write the finished file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from swift_toolkit.evaluation.answers import AnswersFile, open_answers, read_results, unwritable_as_run_error
from swift_toolkit.evaluation.page import write_answers
from swift_toolkit.evaluation.questions import Overview, QuestionSet
from swift_toolkit.evaluation.results import Figures, Meta
from swift_toolkit.evaluation.scores import Scorer
from swift_toolkit.evaluation.summary import Summary
from swift_toolkit.inference.exchange import Answer, Question, Side
from swift_toolkit.inference.plan import Plan, folder_of
from swift_toolkit.problems import Problem, RequestError

if TYPE_CHECKING:
    from swift_toolkit.inference.engine import Engine

Progress = Callable[[int, int, "Answer | None"], None]
"""Called several times a second with the answers so far, all answers to expect, and the newest answer if any."""


class QuestionRun:
    """One run over a set of questions. Use it in a ``with`` statement.

    Args:
        plan: the plan of the model.
        questions: the questions.
        output: file for the answers; None for a file next to the checkpoint named after the time.
        report: an ``.html`` or ``.md`` report of the answers, None for no report.
        compare_base: whether to ask the base too.

    Raises:
        RequestError: with all problems of the questions and the output files.
    """

    def __init__(
        self,
        plan: Plan,
        questions: QuestionSet,
        output: Path | None = None,
        report: Path | None = None,
        *,
        compare_base: bool = False,
    ) -> None:
        self.plan, self.questions, self.report = plan, questions, report
        self.sides: tuple[Side, ...] = ("tuned", "base") if compare_base else ("tuned",)
        problems = plan.base_problems() if compare_base else []
        self.overview = check_batch(questions, output, report, problems)
        self.output = output
        self.answers: AnswersFile | None = None

    @property
    def total(self) -> int:
        """The number of answers of the whole run."""
        return self.overview.count * len(self.sides)

    def __enter__(self) -> QuestionRun:
        """Open the answers file."""
        run = {**self.plan.identity(), "questions": self.overview.digest, "sides": list(self.sides)}
        folder = folder_of(self.plan.checkpoint)
        self.answers = open_answers(self.output, folder, run, self.sides, self.overview.count)
        return self

    def __exit__(self, *_: object) -> None:
        if self.answers is not None:
            self.answers.close()

    def facts(self) -> dict[str, object]:
        """The description of the run before anything is asked, as JSON."""
        overview = self.overview
        known = {"questions": self.questions.name, "count": overview.count, "references": overview.references}
        return {**known, "categories": dict(overview.categories), "sides": list(self.sides)}

    def rows(self) -> list[tuple[str, str]]:
        """The description as names and values for the screen, with the file for the answers."""
        overview = self.overview
        parts = [f"{overview.count} from {self.questions.name}"]
        if overview.references:
            parts.append(f"{overview.references} with a reference")
        if overview.categories:
            count = len(overview.categories)
            parts.append(f"{count} {'category' if count == 1 else 'categories'}")
        rows = [("questions", ", ".join(parts))]
        if self.answers is not None:
            rows.append(("answers", f"{self.answers.output}{self._left_off()}"))
        return rows

    @property
    def kept(self) -> int:
        """The number of answers that exist."""
        return sum(self.answers.count_of(side) for side in self.sides) if self.answers else 0

    def _left_off(self) -> str:
        """The state that an earlier run left, as text."""
        assert self.answers is not None
        if self.answers.finished:
            return " (all answers already exist)"
        damaged = self.answers.damaged
        parts = [f"continuing: {self.kept} of {self.total} exist"] if self.kept else []
        if damaged:
            lines = "1 damaged line is" if damaged == 1 else f"{damaged} damaged lines are"
            parts.append(f"{lines} skipped and asked again")
        return f" ({'; '.join(parts)})" if parts else ""

    def run(self, engine: Callable[[Side], Engine], progress: Progress) -> tuple[Path, Meta, Figures]:
        """Ask the missing questions and write the finished file; return its path, ``meta`` and ``summary``.

        Args:
            engine: returns the engine for a side.
            progress: called with the progress.

        Raises:
            RunError: an engine ended unexpectedly, or the disk is full. Existing answers are kept.
        """
        answers = self.answers
        assert answers is not None
        if not answers.finished:
            self._ask_all(answers, engine, progress)
        if self.report is not None:
            with unwritable_as_run_error(self.report):
                write_answers(answers.output, self.report)
        return (answers.output, *read_results(answers.output)[:2])

    def _ask_all(self, answers: AnswersFile, engine: Callable[[Side], Engine], progress: Progress) -> None:
        for side in self.sides:
            if answers.count_of(side) < self.overview.count or answers.meta is None:
                self._ask(answers, side, engine(side), progress)
        self._finish(answers)

    def _ask(self, answers: AnswersFile, side: Side, engine: Engine, progress: Progress) -> None:
        answers.keep_meta(self._facts(engine))
        for event in engine.answers(self._missing(answers, side), side):
            if event is not None:
                answers.append(event[0], side, event[1])
            progress(self.kept, self.total, None if event is None else event[1])

    def _missing(self, answers: AnswersFile, side: Side) -> Iterator[Question]:
        return (question for question in self.questions if answers.missing(side, question.index))

    def _facts(self, engine: Engine) -> Meta:
        ready = engine.ready
        return {
            **self.plan.facts(),
            "template": ready.template,
            "system": ready.system,
            "dtype": ready.dtype,
            "versions": ready.versions,
            "questions": self.questions.name,
            "sides": list(self.sides),
            "prompt": engine.render(next(iter(self.questions))),
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        }

    def _finish(self, answers: AnswersFile) -> None:
        summary = Summary(self.sides, Scorer() if self.overview.references else None)
        answers.finish((summary.add(*pair) for pair in answers.pairs(self.questions)), summary.figures)


def check_batch(
    questions: QuestionSet, output: Path | None, report: Path | None, problems: Sequence[Problem] = ()
) -> Overview:
    """Read the questions once and check the output files.

    Args:
        questions: the questions.
        output: file for the answers, None for one next to the checkpoint.
        report: file for the report, None for no report.
        problems: problems found so far.

    Raises:
        RequestError: with ``problems`` and all problems of the questions and output files.
    """
    found = [*problems, *_place_problems(output, "--output", (".json",))]
    found += _place_problems(report, "--report", (".html", ".md"))
    try:
        overview = questions.check()
    except RequestError as error:
        raise RequestError(found + error.problems) from None
    if found:
        raise RequestError(found)
    return overview


def _place_problems(place: Path | None, flag: str, suffixes: tuple[str, ...]) -> list[Problem]:
    """Reasons why the file ``place`` cannot be written."""
    if place is None:
        return []
    folder = next((folder for folder in place.absolute().parents if folder.exists()), place)
    if place.is_dir() or place.suffix not in suffixes:
        what = "is a directory" if place.is_dir() else "has an unsupported extension"
        return [Problem(f"{what}: {place}", f"Name a file that ends in {' or '.join(suffixes)}.", flag)]
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return [
            Problem(
                f"cannot write {place}: permission denied for {folder}", "Choose another directory.", flag
            )
        ]
    return []
