"""One training run, from the start of its processes to its result.

The processes are training.py's. What they report is shown in one live line, kept for ``result.json``, and decides how
the run ends.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from swift_toolkit.console import screen
from swift_toolkit.machine import failure, files, packages
from swift_toolkit.machine.process import Child
from swift_toolkit.problems import Problem, RequestError, RunError
from swift_toolkit.runs import directory as runs_directory
from swift_toolkit.runs.record import Interrupted, Status, TrainingResult
from swift_toolkit.training import preflight, progress, worker
from swift_toolkit.training.data_check import DataGate
from swift_toolkit.training.plan import TrainingPlan
from swift_toolkit.training.request import CheckedRequest

FAILED_FOR = 15.0
"""Seconds after which a run is ended whose process has failed and which has not ended by itself."""

ONE_PRESS = 0.5
"""Seconds within which several interrupts are one: a wrapper such as timeout(1) sends each signal twice."""


@dataclass
class Job:
    """A checked request that is about to run.

    Args:
        checked: as it was asked for.
        plan: with the run's directory among its settings; at the end, with what the whole scan of the data found.
        left_out: the bad rows that are skipped, as `dataset.copies` reports them.
        verbose: also show everything that ms-swift prints.
    """

    checked: CheckedRequest
    plan: TrainingPlan
    left_out: Mapping[str, Any]
    verbose: bool = False


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
        self.asked = -ONE_PRESS  # to stop, by the monotonic clock
        self._take_up()

    def _take_up(self) -> None:
        """Begin with what the training that goes on had reached."""
        resumption = self.job.checked.resumption
        point = resumption.point if resumption else None
        if point is None or point.state is None or point.directory is None:
            return
        self.last, self.steps = str(point.checkpoint), point.step
        self.best = str(point.directory / point.state.best) if point.state.best else None
        for logs in point.state.logs:
            self._take({"event": "log", "logs": {key: value for key, value in logs.items() if key != "step"}})

    def carry_out(self) -> TrainingResult:
        plan = self.job.plan
        echo = sys.stderr if self.job.verbose else None
        with contextlib.ExitStack() as stack:
            self.gate = self._make_gate()
            if self.gate is not None:
                stack.enter_context(self.gate)
            request = {worker.REQUEST_VARIABLE: json.dumps(self._request())}
            child = stack.enter_context(
                Child(plan.launch.command(), self.log, {**request, **plan.environment}, echo)
            )
            line = stack.enter_context(progress.TrainingLine(row_tokens=plan.row_tokens))
            if (cluster := plan.cluster).nodes > 1:
                line.note(f"waiting for the other nodes at {cluster.address}:{cluster.port}")
            self._follow(child, line)
            status = child.process.wait()
            if self.gate is not None:
                self.job.plan = replace(plan, data=self.gate.report)
                self.rows = self.gate.as_dict()
                if sentence := self.gate.last_sentence():
                    line.say(f"{sentence}.")
        return self._finish(status)

    def _make_gate(self) -> DataGate | None:
        job = self.job
        expected = functools.partial(preflight.expected_rows, job.plan.config)
        return DataGate(
            job.plan.data, job.checked.verify_arguments, expected, job.checked.request.max_lost_rows
        )

    def _request(self) -> dict[str, Any]:
        """What the training process shall do."""
        config, cluster = self.job.plan.config, self.job.plan.cluster
        return {
            "command": config.command,
            "arguments": {**config.words(), **self._balance()},
            "directory": str(self.directory),
            "peers": self._peers() if cluster.has_peers else None,
            "gate": self.gate and {"path": str(self.gate.path), "lost": str(self.gate.lost)},
        }

    def _balance(self) -> dict[str, list[str]]:
        """How the rows of a step are shared out, among the arguments so that it is alike on all nodes: rows as long as
        the longest that a micro-batch may be as large as."""
        plan = self.job.plan
        return {"balance": [f"{plan.largest_batch:.3f}"]} if plan.balances else {}

    def _peers(self) -> dict[str, Any]:
        """What every process that others started must be asked alike."""
        plan = self.job.plan
        node = f"node {plan.cluster.node} ({socket.gethostname()})"
        settings = plan.config.settings
        data = preflight.fingerprints(plan.data)
        versions = {name: version for name, version in packages.versions().items() if name in _SAME_VERSIONS}
        return {
            "own_starter": plan.cluster.started_as is not None,
            "automatic": [
                *(name for name, one in settings.items() if one.source.kind == "automatic"),
                *self._balance(),
            ],
            "same": {"node": node, "given": self.job.checked.given, "data": data, "versions": versions},
        }

    def _follow(self, child: Child, line: progress.TrainingLine) -> None:
        events = child.events()
        while True:
            try:
                for event in events:
                    if event is not None:
                        self._take(event)
                        self._show(event, line)
                    if self._is_lost() or self._took_too_long():
                        child.end(patience=0)
                        return
                return
            except KeyboardInterrupt as interrupt:
                if time.monotonic() - self.asked < ONE_PRESS:
                    events = child.events()
                    continue
                self.asked = time.monotonic()
                if self.interrupt is not None or "begin" not in self.times:
                    self.interrupt = interrupt
                    child.end(patience=0)
                    return
                self.interrupt = interrupt
                line.note("stopping after this step, then saving (Ctrl-C again ends at once)")
                os.kill(self.pid, signal.SIGTERM)
                events = child.events()

    def _took_too_long(self) -> bool:
        """Whether the run was asked to stop longer ago than ``--stop-grace`` allows."""
        grace = self.job.checked.request.stop_grace
        return self.interrupt is not None and grace is not None and time.monotonic() > self.asked + grace

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
        runs_directory.link(self.job.checked.output.root, "last", self.last)
        runs_directory.link(self.job.checked.output.root, "best", self.best)

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
        if not self.pid and (cluster := self.job.plan.cluster).nodes > 1:
            what = f"the nodes did not find each other at {cluster.address}:{cluster.port}"
        lines = [f"Training failed: {what}. The whole log: {self.log}"]
        if memory:
            advice = (f"  {line}" for line in self.job.plan.memory_advice)
            lines += ["Out of memory? In this order, try:", *advice]
        elif self.last:
            lines.append(
                f"To go on from {screen.short_path(Path(self.last))}, run the same command with --resume."
            )
        return "\n".join(lines)

    def _write(self, result: TrainingResult, reason: str) -> None:
        content = {
            **asdict(result),
            "error": reason or None,
            "versions": packages.versions(),
            **self._resolved(),
        }
        estimate = self.job.plan.verdict.estimate
        content["memory"] = {"peak": self.memory or None, "estimate": estimate and estimate.total}
        files.write_json(self.directory / "result.json", content)

    def _resolved(self) -> dict[str, Any]:
        settings = self.job.plan.config.settings
        return {
            "config": {name: setting.value for name, setting in settings.items()},
            "sources": {name: str(setting.source) for name, setting in settings.items()},
            "data": {**self.job.plan.data.as_dict(), "given": self.job.left_out},
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
        logs = self.directory_of_run / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.log = Path(shutil.move(self.log, logs / f"start-{self.job.plan.cluster.label}.log"))
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory = self.directory_of_run

    def _write(self, result: TrainingResult, reason: str) -> None:
        pass


_SAME_VERSIONS = ("swift-toolkit", "ms-swift", "torch", "transformers", "peft", "accelerate", "deepspeed")
"""What must be the same on every node."""
