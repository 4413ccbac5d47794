"""One training run, from the start of its processes to its result.

The processes are training.py's. What they report is shown in one live line, kept for ``result.json``, and decides how
the run ends.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from swift_toolkit.config.settings import Config
from swift_toolkit.console import screen
from swift_toolkit.dataset.verify import DataReport
from swift_toolkit.machine import device as machine_device
from swift_toolkit.machine import failure, files
from swift_toolkit.machine.device import Device
from swift_toolkit.machine.process import Child
from swift_toolkit.problems import Problem, RequestError, RunError
from swift_toolkit.runs import directory as runs_directory
from swift_toolkit.runs.record import Status, TrainingResult
from swift_toolkit.training import batch, launch, plan, preflight, progress, worker
from swift_toolkit.training.data_check import DataGate

FAILED_FOR = 15.0
"""Seconds after which a run is ended whose process has failed and which has not ended by itself."""

ONE_PRESS = 0.5
"""Seconds within which several interrupts are one: a wrapper such as timeout(1) sends each signal twice."""


class Interrupted(KeyboardInterrupt):
    """A run ended by Ctrl-C or SIGTERM.

    Args:
        result: what it left behind.
        cause: the interrupt that ended it.
    """

    def __init__(self, result: TrainingResult, cause: KeyboardInterrupt) -> None:
        super().__init__()
        self.result, self.cause = result, cause


@dataclass
class Job:
    """A checked request that is about to run.

    Args:
        config: every setting, the automatic ones and the run's directory too.
        device: what it computes on.
        data: what was found in the data; at the end, what the whole scan found.
        output_dir: where ``last`` and ``best`` are linked.
        given: the settings that the user gave, in words: what all nodes must be given alike.
        verify_arguments: of `dataset.verify`, to look at all of the data.
        max_lost_rows: how many rows ms-swift may leave out: "N" or "P%".
        left_out: the bad rows that are left out, as `dataset_copy` tells them.
        verbose: also show all that ms-swift prints.
    """

    config: Config
    device: Device
    data: DataReport
    output_dir: Path
    given: Mapping[str, str]
    verify_arguments: Mapping[str, Any]
    max_lost_rows: str
    left_out: Mapping[str, Any]
    verbose: bool = False


def environment(config: Config, device: Device) -> dict[str, str]:
    """The variables that training processes get besides those of this process."""
    return {**machine_device.environment(device), **launch.environment(config, device)}


class Run:
    """One training process from its start to its result."""

    def __init__(self, job: Job, directory: Path) -> None:
        self.job, self.directory = job, directory
        self.log = directory / "train.log"
        self.started = time.time()
        self.times: dict[str, float] = {}
        self.last: str | None = None
        self.best: str | None = None
        self.steps = 0
        self.memory = 0
        self.pid = 0  # of the process that reports: a launcher would pass a signal on to its data loaders too
        self.losses: list[float] = []
        self.eval_losses: list[float] = []
        self.metrics: dict[str, float] = {}
        self.outcome: dict[str, Any] = {}
        self.errors: list[dict[str, Any]] = []
        self.failed = 0.0
        self.differences: list[str] = []
        self.gate: DataGate | None = None
        self.refused: list[Problem] = []
        self.rows: dict[str, Any] = {}
        self.interrupt: KeyboardInterrupt | None = None

    def carry_out(self) -> TrainingResult:
        config, device = self.job.config, self.job.device
        command = launch.command(config, device)
        echo = sys.stderr if self.job.verbose else None
        with contextlib.ExitStack() as stack:
            self.gate = self._make_gate()
            if self.gate is not None:
                stack.enter_context(self.gate)
            request = {worker.REQUEST_VARIABLE: json.dumps(self._request())}
            child = stack.enter_context(
                Child(command, self.log, {**request, **environment(config, device)}, echo)
            )
            tokens = batch.row_tokens(self.job.data)
            line = stack.enter_context(progress.TrainingLine(row_tokens=tokens))
            if (nodes := launch.nodes()).count > 1:
                line.note(f"waiting for the other nodes at {nodes.address}:{nodes.port}")
            self._follow(child, line)
            status = child.process.wait()
            if self.gate is not None:
                self.job.data, self.rows = self.gate.report, self.gate.as_dict()
                if sentence := self.gate.last_sentence():
                    line.say(f"{sentence}.")
        return self._finish(status)

    def _make_gate(self) -> DataGate | None:
        job = self.job
        expected = functools.partial(preflight.expected_rows, job.config)
        return DataGate(job.data, job.verify_arguments, expected, job.max_lost_rows)

    def _request(self) -> dict[str, Any]:
        """What the training process shall do."""
        config = self.job.config
        return {
            "command": config.command,
            "arguments": config.words(),
            "directory": str(self.directory),
            "peers": self._peers() if launch.takes_part() or launch.nodes().count > 1 else None,
            "gate": self.gate and {"path": str(self.gate.path), "lost": str(self.gate.lost)},
        }

    def _peers(self) -> dict[str, Any]:
        """What every process that others started must be asked alike."""
        node = f"node {launch.nodes().rank} ({socket.gethostname()})"
        settings = self.job.config.settings
        data = preflight.fingerprints(self.job.data)
        versions = {name: version for name, version in _versions().items() if name in _SAME_VERSIONS}
        return {
            "own_starter": launch.takes_part(),
            "automatic": [name for name, one in settings.items() if one.source.kind == "automatic"],
            "same": {"node": node, "given": self.job.given, "data": data, "versions": versions},
        }

    def _follow(self, child: Child, line: progress.TrainingLine) -> None:
        events, asked = child.events(), -ONE_PRESS
        while True:
            try:
                for event in events:
                    if event is not None:
                        self._take(event)
                        self._show(event, line)
                    if self._is_lost():
                        child.end(patience=0)
                        return
                return
            except KeyboardInterrupt as interrupt:
                if time.monotonic() - asked < ONE_PRESS:
                    events = child.events()
                    continue
                asked = time.monotonic()
                if self.interrupt is not None or "begin" not in self.times:
                    self.interrupt = interrupt
                    child.end(patience=0)
                    return
                self.interrupt = interrupt
                line.note("stopping after this step, then saving (Ctrl-C again ends at once)")
                os.kill(self.pid, signal.SIGTERM)
                events = child.events()

    def _is_lost(self) -> bool:
        """Nothing good can come of the run: the data are not fit for it, or a process failed and others wait for it."""
        if self.gate is not None:
            self.refused = self.gate.problems()
        return bool(self.refused or (self.errors and time.monotonic() > self.failed + FAILED_FOR))

    def _show(self, event: dict[str, Any], line: progress.TrainingLine) -> None:
        line.show(event)
        if event["event"] == "rows" and self.gate is not None and (sentence := self.gate.sentence()):
            line.say(f"{sentence}.")

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        self.steps = event.get("step", self.steps)
        self.memory = max(self.memory, event.get("memory", 0))
        self.pid = event.get("pid", self.pid)
        if "time" in event:
            self.times[kind] = event["time"]
        if kind == "log":
            self.metrics.update(event["logs"])
            self.losses += [event["logs"]["loss"]] if "loss" in event["logs"] else []
            self.eval_losses += [event["logs"]["eval_loss"]] if "eval_loss" in event["logs"] else []
        elif kind == "save":
            self.last, self.best = event["checkpoint"], event["best"] or self.best
            self._link()
        elif kind == "result":
            self.outcome = event
            self.best = event["best_model_checkpoint"] or self.best
            self._link()
        elif kind == "error":
            self.failed = self.failed if self.errors else time.monotonic()
            self.errors.append(event)
        elif kind == "refused":
            self.differences = event["differences"]
        elif kind == "rows" and self.gate is not None:
            self.gate.count(event["loaded"], event["used"])
        elif kind == "waiting" and self.gate is not None and not self.gate.counted:
            self.gate.count({}, {})  # the rows came another way, such as tokenised before

    def _link(self) -> None:
        runs_directory.link(self.job.output_dir, "last", self.last)
        runs_directory.link(self.job.output_dir, "best", self.best)

    def _finish(self, exit_status: int) -> TrainingResult:
        result = self._result(exit_status)
        reason = self._reason(exit_status) if result.status == "failed" else ""
        self._write(result, reason)
        if self.differences:
            raise RequestError([Problem(line.removesuffix(".")) for line in self.differences])
        if self.refused:
            raise RequestError(self.refused)
        if result.status == "failed":
            raise RunError(reason)
        if self.interrupt is not None:
            raise Interrupted(result, self.interrupt) from None
        return result

    def _result(self, exit_status: int) -> TrainingResult:
        now = time.time()
        begin, end = self.times.get("begin"), self.times.get("end", now)
        seconds = {"startup": (begin or now) - self.started, "total": now - self.started}
        seconds["training"] = end - begin if begin else 0.0
        if self.outcome:
            status: Status = "stopped" if self.outcome["stopped"] else "done"
        else:
            status = "interrupted" if self.interrupt is not None else "failed"
        metrics = {key: value for key, value in self.metrics.items() if key not in ("loss", "epoch")}
        if self.losses:
            metrics |= {"final_loss": self.losses[-1], "best_loss": min(self.eval_losses or self.losses)}
        last, best = (Path(found) if found else None for found in (self.last, self.best))
        rounded = {key: round(value, 2) for key, value in seconds.items()}
        return TrainingResult(status, self.directory, last, best, self.steps, metrics, rounded)

    def _reason(self, exit_status: int) -> str:
        if self.differences:
            return "\n".join(self.differences)
        if self.refused:
            return "\n".join(map(str, self.refused))
        what, memory = failure.reason(self.errors, exit_status, self.log)
        if not self.pid and (nodes := launch.nodes()).count > 1:
            what = f"the nodes did not find each other at {nodes.address}:{nodes.port}"
        lines = [f"Training failed: {what}. The whole log: {self.log}"]
        if memory:
            advice = plan.memory_advice(self.job.config, self.job.device, self.job.data)
            lines += ["Out of memory? In this order, try:", *(f"  {line}" for line in advice)]
        elif self.last:
            last = screen.short_path(Path(self.last))
            lines.append(f"To go on from the last checkpoint, add: --resume_from_checkpoint {last}")
        return "\n".join(lines)

    def _write(self, result: TrainingResult, reason: str) -> None:
        content = {**asdict(result), "error": reason or None, "versions": _versions(), **self._resolved()}
        estimate = plan.judge(self.job.config, self.job.device, self.job.data).estimate
        content["memory"] = {"peak": self.memory or None, "estimate": estimate and estimate.total}
        files.write_json(self.directory / "result.json", content)

    def _resolved(self) -> dict[str, Any]:
        settings = self.job.config.settings
        return {
            "config": {name: setting.value for name, setting in settings.items()},
            "sources": {name: str(setting.source) for name, setting in settings.items()},
            "data": {**self.job.data.as_dict(), "given": self.job.left_out},
            "model_parameters": self.outcome.get("model_parameter_info"),
            "rows": self.rows,
            "tokens_per_row": {name: self.outcome.get(f"{name}_dataset") for name in ("train", "val")},
        }


class RunElsewhere(Run):
    """The part of a run that is shown, and written down, by the process that has rank 0.

    Its own directory is for the log of the start and for copies of data; it is gone at the end.
    """

    directory_of_run: Path | None = None

    def _make_gate(self) -> None:
        """The process that has rank 0 looks at the data; all wait for that one."""

    def _take(self, event: dict[str, Any]) -> None:
        super()._take(event)
        if event["event"] == "agreed":
            self.directory_of_run = Path(event["directory"])

    def _show(self, event: dict[str, Any], line: progress.TrainingLine) -> None:
        if event["event"] == "agreed":
            line.note(f"taking part in {self.directory_of_run}")

    def _link(self) -> None:
        pass

    def _finish(self, exit_status: int) -> TrainingResult:
        self._keep_log()
        return super()._finish(exit_status)

    def _keep_log(self) -> None:
        """Put the log of the start beside those of the ranks, which are in the run's directory already."""
        if self.directory_of_run is None:
            return
        name = f"rank{os.environ['RANK']}" if launch.takes_part() else f"node{launch.nodes().rank}"
        logs = self.directory_of_run / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.log = Path(shutil.move(self.log, logs / f"start-{name}.log"))
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory = self.directory_of_run

    def _write(self, result: TrainingResult, reason: str) -> None:
        pass


_SAME_VERSIONS = ("swift-toolkit", "ms-swift", "torch", "transformers", "peft", "accelerate", "deepspeed")
"""What must be the same on every node."""


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in (
        "swift-toolkit",
        "ms-swift",
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "datasets",
        "deepspeed",
    ):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
