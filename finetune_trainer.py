#!/usr/bin/env python3
"""Fine-tune a model with ms-swift, from a JSON/YAML file, flags or Python.

    python finetune_trainer.py --config configs/lora_sft.json
    python finetune_trainer.py --config configs/lora_sft.json --lora_rank 16 --dry-run
    python finetune_trainer.py --model Qwen/Qwen2.5-7B-Instruct --train_type lora --dataset data/train.jsonl

    from finetune_trainer import FineTuner
    result = FineTuner("configs/lora_sft.json", max_steps=10).run_training()
    print(result.last_checkpoint)

Everything is checked before ms-swift is started in a separate process.
"""

from __future__ import annotations

from swift_toolkit.machine import interrupt

if __name__ == "__main__":
    interrupt.quit_on_ctrl_c()  # until the imports are done

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from swift_toolkit.console import command_line, screen
from swift_toolkit.problems import Problem, RequestError, RunError
from swift_toolkit.runs.record import Interrupted, TrainingResult

if TYPE_CHECKING:
    from swift_toolkit.config.settings import Config
    from swift_toolkit.dataset.preview import TemplateView
    from swift_toolkit.dataset.verify import DataReport
    from swift_toolkit.machine.device import Device
    from swift_toolkit.training import sweep
    from swift_toolkit.training.memory.fitting import Verdict
    from swift_toolkit.training.plan import TrainingPlan
    from swift_toolkit.training.request import TrainingRequest

__all__ = ["FineTuner", "Interrupted", "TrainingResult", "main", "make_parser"]

_DESCRIPTION = """\
Fine-tune a model with ms-swift: LoRA, QLoRA, full or multimodal.

Every training argument of the installed ms-swift is a flag or a key of the config file, under the same
name: --lora_rank 16, --learning_rate 1e-4, --dataset a.jsonl b.jsonl. Flags win over the file."""

_EXAMPLES = """\
examples:
  python finetune_trainer.py --config configs/quickstart.json
  python finetune_trainer.py --config configs/lora_sft.json --dataset data/train.jsonl --dry-run
  python finetune_trainer.py --model Qwen/Qwen2.5-7B-Instruct --train_type lora --dataset data/train.jsonl

exit status: 0 done, 1 the run failed, 2 the request was wrong, 130 Ctrl-C, 143 SIGTERM"""


