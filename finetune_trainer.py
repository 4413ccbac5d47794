#!/usr/bin/env python3
"""Fine-tune a model with ms-swift, from a JSON/YAML file, flags or Python.

    python finetune_trainer.py --config configs/lora_sft.json
    python finetune_trainer.py --config configs/lora_sft.json --lora_rank 16 --dry-run
    python finetune_trainer.py --model Qwen/Qwen2.5-7B-Instruct --train_type lora --dataset data/train.jsonl

    from finetune_trainer import FineTuner
    result = FineTuner("configs/lora_sft.json", max_steps=10).run_training()
    print(result.last_checkpoint)

Everything is checked before ms-swift is started, in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from swift_toolkit import command_line, console
from swift_toolkit.problems import Problem, RequestError, RunError

if TYPE_CHECKING:
    from types import ModuleType

    from swift_toolkit.config import Config
    from swift_toolkit.data_gate import DataGate
    from swift_toolkit.dataset import DataReport
    from swift_toolkit.fitting import Verdict
    from swift_toolkit.plan import Device
    from swift_toolkit.preview import TemplateView
    from swift_toolkit.process import Child

__all__ = ["FineTuner", "Interrupted", "TrainingResult", "main", "make_parser"]

FAILED_FOR = 15.0
"""Seconds after which a run is ended whose process has failed and which has not ended by itself."""

GIB = 1 << 30

MAX_LOST_ROWS = "5%"
"""So many rows may get lost between the files and the first step, unless the user says otherwise."""

ONE_PRESS = 0.5
"""Seconds within which several interrupts are one: a wrapper such as timeout(1) sends each signal twice."""

Status = Literal["done", "stopped", "interrupted", "failed"]

DESCRIPTION = """\
Fine-tune a model with ms-swift: LoRA, QLoRA, full or multimodal.

Every training argument of the installed ms-swift is a flag or a key of the config file, under its own
name: --lora_rank 16, --learning_rate 1e-4, --dataset a.jsonl b.jsonl. Flags win over the file."""

EXAMPLES = """\
examples:
  python finetune_trainer.py --config configs/quickstart.json
  python finetune_trainer.py --config configs/lora_sft.json --dataset data/train.jsonl --dry-run
  python finetune_trainer.py --model Qwen/Qwen2.5-7B-Instruct --train_type lora --dataset data/train.jsonl

