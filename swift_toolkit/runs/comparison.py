"""Differences between runs: settings, data, results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from swift_toolkit.console import screen
from swift_toolkit.runs.record import PLAN, RESULT, ResultRecord, RunPlan, read_record
from swift_toolkit.runs.resume import stored_request
from swift_toolkit.runs.table import RunEntry, read_run

_PLACES = ("output_dir", "resume_from_checkpoint", "add_version")
"""Settings that differ between any two runs."""

_Row = tuple[str, ...]
"""A name and, for each run, the value as text."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of runs.

    Args:
        runs: the runs.
        names: a short name for each.
        settings: the settings that differ.
        data: the data that differs, by split.
        results: state, steps, losses, time and memory.
    """

    runs: tuple[RunEntry, ...]
    names: tuple[str, ...]
    settings: tuple[_Row, ...]
    data: tuple[_Row, ...]
    results: tuple[_Row, ...]

    def as_dict(self) -> dict[str, object]:
        """Plain data."""
        shown = {**asdict(self), "runs": [run.as_dict() for run in self.runs]}
        return {"schema": 1, **shown}


def compare(directories: Sequence[Path]) -> Comparison:
    """Compare the runs in ``directories``."""
    runs = tuple(map(read_run, directories))
    return Comparison(
        runs=runs,
        names=short_names(directories),
        settings=_differing([settings_of(directory) for directory in directories]),
        data=_differing([_data_of(directory) for directory in directories]),
        results=_results(runs),
    )


def short_names(directories: Sequence[Path]) -> tuple[str, ...]:
    """The shortest unique names for the paths: the output directory, the run, or the ends of both."""
    parts = [path.resolve().parts for path in directories]
    for start, end in ((-2, -1), *((-length, None) for length in range(1, max(map(len, parts)) + 1))):
        names = tuple("/".join(one[start:end]) for one in parts)
        if len(set(names)) == len(names):
            return names
    return tuple(map(str, directories))


def settings_of(directory: Path) -> dict[str, str]:
    """The settings of a run by name, as text."""
    plan, request = read_record(directory / PLAN, RunPlan)[0], stored_request(directory)
    recorded = plan.settings if plan else {}
    found = {name: one.get("value", "") for name, one in recorded.items()} or (
        request.given if request else {}
    )
    return {name: value for name, value in found.items() if name not in _PLACES}


def _data_of(directory: Path) -> dict[str, str]:
    request = stored_request(directory)
    return {split: "; ".join(marks) for split, marks in (request.data if request else {}).items()}


def _differing(found: Sequence[dict[str, str]]) -> tuple[_Row, ...]:
    names = sorted({name for one in found for name in one})
    rows = [(name, *(one.get(name, "not set") for one in found)) for name in names]
    return tuple(row for row in rows if len(set(row[1:])) > 1)


def _results(runs: Sequence[RunEntry]) -> tuple[_Row, ...]:
    results = [read_record(run.directory / RESULT, ResultRecord)[0] or ResultRecord() for run in runs]
    metrics = [result.metrics for result in results]
    rows: list[_Row] = [
        ("state", *(run.state for run in runs)),
        ("steps", *(f"{run.step:,} of {run.max_steps:,}" for run in runs)),
        ("best loss", *(_figure(run.best_loss) for run in runs)),
    ]
    for name in ("final_loss", "eval_loss", "token_acc", "eval_token_acc", "reward"):
        if any(name in one for one in metrics):
            rows.append((name.replace("_", " "), *(_figure(one.get(name)) for one in metrics)))
    seconds = [result.seconds.get("training") for result in results]
    rows.append(("training time", *("" if one is None else screen.duration(one) for one in seconds)))
    peaks = [result.memory.peak for result in results]
    rows.append(("peak memory", *("" if one is None else screen.gib(one) for one in peaks)))
    return tuple(rows)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
