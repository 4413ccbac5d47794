"""What is not about one run: python -m swift_toolkit runs [DIR] | cache."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from swift_toolkit.console import command_line, screen
from swift_toolkit.console.words import counted
from swift_toolkit.dataset import row_cache
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
    runs.set_defaults(carry_out=_runs)
    cache = commands.add_parser(
        "cache",
        help="the rows that are kept for later runs",
        description="Show where converted rows are kept for later runs with the same data and settings, and how large "
        "that is.",
    )
    cache.add_argument("--clear", action="store_true", help="remove all that no run is using")
    cache.add_argument("--json", action="store_true", help="one JSON object on stdout")
    cache.add_argument("--debug", action="store_true", help="show tracebacks (also SWIFT_DEBUG=1)")
    cache.set_defaults(carry_out=_cache)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    return command_line.run_command(_command, argv)


def _command(words: list[str]) -> int:
    options = make_parser().parse_args(words)
    return int(options.carry_out(options))


def _cache(options: argparse.Namespace) -> int:
    entries = row_cache.entries()
    removed = [entry for entry in entries if row_cache.remove(entry)] if options.clear else []
    left = [entry for entry in entries if entry not in removed]
    total, freed = (sum(entry.size for entry in some) for some in (left, removed))
    if options.json:
        found = [{"path": str(entry.path), "bytes": entry.size, "used": entry.used} for entry in left]
        print(
            json.dumps({"schema": 1, "path": str(row_cache.root()), "removed_bytes": freed, "entries": found})
        )
        return 0
    if options.clear:
        print(f"Removed {_mib(freed)} of kept rows.")
    in_use = ", in use" if options.clear and left else ""
    print(f"{_mib(total)} in {counted(len(left), 'entry', 'entries')}{in_use}: {row_cache.root()}")
    return 0


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"


def _runs(options: argparse.Namespace) -> int:
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
