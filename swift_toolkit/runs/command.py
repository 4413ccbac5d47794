"""The command ``python -m swift_toolkit runs``: list, show, compare, repeat and clean up runs."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from swift_toolkit.console import command_line, screen
from swift_toolkit.console.words import counted, did_you_mean, did_you_mean_path
from swift_toolkit.model.checkpoints.find import CHECKPOINT, RUN, runs_of
from swift_toolkit.problems import Problem, RequestError
from swift_toolkit.runs import page, table
from swift_toolkit.runs.comparison import compare
from swift_toolkit.runs.history import LOG, read_history
from swift_toolkit.runs.record import PLAN, REPORT, RESULT, SETTINGS, ResultRecord, RunPlan, read_record
from swift_toolkit.runs.resume import RECORD, stored_request
from swift_toolkit.runs.table import Listing, RunEntry, json_file

ACTIONS = ("show", "compare", "repeat", "clean")

USAGE = """\
%(prog)s [DIR] [--json]
       %(prog)s show RUN [--json] [--report FILE]
       %(prog)s compare RUN RUN ... [--json] [--report FILE]
       %(prog)s repeat RUN [--json]
       %(prog)s clean [DIR] [--yes] [--json]"""

EXAMPLES = """\
A RUN is a run directory (vN-<time>), a checkpoint in it, or an output directory, which stands for its newest run.

