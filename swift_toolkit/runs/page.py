"""The report of a run, or a comparison of several runs, as one HTML page."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from swift_toolkit.console import page, screen
from swift_toolkit.console.page import Curve, TileStatus
from swift_toolkit.machine.files import size_of, whole_text
from swift_toolkit.model.checkpoints import training_state
from swift_toolkit.model.checkpoints.find import checkpoints_of
from swift_toolkit.runs.comparison import Comparison, compare
from swift_toolkit.runs.history import History, read_history
from swift_toolkit.runs.next_steps import recorded_commands
from swift_toolkit.runs.record import PLAN, REPORT, RESULT, SETTINGS, ResultRecord, RunPlan, read_record
from swift_toolkit.runs.table import RunEntry, read_run

REFRESH_SECONDS = 60
"""How often the report of a running run is written and reloaded by the browser, in seconds."""

_STATUS: dict[str, TileStatus] = {"done": "good", "running": "good", "failed": "bad", "killed": "bad"}


@dataclass(frozen=True)
class ChartOf:
    """A chart of a report.

    Args:
        title: its heading.
        names: the metrics that it shows: names in the log -> labels.
        unit: unit of the values.
        from_zero: whether the value axis starts at 0.
    """

    title: str
    names: dict[str, str]
    unit: str = ""
    from_zero: bool = False


CHARTS = (
    ChartOf("Loss", {"loss": "training", "eval_loss": "validation"}),
    ChartOf("Token accuracy", {"token_acc": "training", "eval_token_acc": "validation"}),
    ChartOf("Reward", {"reward": "mean", "reward_std": "spread"}),
    ChartOf("Reward margin", {"rewards/margins": "training", "eval_rewards/margins": "validation"}),
    ChartOf(
        "Preferred correctly", {"rewards/accuracies": "training", "eval_rewards/accuracies": "validation"}
    ),
    ChartOf("KL divergence", {"kl": "training"}),
    ChartOf("Accuracy", {"acc": "training", "eval_acc": "validation"}),
    ChartOf("Gradient norm", {"grad_norm": "gradient norm"}, from_zero=True),
    ChartOf("Learning rate", {"learning_rate": "learning rate"}, from_zero=True),
)


def write_run_report(directory: Path, file: Path | None = None, running: bool | None = None) -> None:
    """Write the report of the run in ``directory``.

    Args:
        directory: the run directory.
        file: where to write it; None for report.html in the run directory.
        running: whether the run is still going; None checks its lock.

    Raises:
        OSError: it cannot be written.
    """
    with whole_text(file or directory / REPORT) as out:
        out.write(run_page(directory, running))


def run_page(directory: Path, running: bool | None = None) -> str:
    """The report of the run in ``directory`` as HTML; ``running`` as for `write_run_report`."""
    run, history = read_run(directory, running), read_history(directory)
    result = read_record(directory / RESULT, ResultRecord)[0] or ResultRecord()
    plan = read_record(directory / PLAN, RunPlan)[0] or RunPlan()
    charts = [_chart(chart, [("", history)]) for chart in CHARTS]
    body = page.tiles(_tiles(run, history, result)) + _errors(run, result)
    body += page.chart_grid([*charts, *_machine_charts([("", history)])])
    body += "".join(_sections(run, result, plan))
    return page.document(
        f"{Path(run.model).name} · {run.task} · {run.tuner}",
        body,
        subtitle=str(directory),
        status=(_STATUS.get(run.state, "warn"), _state(run)),
        note=run.started.strftime("started %Y-%m-%d %H:%M"),
        charts=True,
        refresh=REFRESH_SECONDS if run.state == "running" else 0,
    )


def _state(run: RunEntry) -> str:
    steps = f", step {run.step:,} of {run.max_steps:,}" if run.max_steps else ""
    return f"{run.state.capitalize()}{steps}" + (", can be resumed" if run.resumable else "")


def _tiles(run: RunEntry, history: History, result: ResultRecord) -> Iterator[tuple[str, str, str]]:
    for name, title in (("loss", "Loss"), ("eval_loss", "Validation loss"), ("token_acc", "Token accuracy")):
        if values := history.of(name):
            best = (max if name == "token_acc" else min)(values.values())
            yield title, f"{values[max(values)]:.4g}", f"best {best:.4g}"
    share = f"{run.step / run.max_steps:.0%} done" if run.max_steps else ""
    yield "Steps", f"{run.step:,}", f"of {run.max_steps:,}, {share}" if share else ""
    if history.speed:
        paces = sorted(history.speed.values())
        pace = paces[len(paces) // 2]
        left = screen.duration(pace * (run.max_steps - run.step)) if run.state == "running" else ""
        yield "Speed", f"{pace:.3g} s", f"per step, {left} left" if left else "per step"
    if (training := result.seconds.get("training")) is not None:
        startup = screen.duration(result.seconds.get("startup", 0.0))
        yield "Training", screen.duration(training), f"and {startup} to start"
    if history.memory:
        yield "Peak memory", f"{max(history.memory.values()):.1f} GiB", _planned(result.memory.estimate)


def _planned(estimate: int | None) -> str:
    return f"estimated {screen.gib(estimate)}" if estimate else ""


def _errors(run: RunEntry, result: ResultRecord) -> str:
    alarms = [f"Step {alarm.step}: {alarm.what}. {alarm.do}" for alarm in result.alarms]
    alarms += run.faults
    error = page.section("Why it failed", page.command(run.error), "bad") if run.error else ""
    return error + (page.section("Warnings", page.item_list(alarms), "warn") if alarms else "")


def _chart(chart: ChartOf, histories: Sequence[tuple[str, History]]) -> str:
    """A chart of one run, or of several named runs."""
    several = len(histories) > 1
    curves = [
        Curve(_label(run, label, chart), points, bool(at), number if several else at)
        for number, (run, history) in enumerate(histories)
        for at, (name, label) in enumerate(chart.names.items())
        if (points := history.of(name))
    ]
    return page.line_chart(chart.title, curves, chart.unit, chart.from_zero)


def _label(run: str, label: str, chart: ChartOf) -> str:
    """The name of a curve: its metric, its run, or both."""
    if not run:
        return label
    return f"{run}, {label}" if len(chart.names) > 1 and label != "training" else run


def _machine_charts(histories: Sequence[tuple[str, History]]) -> Iterator[str]:
    speeds = [Curve(run or "time", one.speed, color=at) for at, (run, one) in enumerate(histories)]
    yield page.line_chart("Time per step", speeds, "s", from_zero=True)
    memory = [Curve(run or "peak", one.memory, color=at) for at, (run, one) in enumerate(histories)]
    yield page.line_chart("Memory", memory, "GiB", from_zero=True)


def _sections(run: RunEntry, result: ResultRecord, plan: RunPlan) -> Iterator[str]:
    if commands := list(next_commands(run)):
        yield page.section("Next", page.command("\n".join(commands)))
    if checkpoints := list(_checkpoint_rows(run.directory)):
        columns = ("checkpoint", "step", "size", "")
        yield page.section("Checkpoints", page.table(columns, checkpoints, numbers=("step", "size")))
    if plan.facts:
        yield page.section("Plan", page.facts(plan.facts))
    if record := list(_record(run, result, plan)):
        yield page.section("Record", page.facts(record))
    if plan.settings:
        rows = [
            (name, one.get("value", ""), one.get("source", "")) for name, one in sorted(plan.settings.items())
        ]
        content = page.table(("setting", "value", "from"), rows)
        yield page.folded(f"All {len(rows)} settings", content)


def _checkpoint_rows(directory: Path) -> Iterator[tuple[str, str, str, str]]:
    links = {name: (directory.parent / name).resolve() for name in ("best", "last")}
    for path in checkpoints_of(directory):
        marks = [name for name, target in links.items() if target == path.resolve()]
        if training_state.training_state_problems(path) and not training_state.is_model_only(path):
            marks.append("incomplete")
        size = f"{size_of(path) / 1e6:,.1f} MB"
        yield path.name, path.name.rpartition("-")[2], size, ", ".join(marks)


def _record(run: RunEntry, result: ResultRecord, plan: RunPlan) -> Iterator[tuple[str, str]]:
    yield "started", run.started.strftime("%Y-%m-%d %H:%M:%S")
    if plan.command:
        yield "command", shlex.join(plan.command)
    if plan.commit:
        yield "commit", plan.commit.id + (", with changes" if plan.commit.changed else "")
    for split, marks in plan.fingerprints.items():
        if marks:
            yield f"{'training' if split == 'train' else 'validation'} data", "; ".join(marks)
    versions = plan.versions or result.versions
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    if result.model_parameters:
        yield "model", str(result.model_parameters)


def next_commands(run: RunEntry) -> Iterator[str]:
    """Commands for the next steps with a run."""
    if run.resumable:
        place = shlex.quote(screen.short_path(run.directory))
        yield f"python finetune_trainer.py --config {place}/{SETTINGS} --resume {place}"
    if run.state in ("done", "stopped") and checkpoints_of(run.directory):
        best = run.directory.parent / "best"
        good = best if best.resolve().parent == run.directory.resolve() else checkpoints_of(run.directory)[0]
        yield from recorded_commands(good)
    if run.state != "running":
        yield f"python -m swift_toolkit runs repeat {shlex.quote(screen.short_path(run.directory))}"


# --- several runs -------------------------------------------------------------------------------------------


def write_comparison(directories: Sequence[Path], file: Path, best: str = "") -> None:
    """Write a page that compares runs.

    Args:
        directories: directories of at least two runs.
        file: where to write it.
        best: a sentence about the best run, shown at the top.

    Raises:
        OSError: it cannot be written.
    """
    with whole_text(file) as out:
        out.write(comparison_page(compare(directories), best))


def comparison_page(comparison: Comparison, best: str = "") -> str:
    """The comparison of runs as HTML."""
    names = comparison.names
    histories = list(zip(names, map(read_history, (run.directory for run in comparison.runs)), strict=True))
    charts = [_chart(chart, histories) for chart in CHARTS]
    body = page.table(("", *names), comparison.results, numbers=names)
    body += page.chart_grid([*charts, *_machine_charts(histories)])
    body += _table_of("Settings that differ", names, comparison.settings)
    body += _table_of("Data that differs", names, comparison.data)
    body += page.section(
        "Runs", page.item_list(f"{name}: {run.directory}" for name, run in _named(comparison))
    )
    status: tuple[TileStatus, str] | None = ("good", best) if best else None
    return page.document(f"{len(names)} runs compared", body, status=status, charts=True)


def _named(comparison: Comparison) -> Iterable[tuple[str, RunEntry]]:
    return zip(comparison.names, comparison.runs, strict=True)


def _table_of(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    content = page.table(("", *names), rows) if rows else page.paragraph("None.")
    return page.section(title, content)
