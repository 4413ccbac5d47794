"""What of a request asks to go on with an earlier training, checked against what that training was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from swift_toolkit.config.settings import Setting, Source
from swift_toolkit.dataset.verify import DataReport
from swift_toolkit.problems import Problem, RequestError
from swift_toolkit.runs import lock
from swift_toolkit.runs import resume as runs_resume
from swift_toolkit.runs.directory import Output
from swift_toolkit.runs.resume import ResumePoint, StoredRequest
from swift_toolkit.training import preflight
from swift_toolkit.training.plan import TrainingPlan


@dataclass(frozen=True)
class Resumption:
    """A training that goes on.

    Args:
        point: where; None if there was nothing to go on from, and the run starts from the beginning.
        lines: what the user should know, a sentence each.
    """

    point: ResumePoint | None
    lines: tuple[str, ...]


def requested(plan: TrainingPlan) -> StoredRequest:
    """What is asked of the run that ``plan`` describes."""
    return runs_resume.request_of(plan.config, _marks(plan.data), plan.world_size, plan.batch.effective)


def _marks(report: DataReport) -> dict[str, list[str]]:
    """What tells the content of each split: fingerprints of its files, names on hubs, how many rows are taken."""
    prints = preflight.fingerprints(report)
    marks: dict[str, list[str]] = {}
    for split, specs in report.specs.items():
        files = sorted(prints[file.path] for file in report.files if file.split == split)
        hubs = [spec.text for spec in specs if spec.kind == "hub"]
        marks[split] = [*files, *hubs, *(f"{spec.sample or 'all'} rows" for spec in specs)]
    return marks


def resume(plan: TrainingPlan, output: Output, asked: bool | str | Path, force: bool) -> Resumption | None:
    """Find where ``plan`` goes on, and make it do so; None if it was not asked to.

    Args:
        plan: gets the checkpoint among its settings.
        output: where the run would write.
        asked: ``--resume``: true for the newest run of this output directory, or the place to look in.
        force: go on although what is learned changes.

    Raises:
        RequestError: it cannot go on, or would learn something else.
    """
    explicit = plan.config.get("resume_from_checkpoint")
    if asked is not False and (problems := list(_at_odds(plan))):
        raise RequestError(problems)
    if plan.config.get("resume_only_model") or (not explicit and asked is False):
        return None
    wanted = requested(plan)
    place = Path(str(explicit or (output.root if asked is True else asked))).expanduser()
    first = plan.cluster.is_first  # its decision holds for all
    point = runs_resume.find_resumable(place, wanted, every_byte=first)
    if point is None:
        return _from_the_beginning(place, must_be_there=asked is not True)
    if explicit and point.checkpoint:
        point = ResumePoint(None, point.checkpoint, point.state)
    problems = list(runs_resume.resume_problems(point, plan.config, wanted))
    if point.directory and first:
        problems += lock.lock_problems(point.directory)
    harmless, harmful = runs_resume.changes(point, wanted)
    if harmful and not force and not problems:
        problems = [_harmful(point, harmful)]
    if problems:
        raise RequestError(problems)
    if not explicit and point.checkpoint:
        source = Source("automatic", f"--resume: step {point.step}")
        name = "resume_from_checkpoint"
        plan.config.settings[name] = Setting(str(point.checkpoint), source, name)
    return Resumption(point, tuple(_lines(point, harmless, harmful)))


def _at_odds(plan: TrainingPlan) -> Iterator[Problem]:
    """Settings that ``--resume`` cannot have beside it."""
    for name, does in (
        ("resume_from_checkpoint", "names the checkpoint, which --resume finds by itself"),
        ("resume_only_model", "leaves out the optimizer, with which --resume goes on"),
    ):
        if plan.config.get(name):
            yield plan.config.problem(name, does, "Remove one of them.")


def _from_the_beginning(place: Path, must_be_there: bool) -> Resumption:
    if must_be_there:
        do = "Name a run directory (vN-<time>), a checkpoint-N in it, or the output directory of runs."
        raise RequestError([Problem(f"{place} holds no run to resume", do, "--resume")])
    return Resumption(None, (f"Nothing to resume in {place}: the run starts from the beginning.",))


def _harmful(point: ResumePoint, changed: list[str]) -> Problem:
    do = "Set it back, or add --force to go on with the change. Without --resume a new run begins."
    return Problem(f"what is learned changed since {point.checkpoint}: {', '.join(changed)}", do)


def _lines(point: ResumePoint, harmless: list[str], harmful: list[str]) -> Iterator[str]:
    yield from point.lines()
    if harmless:
        yield f"Changed since then, not what is learned: {', '.join(harmless)}."
    if harmful:
        yield f"Changed since then, and with it what is learned: {', '.join(harmful)}."