examples:
  python -m swift_toolkit runs                                  all runs below output, newest first
  python -m swift_toolkit runs show output/quickstart
  python -m swift_toolkit runs compare output/a output/b --report comparison.html
  python -m swift_toolkit runs repeat output/quickstart         the same run again, from its record
  python -m swift_toolkit runs clean                            what can be removed; --yes removes it"""

_FLAGS_OF_A_RUN = (
    *("--skip-bad-rows", "--max-lost-rows", "--trust-code", "--keep-going", "--stop-grace"),
    *("--nproc-per-node", "--nnodes", "--node-rank", "--master-addr", "--master-port"),
)
"""Flags of the trainer that are not settings and that a repeated run reuses."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to ``parser``."""
    parser.usage = USAGE % {"prog": parser.prog}
    parser.add_argument(
        "words", nargs="*", metavar="DIR|RUN", help="directories, after the action if one is given"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--report", metavar="FILE", help="with show or compare: write the output as HTML")
    parser.add_argument("--yes", action="store_true", help="with clean: remove the listed directories")
    parser.add_argument("--debug", action="store_true", help="show tracebacks (also SWIFT_DEBUG=1)")


def carry_out(options: argparse.Namespace) -> int:
    """Carry out the command. Returns the exit status.

    Raises:
        RequestError: the arguments are wrong.
    """
    action, *words = (
        options.words if options.words[:1] and options.words[0] in ACTIONS else ["", *options.words]
    )
    if problems := list(_problems(action, words, options)):
        raise RequestError(problems)
    if action == "show":
        return _show(run_of(words[0]), options)
    if action == "compare":
        return _compare([run_of(word) for word in words], options)
    if action == "repeat":
        return _repeat(run_of(words[0]), as_json=options.json)
    directory = Path(words[0] if words else "output").expanduser()
    if not directory.is_dir():
        raise RequestError([_no_directory(directory, action)])
    listing = table.runs_below(directory)
    if action:
        return _clean(listing.runs, remove=options.yes, as_json=options.json)
    return _list(listing, directory, options)


def _problems(action: str, words: Sequence[str], options: argparse.Namespace) -> Iterator[Problem]:
    if options.yes and action != "clean":
        do = did_you_mean(words[0], ["clean"]) if words and not action else ""
        yield Problem("needs the action clean", do or "Remove it, or use: runs clean --yes.", "--yes")
    if options.report and action not in ("show", "compare"):
        yield Problem("needs the action show or compare", "Remove it.", "--report")
    elif options.report:
        yield from command_line.unwritable(Path(options.report).expanduser(), "--report", (".html",))
    least, most = {"show": (1, 1), "repeat": (1, 1), "compare": (2, 12)}.get(action, (0, 1))
    if not least <= len(words) <= most:
        wanted = f"{least} to {most} runs" if most > least else counted(least, "run")
        what = f"{action} takes {wanted}" if least else "only one directory can be listed"
        see = "See python -m swift_toolkit runs --help."
        do = see if action else did_you_mean(words[0], ACTIONS, see)
        yield Problem(f"{what}; given: {len(words)}", do)


def _no_directory(directory: Path, action: str) -> Problem:
    """The problem of a directory that does not exist; it may be a misspelled action."""
    if directory == Path("output"):
        do = "Name the output directory of your runs."
        return Problem("There is no directory output here", do)
    do = "" if action else did_you_mean(str(directory), ACTIONS)
    do = do or did_you_mean_path(directory, "Name the output directory of runs.")
    return Problem(f"{directory} is not a directory", do)


def run_of(word: str) -> Path:
    """The run directory that ``word`` names.

    Raises:
        RequestError: there is no such run.
    """
    path = Path(word).expanduser()
    place = path.resolve()
    if CHECKPOINT.fullmatch(place.name):
        place = place.parent
    if RUN.fullmatch(place.name) and place.is_dir():
        return place
    if runs := runs_of(place):
        return runs[0]
    if any((place / name).is_file() for name in (RECORD, LOG, RESULT)):
        return place
    if runs_of(below := Path("output") / path):
        do = f'Did you mean "{below}"?'
    else:
        do = did_you_mean_path(path, "Name a run directory (vN-<time>), or an output directory with runs.")
    raise RequestError([Problem(f"{word} is not a run", do)])


def _print_json(**content: object) -> int:
    print(json.dumps({"schema": 1, **content}, ensure_ascii=False, default=str))
    return 0


def _list(listing: Listing, directory: Path, options: argparse.Namespace) -> int:
    if options.json:
        return _print_json(runs=[run.as_dict() for run in listing.runs], faults=listing.faults)
    if not listing.runs:
        screen.say(f"No run below {directory}.")
    else:
        screen.print_table(table.TABLE_COLUMNS, [run.cells() for run in listing.runs], sys.stdout)
    for fault in listing.faults:
        screen.say(f"warning: {fault}")
    return 0


# --- one run ------------------------------------------------------------------------------------------------


def _show(directory: Path, options: argparse.Namespace) -> int:
    run = table.read_run(directory)
    if options.report:
        target = Path(options.report).expanduser()
        page.write_run_report(directory, target)
    if options.json:
        plan, result = json_file(directory / PLAN), json_file(directory / RESULT)
        return _print_json(**run.as_dict(), plan=plan or None, result=result or None)
    screen.print_facts(_facts(run), sys.stdout)
    return 0


def _facts(run: RunEntry) -> Iterator[tuple[str, str]]:
    result = read_record(run.directory / RESULT, ResultRecord)[0] or ResultRecord()
    plan = read_record(run.directory / PLAN, RunPlan)[0] or RunPlan()
    yield "run", screen.short_path(run.directory)
    yield "started", run.started.strftime("%Y-%m-%d %H:%M:%S")
    yield "state", f"{run.state}, can be resumed" if run.resumable else run.state
    if run.error:
        yield "error", run.error
    for alarm in result.alarms:
        yield "warning", f"step {alarm.step}: {alarm.what}. {alarm.do}"
    for fault in run.faults:
        yield "warning", fault
    yield from plan.facts or [("model", run.model), ("data", run.data)]
    yield "steps", f"{run.step:,} of {run.max_steps:,}"
    if run.best_loss is not None:
        yield "best loss", f"{run.best_loss:.4f}"
    history = read_history(run.directory)
    for name in ("loss", "eval_loss", "token_acc", "reward"):
        if values := history.of(name):
            yield f"last {name}", f"{values[max(values)]:.4f}"
    if (run.directory / REPORT).is_file():
        yield "report", screen.short_path(run.directory / REPORT)
    for command in page.next_commands(run):
        yield "next", command


def _repeat(directory: Path, *, as_json: bool) -> int:
    """Replace this process with the trainer, started with the settings of a run."""
    settings = directory / SETTINGS
    if not settings.is_file():
        what = f"{directory} has no {SETTINGS}, because an older version started this run"
        raise RequestError([Problem(what, f"Its settings are in {directory / 'result.json'}, under config.")])
    request = stored_request(directory)
    words = ["--config", str(settings), *_flags(request.command if request else ())]
    if as_json:
        return _print_json(command=["finetune_trainer.py", *words])
    screen.say(f"python finetune_trainer.py {shlex.join(words)}")
    script = Path(__file__).resolve().parents[2] / "finetune_trainer.py"
    start = [str(script)] if script.is_file() else ["-m", "finetune_trainer"]
    sys.stderr.flush()
    return os.execv(sys.executable, [sys.executable, *start, *words])


def _flags(command: Sequence[str]) -> Iterator[str]:
    """The flags in ``command`` that are not settings, with their values."""
    keeping = False
    for word in command:
        if word.startswith("--"):
            keeping = word.partition("=")[0].replace("_", "-") in _FLAGS_OF_A_RUN
        if keeping:
            yield word


# --- several runs -------------------------------------------------------------------------------------------


def _compare(directories: Sequence[Path], options: argparse.Namespace) -> int:
    found = compare(directories)
    if options.report:
        page.write_comparison(directories, Path(options.report).expanduser())
    if options.json:
        return _print_json(**found.as_dict())
    rows = [*found.results, *found.settings, *((f"{name} data", *cells) for name, *cells in found.data)]
    screen.print_table(("", *found.names), rows, sys.stdout)
    return 0


def _clean(runs: Sequence[RunEntry], *, remove: bool, as_json: bool) -> int:
    waste = [one for run in runs for one in table.waste_of(run)]
    for one in waste if remove else ():
        table.remove(one)
    total = sum(one.size for one in waste)
    if as_json:
        found = [{**asdict(one), "path": str(one.path)} for one in waste]
        return _print_json(removed=remove, bytes=total, found=found)
    if waste:
        rows = [(screen.gib(one.size), str(one.path), one.why) for one in waste]
        screen.print_table(("size", "path", "why"), rows, sys.stdout)
    verb = "Removed" if remove else "Add --yes to remove"
    size = f"{screen.gib(total)} in {counted(len(waste), 'directory', 'directories')}."
    print(f"{verb} {size}" if waste else "Nothing to remove.")
    return 0