class FineTuner:
    """One fine-tuning run: checked when it is created, started by ``run_training``.

    Args:
        config: a JSON or YAML file, a mapping of settings, or None if ``overrides`` hold everything.
        skip_bad_rows: train without the rows that have errors: at most "N" of them, "P%" of all, or "" for any
            number; ``run_directory/data/rejected.jsonl`` lists them. None stops at errors.
        max_lost_rows: how many rows ms-swift may drop when it tokenises them, e.g. because they are
            longer than ``max_length``: "N" or "P%"; 5% if None.
        trust_code: run Python code in the model or a checkpoint.
        nproc_per_node: processes on this machine; None starts one for each device.
        nnodes: number of machines; None means one.
        node_rank: number of this machine, counted from 0.
        master_addr: host name or address of the first machine.
        master_port: a free port there; None means 29500.
        resume: resume from the newest complete checkpoint of this config's newest run, or of the run, checkpoint or
            output directory named here; with True, a run that has none starts from the beginning.
        force: resume although settings changed that affect what is learned.
        keep_going: only warn if the loss is not finite, nothing is learned or the run stalls; by default the run fails.
        stop_grace: how long the step and its checkpoint may take after Ctrl-C or SIGTERM, in seconds; without a limit
            if None.
        overrides: settings that override ``config``, under ms-swift's names.

    Values that are None are read from the environment (NPROC_PER_NODE, NNODES, ...).

    Raises:
        RequestError: with every problem of the request.
    """

    def __init__(
        self,
        config: str | Path | Mapping[str, object] | TrainingRequest | None = None,
        *,
        skip_bad_rows: str | None = None,
        max_lost_rows: str | None = None,
        trust_code: bool = False,
        nproc_per_node: int | None = None,
        nnodes: int | None = None,
        node_rank: int | None = None,
        master_addr: str | None = None,
        master_port: int | None = None,
        resume: bool | str | Path = False,
        force: bool = False,
        keep_going: bool = False,
        stop_grace: float | None = None,
        **overrides: Any,
    ) -> None:
        from swift_toolkit.training.request import MAX_LOST_ROWS, TrainingRequest, check_training

        launch = {
            "nproc_per_node": nproc_per_node,
            "nnodes": nnodes,
            "node_rank": node_rank,
            "master_addr": master_addr,
            "master_port": master_port,
        }
        if not isinstance(config, TrainingRequest):
            config = TrainingRequest(
                config=config,
                overrides=overrides,
                skip_bad_rows=skip_bad_rows,
                max_lost_rows=MAX_LOST_ROWS if max_lost_rows is None else max_lost_rows,
                trust_code=trust_code,
                launch=launch,
                resume=resume,
                force=force,
                keep_going=keep_going,
                stop_grace=stop_grace,
            )
        facts = check_training(config)
        from swift_toolkit.training.checked import plan_training

        self._checked = plan_training(config, facts)
        self.plan: TrainingPlan = self._checked.plan
        self.output_dir = self._checked.output.root

    @property
    def config(self) -> Config:
        """Every setting with its source."""
        return self.plan.config

    @property
    def device(self) -> Device:
        """The device that the run computes on."""
        return self.plan.device

    @property
    def data(self) -> DataReport:
        """The results of the data check so far."""
        return self.plan.data

    # --- inspecting ---------------------------------------------------------------------------------------

    def verify_data(self, exact: bool = False) -> DataReport:
        """Read all data of this run, print the findings and return them.

        Args:
            exact: process every row with the model's template to find its tokens and which of them are learned, and
                look for near-duplicates and secrets in all rows; this imports ms-swift but loads no weights.
        """
        from swift_toolkit.dataset import page

        if exact or not self.data.complete:
            self.plan = self.plan.with_all_data(closely=exact)
        if exact:
            self._template_view().audit(self.data)
        for line in (*self.data.summary(), *page.histogram_lines(self.data)):
            print(line)
        print(f"{self.data.verdict()}, {self.data.seconds:.1f} s")
        return self.data

    def preview_data(self, count: int) -> None:
        """Print the first ``count`` rows as the model will see them; on a terminal, learned text is coloured.

        Imports ms-swift and the model's tokenizer, but loads no weights.
        """
        for row in self._template_view().rows(self.config.get("dataset"), count):
            print(*row.lines(colour=sys.stdout.isatty()), sep="\n")

    def _template_view(self) -> TemplateView:
        from swift_toolkit.dataset import preview

        self.plan.unpack_models()
        settings = {name: setting.value for name, setting in self.config.settings.items()}
        return preview.TemplateView(settings["model"], self.data.rules, settings, self.plan.trust_code)

    def describe(self) -> dict[str, Any]:
        """What a run would do, as plain data: exact arguments, their sources, notices, data, memory, launch."""
        self.plan.write_to(self._checked.directory or self._checked.output.next())
        resumption = self._checked.resumption
        return {**self.plan.as_dict(), "resume": list(resumption.lines) if resumption else None}

    def print_plan(self, file: IO[str] | None = None) -> None:
        """Show what a run would do: a summary, then every setting with its source. To stderr by default."""
        resumption = self._checked.resumption
        lines = [("resume", line) for line in (resumption.lines if resumption else ())]
        screen.print_facts([*self.plan.facts(), *lines, ("output", str(self.output_dir))], file)
        settings = sorted(self.config.settings.items())
        rows = [(name, one.shown, str(one.source)) for name, one in settings]
        screen.print_table(("setting", "value", "from"), rows, file)

    def judge_memory(self) -> Verdict:
        """Whether the run fits the memory of its devices, by an estimate, and the smallest change that makes it fit."""
        return self.plan.verdict

    # --- training -----------------------------------------------------------------------------------------

    def run_training(self, verbose: bool = False, probe: bool = False) -> TrainingResult:
        """Train, and show the plan, one live line and the result on stderr.

        Ctrl-C (KeyboardInterrupt) lets the current step end and saves a checkpoint; a second one ends at once.

        Args:
            verbose: also show all output of ms-swift.
            probe: first run one step, and one evaluation, with the longest rows.

        Raises:
            RequestError: the longest rows are not known.
            RunError: the run failed; see ``train.log`` and ``result.json`` in its directory.
            KeyboardInterrupt: it was interrupted; saved checkpoints are usable.
        """
        from swift_toolkit.training import probe as training_probe
        from swift_toolkit.training import run as training_run

        plan, checked = self.plan, self._checked
        if probe and (found := list(training_probe.probe_problems(plan.data, plan.cluster))):
            raise RequestError(found)
        with training_run.directory(checked) as directory:
            job = training_run.prepare_run(checked, plan, directory, verbose)
            if not plan.cluster.is_first:
                screen.say(f"{plan.launch.phrase()}. The first machine shows the run.")
                return training_run.take_part(job)
            self.print_plan()
            if probe:
                training_probe.run_probe(job)
            return training_run.train(job)


