"""Commands that are not about a single run: python -m swift_toolkit runs [DIR] | cache."""

from __future__ import annotations

from swift_toolkit.machine import interrupt

if __name__ == "__main__":
    interrupt.quit_on_ctrl_c()  # until the imports are done

import argparse
import json
import sys

from swift_toolkit.console import command_line
from swift_toolkit.console.words import counted
from swift_toolkit.dataset import row_cache
from swift_toolkit.runs import command


def make_parser() -> command_line.Parser:
    """The commands and their flags."""
    parser = command_line.Parser(
        prog="python -m swift_toolkit", description="List training runs and kept rows."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    runs = commands.add_parser(
        "runs",
        help="list the training runs in a directory",
        description="List training runs, newest first, with their state; show, compare or repeat them; clean up.",
        epilog=command.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(runs)
    runs.set_defaults(carry_out=command.carry_out)
    cache = commands.add_parser(
        "cache",
        help="show or remove the rows kept for later runs",
        description="Show where converted rows are kept for later runs with the same data and settings, and how much "
        "space they take.",
    )
    cache.add_argument("--clear", action="store_true", help="remove everything that no run is using")
    cache.add_argument("--json", action="store_true", help="one JSON object on stdout")
    cache.add_argument("--debug", action="store_true", help="show tracebacks (also SWIFT_DEBUG=1)")
    cache.set_defaults(carry_out=_cache)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    return command_line.run_command(_command, argv)


def _command(words: list[str]) -> int:
    options = make_parser().parse_args(words)
    if options.command is None:
        make_parser().print_help(sys.stderr)
        return 2
    return int(options.carry_out(options))


def _cache(options: argparse.Namespace) -> int:
    entries = row_cache.entries()
    removed = [entry for entry in entries if row_cache.clear(entry)] if options.clear else []
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


if __name__ == "__main__":
    sys.exit(main())
