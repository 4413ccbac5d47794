"""A sweep: the same training with several values of one or two settings, one run after another.

Each run has its own output directory, ``<output_dir>/sweep/<key>=<value>``, and is resumed if it did not finish.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from swift_toolkit.model.checkpoints.find import runs_of
from swift_toolkit.problems import Problem, RequestError
from swift_toolkit.runs import page, resume
from swift_toolkit.runs.table import RunEntry, read_run
from swift_toolkit.training.checked import CheckedRequest, plan_training
from swift_toolkit.training.request import TrainingRequest, check_training
from swift_toolkit.training.resume import requested

FOLDER, COMPARISON = "sweep", "comparison.html"


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Args:
        settings: the values of the varied settings, by name.
        output: its output directory.
    """

    settings: Mapping[str, str]
    output: Path

    @property
    def name(self) -> str:
        """The settings as a name, e.g. ``learning_rate=1e-4``."""
        return ",".join(f"{name}={value}" for name, value in self.settings.items())

    def request(self, whole: TrainingRequest) -> TrainingRequest:
        """The request of this run; ``whole`` is that of the sweep."""
        overrides = {**whole.overrides, **self.settings, "output_dir": str(self.output)}
        return replace(whole, overrides=overrides, resume=True)

    @property
    def finished(self) -> Path | None:
        """The directory of its run, if the run is done."""
        runs = runs_of(self.output)
        return runs[0] if runs and read_run(runs[0]).state == "done" else None


def parse_sweep(texts: Sequence[str]) -> dict[str, list[str]]:
    """The values of each setting of a sweep.

    Args:
        texts: ``key=value,value,...`` for each setting.

    Raises:
        RequestError: with every problem.
    """
    if problems := list(_problems(texts)):
        raise RequestError(problems)
    pairs = (text.partition("=")[::2] for text in texts)
    return {key.strip().lstrip("-").replace("-", "_"): _values(values) for key, values in pairs}


def _values(text: str) -> list[str]:
    return list(dict.fromkeys(value.strip() for value in text.split(",") if value.strip()))


def _problems(texts: Sequence[str]) -> Iterator[Problem]:
    do = "Write --sweep learning_rate=1e-4,2e-4."
    keys = [text.partition("=")[0].strip() for text in texts]
    for text, key in zip(texts, keys, strict=True):
        if not key or len(_values(text.partition("=")[2])) < 2:
            yield Problem(f'is "{text}"; it must name a setting and at least two values', do, "--sweep")
        elif key.replace("-", "_") == "output_dir":
            yield Problem("cannot vary output_dir: each run gets its own", "Set it once.", "--sweep")
    if len(texts) > 2 or len(set(keys)) < len(keys):
        yield Problem("takes one or two different settings", do, "--sweep")


def points(values: Mapping[str, Sequence[str]], root: Path) -> list[Point]:
    """The runs of a sweep: every combination of the values.

    Args:
        values: of each setting.
        root: the output directory of the sweep.
    """
    found = []
    for combination in itertools.product(*values.values()):
        settings = dict(zip(values, combination, strict=True))
        name = ",".join(f"{key}={value}" for key, value in settings.items()).replace("/", "_")
        found.append(Point(settings, root / FOLDER / name))
    return found


def check(whole: TrainingRequest, values: Mapping[str, Sequence[str]]) -> list[Point]:
    """The runs of a sweep, after checking that each one can start.

    Raises:
        RequestError: a run cannot start, several nodes take part, or a finished run had other settings.
    """
    plain = replace(whole, resume=False)
    first = {key: given[0] for key, given in values.items()}
    checked = _checked(replace(plain, overrides={**plain.overrides, **first}))
    if checked.plan.cluster.has_peers:
        raise RequestError(
            [Problem("works on one machine only", "Start one run per value instead.", "--sweep")]
        )
    found = points(values, checked.output.root)
    for point in found:
        _check_point(point, _checked(replace(point.request(plain), resume=False)))
    return found


def _checked(request: TrainingRequest) -> CheckedRequest:
    return plan_training(request, check_training(request))


def _check_point(point: Point, checked: CheckedRequest) -> None:
    if (run := point.finished) is None:
        return
    before = resume.ResumePoint(run, run / "checkpoint-0")
    _, harmful = resume.changes(before, requested(checked.plan))
    if harmful:
        what = f"{run} is a finished run of this sweep with other settings: {', '.join(harmful)}"
        raise RequestError([Problem(what, 'Choose another "output_dir", or remove that run.')])


@dataclass(frozen=True)
class Outcome:
    """The result of a sweep.

    Args:
        runs: name and newest run of each point that has a run.
        best: the finished point with the lowest loss; None if no point is finished.
        comparison: the page that compares the runs; None with fewer than two runs.
    """

    runs: tuple[tuple[str, RunEntry], ...]
    best: Point | None
    comparison: Path | None


def outcome(found: Sequence[Point]) -> Outcome:
    """Compare the runs of a sweep, and write the page that shows them.

    Raises:
        OSError: the page cannot be written.
    """
    started = [(point, read_run(runs[0])) for point in found if (runs := runs_of(point.output))]
    losses = {point.name: run.best_loss for point, run in started if run.state == "done"}
    known = {name: loss for name, loss in losses.items() if loss is not None}
    name = min(known, key=known.__getitem__, default=None)
    best = next((point for point in found if point.name == name), None)
    comparison = None
    if len(started) > 1:
        comparison = found[0].output.parent / COMPARISON
        said = f"Best: {name}, loss {known[name]:.4g}" if name else ""
        page.write_comparison([run.directory for _, run in started], comparison, said)
    return Outcome(tuple((point.name, run) for point, run in started), best, comparison)
