"""What is not about one run: python -m swift_toolkit runs [DIR]."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from swift_toolkit.console import command_line, screen
from swift_toolkit.problems import Problem, RequestError
from swift_toolkit.runs import table

_EXAMPLES = """\
examples:
  python -m swift_toolkit runs
  python -m swift_toolkit runs output/quickstart --json
  python -m swift_toolkit runs --clean            show what could be removed; --yes removes it"""


def make_parser() -> command_line.Parser:
    """The commands and their flags."""
    parser = command_line.Parser(prog="python -m swift_toolkit", description="Look at what the toolkit made.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    runs = commands.add_parser(
        "runs",
        help="the training runs below a directory",
        description="List training runs, the newest first, with their state.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    runs.add_argument(
        "directory", nargs="?", default="output", help="of a run, or of several (default: output)"
    )
    runs.add_argument("--json", action="store_true", help="one JSON object on stdout")
    runs.add_argument(
        "--clean", action="store_true", help="show what could be removed, and how much it frees"
    )
    runs.add_argument("--yes", action="store_true", help="with --clean: remove it")
    runs.add_argument("--debug", action="store_true", help="show tracebacks (also SWIFT_DEBUG=1)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    return command_line.run_command(_command, argv)


def _command(words: list[str]) -> int:
    options = make_parser().parse_args(words)
    directory = Path(options.directory).expanduser()
    if options.yes and not options.clean:
        raise RequestError([Problem("goes with --clean", "Add that, or remove it.", "--yes")])
    if not directory.is_dir():
        raise RequestError([Problem(f"{directory} is not a directory", "Name the output directory of runs.")])
    found = table.runs_below(directory)
    if options.clean:
        return _clean(found, remove=options.yes, as_json=options.json)
    if options.json:
        print(json.dumps({"schema": 1, "runs": [run.as_dict() for run in found]}, ensure_ascii=False))
    elif not found:
        screen.say(f"No run below {directory}.")
    else:
        screen.print_table(table.COLUMNS, [run.cells() for run in found], sys.stdout)
    return 0


def _clean(runs: list[table.RunEntry], *, remove: bool, as_json: bool) -> int:
    waste = [one for run in runs for one in table.waste_of(run)]
    for one in waste if remove else ():
        table.remove(one)
    total = sum(one.size for one in waste)
    if as_json:
        found = [{**asdict(one), "path": str(one.path)} for one in waste]
        print(
            json.dumps({"schema": 1, "removed": remove, "bytes": total, "found": found}, ensure_ascii=False)
        )
        return 0
    if waste:
        rows = [(screen.gib(one.size), str(one.path), one.why) for one in waste]
        screen.print_table(("size", "path", "why"), rows, sys.stdout)
    verb = "Removed" if remove else "To remove it, add --yes:"
    print(f"{verb} {screen.gib(total)} in {len(waste)} directories." if waste else "Nothing to remove.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
