"""Check a request to resume an earlier training against that training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """A training that is resumed.

    Args:
        point: where it continues; None if there is nothing to resume and the run starts from the beginning.
        lines: sentences for the user.
    """

    point: ResumePoint | None
    lines: tuple[str, ...]


def requested(plan: TrainingPlan, command: Sequence[str] = ()) -> StoredRequest:
    """The request that ``plan`` carries out, as it is stored in the run directory.

    Args:
        plan: the plan of the run.
        command: the command line; empty if the run is started from Python.
    """
    sizes = (plan.world_size, plan.batch.effective)
    return runs_resume.request_of(plan.config, _marks(plan.data), *sizes, command)


def _marks(report: DataReport) -> dict[str, list[str]]:
    """Identification of the data of each split: fingerprints of its files, names on hubs, numbers of rows."""
    prints = preflight.fingerprints(report)
    marks: dict[str, list[str]] = {}
    for split, specs in report.specs.items():
        files = sorted(prints[file.path] for file in report.files if file.split == split)
        hubs = [spec.text for spec in specs if spec.kind == "hub"]
        marks[split] = [*files, *hubs, *(f"{spec.sample or 'all'} rows" for spec in specs)]
    return marks


def resume(plan: TrainingPlan, output: Output, asked: bool | str | Path, force: bool) -> Resumption | None:
    """Find the checkpoint that ``plan`` resumes from; None if resuming was not requested.

    Args:
        plan: the plan of the run; `resume_from` adds the checkpoint to its settings.
        output: where a new run would write.
        asked: the value of ``--resume``: True for the newest run of this output directory, or the path to search.
        force: resume although settings changed that affect what is learned.

    Raises:
        RequestError: it cannot be resumed, or what it learns would change.
    """
    explicit = plan.config.get("resume_from_checkpoint")
    if asked is not False and (problems := list(_at_odds(plan))):
        raise RequestError(problems)
    if plan.config.get("resume_only_model") or (not explicit and asked is False):
        return None
    wanted = requested(plan)
    place = Path(str(explicit or (output.root if asked is True else asked))).expanduser()
    first = plan.cluster.is_first  # the first process decides for all
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
        resume_from(plan, point.checkpoint, f"--resume: step {point.step}")
    streams = bool(plan.config.get("streaming"))
    return Resumption(point, tuple(_lines(point, harmless, harmful, streams=streams)))


def resume_from(plan: TrainingPlan, checkpoint: Path, reason: str) -> None:
    """Let ``plan`` resume from ``checkpoint``."""
    name = "resume_from_checkpoint"
    plan.config.settings[name] = Setting(str(checkpoint), Source("automatic", reason), name)


def _at_odds(plan: TrainingPlan) -> Iterator[Problem]:
    """Settings that conflict with ``--resume``."""
    for name, does in (
        ("resume_from_checkpoint", "names a checkpoint, but --resume finds it automatically"),
        ("resume_only_model", "skips the optimizer state, which --resume needs"),
    ):
        if plan.config.get(name):
            yield plan.config.problem(name, does, "Remove one of them.")


def _from_the_beginning(place: Path, must_be_there: bool) -> Resumption:
    if must_be_there:
        do = "Name a run directory (vN-<time>), a checkpoint-N in it, or an output directory with runs."
        raise RequestError([Problem(f"{place} has no run to resume", do, "--resume")])
    return Resumption(None, (f"Nothing to resume in {place}: the run starts from the beginning.",))


def _harmful(point: ResumePoint, changed: list[str]) -> Problem:
    do = "Undo the change, or add --force to resume with it. To start a new run, omit --resume."
    return Problem(
        f"settings that affect what is learned changed since {point.checkpoint}: {', '.join(changed)}", do
    )


def _lines(point: ResumePoint, harmless: list[str], harmful: list[str], *, streams: bool) -> Iterator[str]:
    yield from point.lines()
    if streams and point.step:
        yield 'With "streaming", ms-swift processes the earlier rows again; otherwise they are skipped at once.'
    if harmless:
        yield f"Changed since then, with no effect on what is learned: {', '.join(harmless)}."
    if harmful:
        yield f"Changed since then, with an effect on what is learned: {', '.join(harmful)}."