exit status: 0 done, 1 the run failed, 2 the request was wrong, 130 Ctrl-C, 143 SIGTERM"""


@dataclass(frozen=True)
class TrainingResult:
    """What a run left behind.

    Args:
        status: ``done``; ``stopped`` on request after a last checkpoint; ``interrupted`` at once; ``failed``.
        run_directory: ``<output_dir>/vN-<time>``, with ``train.log`` and ``result.json``.
        last_checkpoint: the newest checkpoint, None if there is none.
        best_checkpoint: the one with the best evaluation, None without evaluation.
        steps: optimiser steps done.
        metrics: ``final_loss``, ``best_loss`` and what ms-swift measured besides, e.g. ``eval_loss``.
        seconds: wall clock of the parts, ``startup`` and ``training``, and ``total``.
    """

    status: Status
    run_directory: Path
    last_checkpoint: Path | None
    best_checkpoint: Path | None
    steps: int
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class FineTuner:
    """One fine-tuning run: checked when it is made, started by ``run_training``.

    Args:
        config: a JSON or YAML file, a mapping of settings, or None if ``overrides`` say everything.
        skip_bad_rows: train without the rows that have errors: at most "N" of them, "P%" of all, or "" for any
            number; ``run_directory/data/rejected.jsonl`` lists them. None stops at errors.
        max_lost_rows: how many of the rows ms-swift may leave out when it turns them into tokens, e.g. because they are
            longer than ``max_length``: "N" or "P%".
        overrides: settings laid over ``config``, under ms-swift's names.

    Raises:
        RequestError: with every problem of the request.
    """

    def __init__(
        self,
        config: str | Path | Mapping[str, Any] | None = None,
        *,
        skip_bad_rows: str | None = None,
        max_lost_rows: str = MAX_LOST_ROWS,
        **overrides: Any,
    ) -> None:
        self._setup(config, overrides, "call", skip_bad_rows, max_lost_rows)

    @classmethod
    def from_command_line(
        cls,
        config: str | Mapping[str, Any] | None,
        settings: Mapping[str, Any],
        skip_bad_rows: str | None = None,
        max_lost_rows: str = MAX_LOST_ROWS,
        looking: bool = False,
    ) -> FineTuner:
        """The same, with messages that speak of flags.

        Args:
            looking: it is made to look at its data, which may be bad.
        """
        tuner = cls.__new__(cls)
        tuner._setup(config, settings, "command line", skip_bad_rows, max_lost_rows, looking)
        return tuner

    def _setup(
        self,
        config: str | Path | Mapping[str, Any] | None,
        overrides: Mapping[str, Any],
        overrides_from: Literal["command line", "call"],
        skip_bad_rows: str | None,
        max_lost_rows: str,
        looking: bool = False,
    ) -> None:
        from swift_toolkit import dataset_copy, launch, plan, preflight
        from swift_toolkit.config import read_request

        self.config: Config
        self.config, problems = read_request(config, overrides, overrides_from=overrides_from)
        problems += preflight.check(self.config)
        self.device: Device = plan.find_device()
        problems += launch.problems(self.device)
        problems += plan.problems(self.config, self.device)
        self.skip_bad_rows, self.max_lost_rows = skip_bad_rows, max_lost_rows
        numbers = {"skip_bad_rows": skip_bad_rows, "max_lost_rows": max_lost_rows}
        wrong = list(dataset_copy.number_problems(numbers, as_flags=overrides_from == "command line"))
        self.data: DataReport = preflight.check_data(self.config, whole=looking or skip_bad_rows is not None)
        problems += wrong
        if not looking and not wrong:
            problems += dataset_copy.refusal(self.data, skip_bad_rows)
            problems += preflight.count_problems(self.config, self.data)
        if problems:
            raise RequestError(problems)
        self.verify_arguments = preflight.verify_arguments(self.config)
        self.given = {
            name: setting.shown for name, setting in self.config.settings.items() if name != "output_dir"
        }
        plan.fill_automatic(self.config, self.device, self.data)
        self.output_dir = Path(
            self.config.get("output_dir") or plan.default_output_dir(self.config)
        ).expanduser()
        self._own_directory = self.config.get("add_version") is False

    # --- looking ------------------------------------------------------------------------------------------

    def verify_data(self, exact: bool = False) -> DataReport:
        """Read the data of this run from end to end, print what was found and return it.

        Args:
            exact: count the tokens of every row with the model's template, not by bytes; this imports ms-swift.
        """
        from swift_toolkit import data_report, preflight

        if not self.data.complete:
            self.data = preflight.check_data(self.config, whole=True)
        if exact:
            self._template_view().count_tokens(self.data)
        for line in (*self.data.summary(), *data_report.histogram_lines(self.data)):
            print(line)
        print(f"{self.data.verdict()}, {self.data.seconds:.1f} s")
        return self.data

    def preview_data(self, count: int) -> None:
        """Print the first ``count`` rows as the model will see them; what is learned is in colour on a terminal.

        Imports ms-swift and the model's tokenizer, no weights.
        """
        for row in self._template_view().rows(self.config.get("dataset"), count):
            print(*row.lines(colour=sys.stdout.isatty()), sep="\n")

    def _template_view(self) -> TemplateView:
        from swift_toolkit import preflight, preview

        preflight.unpack_models(self.config)
        settings = {name: setting.value for name, setting in self.config.settings.items()}
        return preview.TemplateView(settings["model"], self.data.rules, settings)

    def describe(self) -> dict[str, Any]:
        """What a run would do, as plain data: exact arguments, their sources, notices, data, memory, launch."""
        from swift_toolkit import launch, plan, runs

        self._write_to(runs.next_run_directory(self.output_dir))
        settings = self.config.settings
        return {
            "preset": self.config.preset,
            "ms_swift": self.config.install.version,
            "arguments": {name: setting.value for name, setting in settings.items()},
            "sources": {name: str(setting.source) for name, setting in settings.items()},
            "notices": self.config.notices,
            "data": self.data.as_dict(),
            "memory": self.judge_memory().as_dict(),
            "launch": {
                "device": str(self.device),
                "processes": launch.processes(self.config, self.device),
                "nodes": launch.nodes().count,
                "command": launch.command(self.config, self.device),
                "environment": self.environment(),
                "effective_batch_size": plan.effective_batch_size(self.config, self.device),
                "steps": plan.step_count(self.config, self._rows(), self.device),
            },
            "suggestions": plan.suggestions(self.config, self.device, self.data),
        }

    def print_plan(self, file: IO[str] | None = None) -> None:
        """Show what a run would do: the facts, then every setting with its source. To stderr by default."""
        from swift_toolkit import launch, plan

        config, device = self.config, self.device
        batch = config.get("per_device_train_batch_size", 1)
        world, accumulation = launch.world_size(config, device), plan.accumulation(config, device)
        effective = plan.effective_batch_size(config, device)
        steps = plan.step_count(config, self._rows(), device)
        facts = [
            ("model", config.settings["model"].shown),
            ("data", self.data.headline()),
            ("preset", plan.preset_phrase(config)),
            ("device", str(device)),
            ("launch", launch.phrase(config, device)),
            ("batch", f"{effective} = {batch} a device × {accumulation} accumulated × {world} process(es)"),
            ("steps", str(steps or "not known before the data is read")),
            ("tokens", plan.tokens_phrase(config, device, steps, self.data)),
            *self.judge_memory().lines(),
            *(("suggestion", line) for line in plan.suggestions(config, device, self.data)),
            ("output", str(self.output_dir)),
        ]
        console.print_facts(facts, file)
        rows = [(name, one.shown, str(one.source)) for name, one in sorted(config.settings.items())]
        console.print_table(("setting", "value", "from"), rows, file)

    def environment(self) -> dict[str, str]:
        """The variables that training processes get besides those of this process."""
        from swift_toolkit import launch, plan

        return {**plan.environment(self.device), **launch.environment(self.config, self.device)}

    def judge_memory(self) -> Verdict:
        """Whether the run fits the memory of its devices, by an estimate, and the smallest change that would."""
        from swift_toolkit import plan

        return plan.judge(self.config, self.device, self.data)

    def _rows(self) -> int | None:
        from swift_toolkit import preflight

        return preflight.expected_rows(self.config, self.data)["train"]

    # --- training -----------------------------------------------------------------------------------------

    def run_training(self, verbose: bool = False, probe: bool = False) -> TrainingResult:
        """Train, and show the plan, one live line and the result on stderr.

        Ctrl-C (KeyboardInterrupt) lets the step in hand end and saves a checkpoint; a second one ends at once.

        Args:
            verbose: also show all that ms-swift prints.
            probe: first try one step, and one evaluation, with the longest rows.

        Raises:
            RequestError: the longest rows cannot be known.
            RunError: the run failed; ``train.log`` and ``result.json`` in its directory say more.
            KeyboardInterrupt: it was interrupted; what was saved is usable.
        """
        from swift_toolkit import dataset_copy, launch, preflight, runs
        from swift_toolkit import probe as probing

        if probe and (found := list(probing.problems(self.data))):
            raise RequestError(found)
        preflight.unpack_models(self.config)
        first = launch.is_first()
        directory = self._claim(runs) if first else Path(tempfile.mkdtemp(prefix="swift-toolkit-"))
        self._write_to(directory)
        given = dataset_copy.prepare(self.data, directory / "data", self.skip_bad_rows)
        if given.rejected is not None:
            count = given.left_out.total()
            rows = "1 bad row is" if count == 1 else f"{count:,} bad rows are"
            console.say(f"{rows} left out, listed with reasons in {given.rejected}")
        self.left_out = given.as_dict()
        self.config.replace("dataset", given.train)
        self.config.replace("val_dataset", given.val)
        if first:
            self.print_plan()
            if probe:
                _Probe(self, directory / "probe", verbose).carry_out()
            return _Run(self, directory, verbose).carry_out()
        console.say(f"{launch.phrase(self.config, self.device)}. The run is shown on the first.")
        return _RunElsewhere(self, directory, verbose).carry_out()

    def _claim(self, runs: ModuleType) -> Path:
        try:
            if self._own_directory:
                self.output_dir.mkdir(parents=True, exist_ok=True)
                directory = self.output_dir
            else:
                directory = runs.claim_run_directory(self.output_dir)
        except OSError as error:
            raise RunError(
                f"{self.output_dir}: the run directory cannot be made ({error.strerror})."
            ) from None
        return directory

    def _write_to(self, directory: Path) -> None:
        from swift_toolkit.config import Setting, Source

        given = self.config.settings.get("output_dir")
        source = given.source if given else Source("automatic", "named after the model")
        self.config.settings["output_dir"] = Setting(str(directory.absolute()), source, "output_dir")
        reason = Source("automatic", "the run has a directory of its own already")
        self.config.settings.setdefault("add_version", Setting(False, reason, "add_version"))


class _Run:
    """One training process from its start to its result."""

    def __init__(self, tuner: FineTuner, directory: Path, verbose: bool) -> None:
        self.tuner, self.directory, self.verbose = tuner, directory, verbose
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
        from swift_toolkit import launch, plan, training
        from swift_toolkit.process import Child

        config, device = self.tuner.config, self.tuner.device
        command = launch.command(config, device)
        echo = sys.stderr if self.verbose else None
        with contextlib.ExitStack() as stack:
            self.gate = self._make_gate()
            if self.gate is not None:
                stack.enter_context(self.gate)
            request = {training.REQUEST_VARIABLE: json.dumps(self._request())}
            child = stack.enter_context(
                Child(command, self.log, {**request, **self.tuner.environment()}, echo)
            )
            tokens = plan.row_tokens(self.tuner.data)
            line = stack.enter_context(console.TrainingLine(row_tokens=tokens))
            if (nodes := launch.nodes()).count > 1:
                line.note(f"waiting for the other nodes at {nodes.address}:{nodes.port}")
            self._follow(child, line)
            status = child.process.wait()
            if self.gate is not None:
                self.tuner.data, self.rows = self.gate.report, self.gate.as_dict()
                if sentence := self.gate.last_sentence():
                    line.say(f"{sentence}.")
        return self._finish(status)

    def _make_gate(self) -> DataGate | None:
        from swift_toolkit import preflight
        from swift_toolkit.data_gate import DataGate

        tuner = self.tuner
        expected = functools.partial(preflight.expected_rows, tuner.config)
        return DataGate(tuner.data, tuner.verify_arguments, expected, tuner.max_lost_rows)

    def _request(self) -> dict[str, Any]:
        """What the training process shall do."""
        from swift_toolkit import launch

        config = self.tuner.config
        return {
            "command": config.command,
            "arguments": config.words(),
            "directory": str(self.directory),
            "peers": self._peers() if launch.takes_part() or launch.nodes().count > 1 else None,
            "gate": self.gate and {"path": str(self.gate.path), "lost": str(self.gate.lost)},
        }

    def _peers(self) -> dict[str, Any]:
        """What every process that others started must be asked alike."""
        import socket

        from swift_toolkit import launch, preflight

        node = f"node {launch.nodes().rank} ({socket.gethostname()})"
        settings = self.tuner.config.settings
        data = preflight.fingerprints(self.tuner.data)
        versions = {name: version for name, version in _versions().items() if name in _SAME_VERSIONS}
        return {
            "own_starter": launch.takes_part(),
            "automatic": [name for name, one in settings.items() if one.source.kind == "automatic"],
            "same": {"node": node, "given": self.tuner.given, "data": data, "versions": versions},
        }

    def _follow(self, child: Child, line: console.TrainingLine) -> None:
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

    def _show(self, event: dict[str, Any], line: console.TrainingLine) -> None:
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
        from swift_toolkit import runs

        runs.link(self.tuner.output_dir, "last", self.last)
        runs.link(self.tuner.output_dir, "best", self.best)

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
        from swift_toolkit import failure, launch, plan

        if self.differences:
            return "\n".join(self.differences)
        if self.refused:
            return "\n".join(map(str, self.refused))
        what, memory = failure.reason(self.errors, exit_status, self.log)
        if not self.pid and (nodes := launch.nodes()).count > 1:
            what = f"the nodes did not find each other at {nodes.address}:{nodes.port}"
        lines = [f"Training failed: {what}. The whole log: {self.log}"]
        if memory:
            advice = plan.memory_advice(self.tuner.config, self.tuner.device, self.tuner.data)
            lines += ["Out of memory? In this order, try:", *(f"  {line}" for line in advice)]
        elif self.last:
            lines.append(
                f"To go on from the last checkpoint, add: --resume_from_checkpoint {_short(Path(self.last))}"
            )
        return "\n".join(lines)

    def _write(self, result: TrainingResult, reason: str) -> None:
        from swift_toolkit import runs

        content = {**asdict(result), "error": reason or None, "versions": _versions(), **self._resolved()}
        estimate = self.tuner.judge_memory().estimate
        content["memory"] = {"peak": self.memory or None, "estimate": estimate and estimate.total}
        runs.write_json(self.directory / "result.json", content)

    def _resolved(self) -> dict[str, Any]:
        settings = self.tuner.config.settings
        return {
            "config": {name: setting.value for name, setting in settings.items()},
            "sources": {name: str(setting.source) for name, setting in settings.items()},
            "data": {**self.tuner.data.as_dict(), "given": self.tuner.left_out},
            "model_parameters": self.outcome.get("model_parameter_info"),
            "rows": self.rows,
            "tokens_per_row": {name: self.outcome.get(f"{name}_dataset") for name in ("train", "val")},
        }


class _Probe(_Run):
    """One step with the longest rows, in a directory that stays only if it fails."""

    def __init__(self, tuner: FineTuner, directory: Path, verbose: bool) -> None:
        import copy

        from swift_toolkit import launch, probe

        self.whole = tuner
        world = launch.world_size(tuner.config, tuner.device)
        alone = copy.copy(tuner)
        alone.config = probe.prepare(tuner.config, tuner.data, directory, world)
        super().__init__(alone, directory, verbose)

    def carry_out(self) -> TrainingResult:
        import shutil

        from swift_toolkit import fitting

        console.say("Trying one step with the longest rows.")
        result = super().carry_out()
        device = self.tuner.device.memory
        word, room = fitting.word_for(self.memory, device), f" of {device / GIB:.1f}" if device else ""
        took = f"{self.memory / GIB:.1f}{room} GiB, {console.duration(result.seconds['training'])}"
        console.say(f"The longest rows took {took}: {'it fits' if word == 'unknown' else word}.")
        shutil.rmtree(self.directory)
        return result

    def _make_gate(self) -> None:
        """The run that follows looks at all of the data."""

    def _reason(self, exit_status: int) -> str:
        self.tuner = self.whole  # whose numbers the advice is given in
        return super()._reason(exit_status).replace("Training", "One step with the longest rows", 1)


class _RunElsewhere(_Run):
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

    def _show(self, event: dict[str, Any], line: console.TrainingLine) -> None:
        if event["event"] == "agreed":
            line.note(f"taking part in {self.directory_of_run}")

    def _link(self) -> None:
        pass

    def _finish(self, exit_status: int) -> TrainingResult:
        self._keep_log()
        return super()._finish(exit_status)

    def _keep_log(self) -> None:
        """Put the log of the start beside those of the ranks, which are in the run's directory already."""
        import shutil

        from swift_toolkit import launch

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