# --- command line -------------------------------------------------------------------------------------------


def make_parser() -> command_line.Parser:
    """The flags of this script; every other ``--name value`` is a setting."""
    parser = command_line.Parser(
        prog="finetune_trainer.py",
        usage="%(prog)s [--config FILE] [--name value ...] [--dry-run] [--verify-data] [--json]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_sources("swift sft")
    _add_data_flags(parser)
    _add_launch_flags(parser)
    _add_run_flags(parser)
    return parser


def _add_data_flags(parser: command_line.Parser) -> None:
    parser.add_argument(
        "--upgrade", metavar="FILE", help="write the settings to FILE with current names, and stop"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, show the plan, start nothing"
    )
    parser.add_argument(
        "--preview", metavar="N", type=int, help="show N rows as the model will see them, and stop"
    )
    parser.add_argument(
        "--report", metavar="FILE", help="with --verify-data: also write the findings as HTML"
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="with --verify-data: count the tokens with the model's template, and those that are learned",
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
        help="stop before the first step if ms-swift uses fewer rows by more than this, e.g. because "
        "they are longer than max_length (default: 5%%)",
    )
    parser.add_argument(
        "--verify-data", action="store_true", help="read all data, report what is wrong, and stop"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on stdout, everything else on stderr"
    )


def _add_launch_flags(parser: command_line.Parser) -> None:
    launching = parser.add_argument_group("several devices and machines", "(or the environment, in capitals)")
    launching.add_argument(
        "--nproc-per-node", metavar="N", help="processes on this machine (default: one per device)"
    )
    launching.add_argument("--nnodes", metavar="N", help="number of machines")
    launching.add_argument("--node-rank", metavar="R", help="number of this machine, from 0")
    launching.add_argument(
        "--master-addr", metavar="HOST", help="address of the first machine, reachable from all"
    )
    launching.add_argument("--master-port", metavar="PORT", help="a free port there (default: 29500)")


def _add_run_flags(parser: command_line.Parser) -> None:
    parser.add_argument(
        "--resume",
        metavar="DIR",
        nargs="?",
        const=True,
        default=False,
        help="resume from the newest complete checkpoint: of this config's newest run, or of a run, a checkpoint or an "
        "output directory; without one, start from the beginning",
    )
    parser.add_argument(
        "--sweep",
        metavar="KEY=A,B,...",
        action="append",
        default=[],
        help="train once with each value, one run after the other, and compare them; can be given twice. To continue "
        "an interrupted sweep, run the same command again",
    )
    parser.add_argument(
        "--force", action="store_true", help="resume although settings changed that affect what is learned"
    )
    parser.add_argument(
        "--keep-going",
        action="store_true",
        help="only warn if the loss is not a number, nothing is learned, or the run stalls (default: fail)",
    )
    parser.add_argument(
        "--stop-grace",
        metavar="SECONDS",
        type=float,
        help="after Ctrl-C or SIGTERM, wait at most this long for the step and its checkpoint",
    )
    parser.add_argument(
        "--probe", action="store_true", help="first run one real step with the longest rows to see if it fits"
    )
    parser.add_argument(
        "--trust-code", action="store_true", help="run Python code in the model or a checkpoint"
    )
    parser.add_argument("--verbose", action="store_true", help="also show all output of ms-swift")
    parser.add_argument(
        "--quiet-notices", action="store_true", help="do not say which old names were translated"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks (also SWIFT_DEBUG=1)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        return command_line.run_command(_command, argv)
    with (  # under torchrun, the first process of a node prints for all
        Path(os.devnull).open("w") as silence,
        contextlib.redirect_stdout(silence),
        contextlib.redirect_stderr(silence),
    ):
        return command_line.run_command(_command, argv)


def _command(words: list[str]) -> int:
    options, settings = make_parser().parse(words)
    from swift_toolkit.config import tasks
    from swift_toolkit.config.scripts import script

    source, settings, environment, notices = script.given(options, settings, tasks.TRAINING_COMMANDS)
    if not source and not settings:
        make_parser().print_help(sys.stderr)
        return 2
    command_line.take_over(environment, notices)
    if options.upgrade:
        return _upgrade(source, settings, options)
    if problems := list(_flag_problems(options)):
        raise RequestError(problems)
    if options.sweep:
        return _sweep(_request(source, settings, options, words), options, words)
    tuner = FineTuner(_request(source, settings, options, words))
    if not options.quiet_notices:
        for notice in tuner.config.notices:
            screen.say(notice)
    for warning in tuner.config.warnings:
        screen.say(f"warning: {warning}")
    if options.preview is not None:
        tuner.preview_data(options.preview)
        return 0
    if options.convert is not None:
        return _convert(tuner, options.convert, options.json)
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
        if tuner.plan.cluster.is_first:
            _say_how_to_go_on(interrupted.result, words)
        raise interrupted.cause from None
    if tuner.plan.cluster.is_first:
        _print_result(result, tuner.config, options.json)
    return 0


def _request(
    source: str | Mapping[str, object] | None,
    settings: Mapping[str, object],
    options: argparse.Namespace,
    words: list[str],
) -> TrainingRequest:
    from swift_toolkit.training import request
    from swift_toolkit.training.process import launch as process_launch

    lost = options.max_lost_rows
    return request.TrainingRequest(
        config=source,
        overrides=settings,
        overrides_from="command line",
        skip_bad_rows=options.skip_bad_rows,
        max_lost_rows=request.MAX_LOST_ROWS if lost is None else lost,
        trust_code=options.trust_code,
        launch={name: getattr(options, name) for name in process_launch.NAMES},
        looking=options.verify_data or options.convert is not None,
        resume=options.resume,
        force=options.force,
        keep_going=options.keep_going,
        command=(Path(sys.argv[0]).name, *words),
        stop_grace=options.stop_grace,
    )


def _flag_problems(options: argparse.Namespace) -> Iterator[Problem]:
    """Flags with a path that cannot be written, or that need another flag."""
    for name, suffixes in (("report", (".html",)), ("convert", (".jsonl", ".json"))):
        if (target := getattr(options, name)) is not None:
            yield from command_line.unwritable(Path(target), f"--{name}", suffixes)
    for name in ("report", "exact"):
        if getattr(options, name) and not options.verify_data:
            yield Problem("needs --verify-data", "Add that, or remove this.", key=f"--{name}")
    if options.sweep:
        for name in ("resume", "preview", "verify_data"):
            if getattr(options, name) not in (None, False):
                flag = f"--{name.replace('_', '-')}"
                yield Problem("cannot be used with --sweep", "Remove one of them.", key=flag)
    if options.force and options.resume is False:
        yield Problem("needs --resume", "Add that, or remove this.", key="--force")
    if options.preview is not None and options.preview < 1:
        yield Problem(f"is {options.preview}; it must be at least 1", key="--preview")


def _sweep(whole: TrainingRequest, options: argparse.Namespace, words: list[str]) -> int:
    """Train with each value of ``--sweep``, and compare."""
    from swift_toolkit.config.request import load_config
    from swift_toolkit.training import sweep

    found = sweep.check(whole, sweep.parse_sweep(options.sweep))
    if options.dry_run:
        for point in found:
            print(f"{point.name}: {'finished' if point.finished else point.output}")
        return 0
    failed = 0
    for number, point in enumerate(found, 1):
        screen.say(
            f"Run {number} of {len(found)}: {point.name}" + (", finished before" if point.finished else "")
        )
        try:
            if not point.finished:
                FineTuner(point.request(whole)).run_training(options.verbose, options.probe)
        except Interrupted as interrupted:
            screen.say(
                f"Interrupted in run {number} of {len(found)}. To continue, run the same command again:"
            )
            screen.say(f"  python finetune_trainer.py {shlex.join(words)}")
            raise interrupted.cause from None
        except RunError as error:
            failed += 1
            screen.say(str(error))
    request = found[0].request(whole)
    config = load_config(request.config, request.overrides)
    _print_sweep(sweep.outcome(found), config, words, as_json=options.json)
    return 1 if failed else 0


def _print_sweep(outcome: sweep.Outcome, config: Config, words: list[str], *, as_json: bool) -> None:
    if as_json:
        runs = [{"name": name, **run.as_dict()} for name, run in outcome.runs]
        best = outcome.best.name if outcome.best else None
        content = {"schema": 1, "runs": runs, "best": best, "comparison": outcome.comparison}
        print(json.dumps(content, ensure_ascii=False, default=str))
        return
    rows = [
        (name, run.state, f"{run.step:,}", "" if run.best_loss is None else f"{run.best_loss:.4f}")
        for name, run in outcome.runs
    ]
    screen.print_table(("run", "state", "steps", "best loss"), rows, sys.stdout)
    if outcome.comparison:
        print(f"Comparison: {screen.short_path(outcome.comparison)}")
    if outcome.best:
        settings = [word for name, value in outcome.best.settings.items() for word in (f"--{name}", value)]
        swept = [f"--{name.replace('_', '-')}" for name in outcome.best.settings]
        print(f"Best: {outcome.best.name}. Next:")
        for command in _next_commands(outcome.best.output / "last", config):
            print(f"  {command}")
        print(f"  python finetune_trainer.py {shlex.join([*_without(words, '--sweep', *swept), *settings])}")


def _upgrade(
    source: str | Mapping[str, object] | None, settings: Mapping[str, object], options: argparse.Namespace
) -> int:
    from swift_toolkit.config.scripts.upgrade import upgrade

    if not isinstance(source, str):
        source, settings = {**(source or {}), **settings}, {}
    if settings:
        names = ", ".join(f'"--{name}"' for name in settings)
        raise RequestError([Problem(f"--upgrade with a file takes no settings: {names}", "Remove them.")])
    for notice in upgrade(source, options.upgrade):
        if not options.quiet_notices:
            screen.say(notice)
    print(json.dumps({"schema": 1, "written": options.upgrade}) if options.json else options.upgrade)
    return 0


def _convert(tuner: FineTuner, target: str, as_json: bool) -> int:
    from swift_toolkit.dataset.copies import convert

    if any(Path(target).absolute() == Path(file.path).expanduser().absolute() for file in tuner.data.files):
        raise RequestError([Problem("names a file that is an input", "Give another one.", key="--convert")])
    rows = convert(tuner.data, Path(target))
    screen.say(f"{rows:,} rows written")
    print(json.dumps({"schema": 1, "written": target, "rows": rows}) if as_json else target)
    return 0


def _verify(tuner: FineTuner, options: argparse.Namespace) -> int:
    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        report = tuner.verify_data(options.exact)
    if options.report:
        from swift_toolkit.dataset.page import write_report

        write_report(report, Path(options.report))
    if options.json:
        print(json.dumps(report.as_dict(), ensure_ascii=False, default=str))
    return 0 if report.ok else 2


def _print_result(result: TrainingResult, config: Config, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(result), ensure_ascii=False, default=str))
        return
    from swift_toolkit.training.monitor.progress import measured

    metrics = result.metrics
    words = measured(metrics)
    if "final_loss" in metrics and "reward" not in words:
        words = {"loss": f"loss {metrics['final_loss']:.4f} (best {metrics['best_loss']:.4f})", **words}
    parts = [
        f"Trained {result.steps} steps in {screen.duration(result.seconds['training'])}",
        *words.values(),
    ]
    print(f"{', '.join(parts)}.")
    if result.last_checkpoint is None:
        print("No checkpoint was saved.")
        return
    shown = result.best_checkpoint or result.last_checkpoint
    print(f"{'Best' if result.best_checkpoint else 'Last'} checkpoint: {screen.short_path(shown)}")
    print(f"Report: {screen.short_path(result.run_directory / 'report.html')}")
    print("Next:")
    for command in _next_commands(shown, config):
        print(f"  {command}")


def _next_commands(checkpoint: Path, config: Config) -> Iterator[str]:
    """Next commands for a checkpoint of a run with these settings."""
    from swift_toolkit.runs.next_steps import checkpoint_commands

    data = map(str, [*(config.get("val_dataset") or []), *(config.get("dataset") or [])])
    return checkpoint_commands(checkpoint, config.task.output, data)


def _say_how_to_go_on(result: TrainingResult, words: list[str]) -> None:
    screen.say(f"Interrupted at step {result.steps}.")
    if result.last_checkpoint is None:
        screen.say("No checkpoint was saved yet. To start again:")
    else:
        screen.say(f"Last checkpoint: {screen.short_path(result.last_checkpoint)}. To resume from it:")
    started = _without(words, "--resume", "--resume-from-checkpoint", "--force")
    screen.say(f"  python finetune_trainer.py {shlex.join([*started, '--resume'])}")


def _without(words: list[str], *flags: str) -> Iterator[str]:
    """The words of a command without some flags and their values."""
    skipping = False
    for word in words:
        if word.startswith("--"):
            skipping = word.partition("=")[0].replace("_", "-") in flags
        if not skipping:
            yield word


if __name__ == "__main__":
    sys.exit(main())
