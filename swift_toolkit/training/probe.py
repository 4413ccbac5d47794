"""Run one real training step with the longest rows before the run, to check whether it fits in memory.

The longest rows are written to separate files. The same run is started with them for one step and, if there is
validation data, one evaluation.
"""

from __future__ import annotations

import heapq
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from swift_toolkit.config.settings import Config, Setting, Source
from swift_toolkit.console import screen
from swift_toolkit.console.screen import gib
from swift_toolkit.dataset.copies import json_line
from swift_toolkit.dataset.rows.flaws import Flaw
from swift_toolkit.dataset.rows.messages import Row
from swift_toolkit.dataset.scan.part import find_part
from swift_toolkit.dataset.scan.rows import scan_part
from swift_toolkit.dataset.verify import DataReport, Split
from swift_toolkit.machine.files import whole_file
from swift_toolkit.problems import Problem
from swift_toolkit.training.job import Job
from swift_toolkit.training.memory import fitting
from swift_toolkit.training.monitor.follow import follow
from swift_toolkit.training.monitor.progress import TrainingLine
from swift_toolkit.training.process.launch import Cluster


def probe_problems(report: DataReport, cluster: Cluster) -> Iterator[Problem]:
    """Why a step with the longest rows of a run is not possible."""
    if report.unchecked:
        names = ", ".join(f'"{name}"' for name in report.unchecked)
        yield Problem(
            f"cannot find the longest rows of {names}, which is not on this machine",
            "Download it.",
            "--probe",
        )
    if cluster.has_peers:
        yield Problem("works on one machine only", "Try the run on one machine first.", "--probe")


def prepare_probe(config: Config, report: DataReport, folder: Path, processes: int) -> Config:
    """The settings of a run of one step with the longest rows, which are written to ``folder``.

    Args:
        config: the settings of the whole run.
        report: what was found in its data.
        folder: where the rows and the output of the step are written.
        processes: the number of training processes.
    """
    # from the second micro-batch on, gradients already exist
    steps = min(2, config.get("gradient_accumulation_steps") or 2)
    batch = config.value("per_device_train_batch_size")
    changes: dict[str, object] = {
        "gradient_accumulation_steps": steps,
        "max_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "output_dir": str(folder),
        "split_dataset_ratio": 0.0,
        "dataset_num_proc": 1,
        "dataset": [_write(report, "train", folder, batch * processes * steps, _filled(config))],
    }
    if split := _validated(config):
        rows = config.value("per_device_eval_batch_size") * processes
        changes["val_dataset"] = [_write(report, split, folder, rows, 0, "val")]
        changes |= {"eval_strategy": "steps", "eval_steps": 1}
    source = Source("automatic", "for one step")
    settings = {name: one for name, one in config.settings.items() if name not in _LEFT_OUT}
    settings |= {name: Setting(value, source, name) for name, value in changes.items()}
    return replace(config, settings=settings)


_LEFT_OUT = (
    "num_train_epochs",
    "max_epochs",
    "resume_from_checkpoint",
    "load_best_model_at_end",
    "report_to",
)


def _validated(config: Config) -> Split | None:
    """The split with the validation rows; None without validation."""
    if config.get("eval_strategy") == "no":
        return None
    if "val_dataset" in config.settings:
        return "val"
    return "train" if config.get("split_dataset_ratio") else None


def _filled(config: Config) -> int:
    """Bytes of text that fill a packed sequence; 0 without packing."""
    return 8 * int(config.get("max_length") or 0) if config.get("packing") else 0


def _write(report: DataReport, split: Split, folder: Path, rows: int, bytes_each: int, name: str = "") -> str:
    """Write the ``rows`` longest rows, repeated if there are fewer; with packing, ``bytes_each`` bytes for each."""
    sink = _Longest(rows)
    for file in report.files:
        if file.split == split:
            scan_part(find_part(Path(file.path).expanduser(), file.path, report.rules), sink)
    lines = [line for _, _, line in sorted(sink.heap, reverse=True)]
    path = folder / f"{name or split}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as out:
        written = count = 0
        while lines and (count < rows or written < rows * bytes_each):
            line = lines[count % len(lines)]
            written, count = written + len(line), count + 1
            out.write(line)
    return str(path)


class _Longest:
    """Keeps the longest of the rows that it receives."""

    wants_rows = True

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.heap: list[tuple[int, int, bytes]] = []
        self.seen = 0

    def lines(self, chunk: bytes) -> None:
        raise AssertionError("rows are read one by one")

    def row(self, value: Any, row: Row | None, flaws: list[Flaw], line: int | None, number: int) -> None:
        if row is None or any(flaw.is_error for flaw in flaws) or not isinstance(value, dict):
            return
        self.seen += 1
        text = json_line(value)
        entry = (len(text), -self.seen, text)
        if len(self.heap) < self.rows:
            heapq.heappush(self.heap, entry)
        else:
            heapq.heappushpop(self.heap, entry)


def run_probe(job: Job) -> None:
    """Run one step with the longest rows, in a directory that is kept only if the step fails.

    Args:
        job: the whole run.

    Raises:
        RunError: the step failed, usually because memory ran out.
        Interrupted: it was interrupted.
    """
    screen.say("Running one step with the longest rows.")
    directory, plan = job.directory / "probe", job.plan
    config = prepare_probe(plan.config, plan.data, directory, plan.world_size)
    one_step = replace(plan, config=config)
    ending = follow(replace(job, plan=one_step, directory=directory), TrainingLine())
    result = ending.result(one_step)
    ending.raise_if_not_done(result, ending.reason(plan, "One step with the longest rows"))
    device, memory = plan.device.memory, ending.state.memory
    verdict = fitting.word_for(memory, device)
    of = f" of {gib(device)}" if device else ""
    took = f"{gib(memory)}{of}, {screen.duration(result.seconds['training'])}"
    screen.say(f"The longest rows took {took}: {'it fits' if verdict == 'unknown' else verdict}.")
    shutil.rmtree(directory)