class Interrupted(KeyboardInterrupt):
    """A run ended by Ctrl-C or SIGTERM.

    Args:
        result: what it left behind.
        cause: the interrupt that ended it.
    """

    def __init__(self, result: TrainingResult, cause: KeyboardInterrupt) -> None:
        super().__init__()
        self.result, self.cause = result, cause


_SAME_VERSIONS = ("swift-toolkit", "ms-swift", "torch", "transformers", "peft", "accelerate", "deepspeed")
"""What must be the same on every node."""


def _versions() -> dict[str, str]:
    import platform
    from importlib import metadata

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


# --- command line -------------------------------------------------------------------------------------------


def make_parser() -> command_line.Parser:
    """The flags of this script; every other ``--name value`` is a setting."""
    parser = command_line.Parser(
        prog="finetune_trainer.py",
        usage="%(prog)s [--config FILE] [--name value ...] [--dry-run] [--verify-data] [--json]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_sources("swift sft")
    parser.add_argument(
        "--upgrade", metavar="FILE", help="write the settings there in today's names, and stop"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, show the plan, start nothing"
    )
    parser.add_argument(
        "--preview", metavar="N", type=int, help="show N rows as the model will see them, and stop"
    )
    parser.add_argument(
        "--report", metavar="FILE", help="with --verify-data: also write what was found as HTML"
    )
    parser.add_argument(
        "--exact", action="store_true", help="with --verify-data: count tokens with the model's tokenizer"
    )
    parser.add_argument(
        "--convert", metavar="FILE", help="write the training data as messages JSONL, and stop"
    )
    parser.add_argument(
        "--skip-bad-rows",
        metavar="N|P%",
        nargs="?",
        const="",
        help="train without the rows that have errors, at most N of them or P percent",
    )
    parser.add_argument(
        "--max-lost-rows",
        metavar="N|P%",
        default=MAX_LOST_ROWS,
        help="stop before the first step if ms-swift uses fewer rows by more than this, e.g. because "
        "they are longer than max_length (default: 5%%)",
    )
    parser.add_argument(
        "--verify-data", action="store_true", help="read all data, say what is wrong, and stop"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on stdout, everything else on stderr"
    )
    launching = parser.add_argument_group("several devices and machines", "(or the environment, in capitals)")
    launching.add_argument(
        "--nproc-per-node", metavar="N", help="processes on this machine; else one a device"
    )
    launching.add_argument("--nnodes", metavar="N", help="machines that take part")
    launching.add_argument("--node-rank", metavar="R", help="which of them this is, from 0")
    launching.add_argument("--master-addr", metavar="HOST", help="the first of them, as all can reach it")
    launching.add_argument("--master-port", metavar="PORT", help="a free port there; else 29500")
    parser.add_argument(
        "--probe", action="store_true", help="first try one real step with the longest rows: does it fit?"
    )
    parser.add_argument("--verbose", action="store_true", help="also show all that ms-swift prints")
    parser.add_argument(
        "--quiet-notices", action="store_true", help="do not say which old names were translated"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks (also SWIFT_DEBUG=1)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        return command_line.run(_command, argv)
    with (  # under torchrun, the first process of a node speaks for all
        Path(os.devnull).open("w") as silence,
        contextlib.redirect_stdout(silence),
        contextlib.redirect_stderr(silence),
    ):
        return command_line.run(_command, argv)


def _command(words: list[str]) -> int:
    from swift_toolkit import launch

    options, settings = make_parser().parse(words)
    for name in launch.FLAGS:
        if (value := getattr(options, name)) is not None:
            os.environ[name.upper()] = value
    source, settings = command_line.request(options, settings, ("sft", "pt", "rlhf"))
    if not source and not settings:
        make_parser().print_help(sys.stderr)
        return 2
    if options.upgrade:
        return _upgrade(source, settings, options)
    if problems := list(_flag_problems(options)):
        raise RequestError(problems)
    looking = options.verify_data or options.convert is not None
    tuner = FineTuner.from_command_line(
        source, settings, options.skip_bad_rows, options.max_lost_rows, looking
    )
    if not options.quiet_notices:
        for notice in tuner.config.notices:
            console.say(notice)
    if options.preview is not None:
        tuner.preview_data(options.preview)
        return 0
    if options.convert is not None:
        return _convert(tuner, options.convert)
    if options.verify_data:
        return _verify(tuner, options)
    if options.dry_run:
        if options.json:
            print(json.dumps(tuner.describe(), ensure_ascii=False, default=str))
        else:
            tuner.print_plan(sys.stdout)
        return 0
    try:
        result = tuner.run_training(options.verbose, options.probe)
    except Interrupted as interrupted:
        if launch.is_first():
            _say_how_to_go_on(interrupted.result, words)
        raise interrupted.cause from None
    if launch.is_first():
        _print_result(result, options.json)
    return 0


def _flag_problems(options: argparse.Namespace) -> Iterator[Problem]:
    """Flags that say where to write what cannot be written there, or that need another flag."""
    for name in ("report", "convert"):
        if (target := getattr(options, name)) is None:
            continue
        if Path(target).is_dir():
            yield Problem(f'names "{target}", which is a directory', "Name a file.", key=f"--{name}")
        elif not Path(target).parent.is_dir():
            what = f'names "{target}", whose directory does not exist'
            yield Problem(what, "Make it first, or name another.", key=f"--{name}")
    for name in ("report", "exact"):
        if getattr(options, name) and not options.verify_data:
            yield Problem("goes with --verify-data", "Add that, or leave it out.", key=f"--{name}")
    if options.preview is not None and options.preview < 1:
        yield Problem(f"is {options.preview}; it must be at least 1", key="--preview")


def _upgrade(
    source: str | Mapping[str, Any] | None, settings: dict[str, Any], options: argparse.Namespace
) -> int:
    from swift_toolkit.upgrade import upgrade

    if not isinstance(source, str):
        source, settings = {**(source or {}), **settings}, {}
    if settings:
        names = ", ".join(f'"--{name}"' for name in settings)
        raise RequestError([Problem(f"--upgrade with a file takes no settings: {names}", "Remove them.")])
    for notice in upgrade(source, options.upgrade):
        if not options.quiet_notices:
            console.say(notice)
    print(options.upgrade)
    return 0


def _convert(tuner: FineTuner, target: str) -> int:
    from swift_toolkit.dataset_copy import convert

    if any(Path(target).absolute() == Path(file.path).expanduser().absolute() for file in tuner.data.files):
        raise RequestError([Problem("names a file that is read", "Name another.", key="--convert")])
    console.say(f"{convert(tuner.data, Path(target)):,} rows written")
    print(target)
    return 0


def _verify(tuner: FineTuner, options: argparse.Namespace) -> int:
    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        report = tuner.verify_data(options.exact)
    if options.report:
        from swift_toolkit.data_report import write_report

        write_report(report, Path(options.report))
    if options.json:
        print(json.dumps(report.as_dict(), ensure_ascii=False, default=str))
    return 0 if report.ok else 2


def _print_result(result: TrainingResult, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(result), ensure_ascii=False, default=str))
        return
    metrics = result.metrics
    loss = (
        f", loss {metrics['final_loss']:.4f} (best {metrics['best_loss']:.4f})"
        if "final_loss" in metrics
        else ""
    )
    print(f"Trained {result.steps} steps in {console.duration(result.seconds['training'])}{loss}.")
    if result.last_checkpoint is None:
        print("No checkpoint was saved.")
        return
    shown = result.best_checkpoint or result.last_checkpoint
    print(f"{'Best' if result.best_checkpoint else 'Last'} checkpoint: {_short(shown)}")
    print("Next:")
    print(f"  python inference_test.py --checkpoint {shlex.quote(_short(shown))}")
    print(f"  python deploy_model.py --checkpoint {shlex.quote(_short(shown))}")


def _say_how_to_go_on(result: TrainingResult, words: list[str]) -> None:
    console.say(f"Interrupted at step {result.steps}.")
    if result.last_checkpoint is None:
        console.say("No checkpoint was saved yet.")
        return
    kept = " ".join(shlex.quote(word) for word in words if not word.startswith("--resume"))
    console.say(f"Last checkpoint: {_short(result.last_checkpoint)}. To go on from it:")
    checkpoint = shlex.quote(_short(result.last_checkpoint))
    console.say(f"  python finetune_trainer.py {kept} --resume_from_checkpoint {checkpoint}")


def _short(path: Path) -> str:
    """``path`` as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
