"""Translate the commands in ms-swift's examples and documents of all generations for the installed version.

    git clone https://github.com/modelscope/ms-swift
    python benchmarks/vocabulary_corpus.py ms-swift

The commands come from the shell scripts and the code blocks of the Markdown files of seven releases from 1.1 to 4.5,
and each is counted once per release. Each command is translated, and the result is passed to the argument parser of
the installed ms-swift; no model is loaded. Commands that are not understood, not accepted or rejected are listed.
"Understood" means that no name is unknown and every resulting name is an argument of the installed ms-swift.
The exit status is 1 if less than 99% are understood.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from swift_toolkit.config.fields import fields
from swift_toolkit.config.names.translate import Translation, translate
from swift_toolkit.config.scripts.script import all_commands
from swift_toolkit.machine.msswift import COMMANDS, Command, arguments_class, installed

RELEASES = ("v1.1.2", "v1.7.3", "v2.6.1", "v3.0.3", "v3.8.3", "v3.12.6", "v4.5.2")
CODE_BLOCK = re.compile(r"^[ \t]*```[^\n]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """A command of the corpus and its first occurrence."""

    release: str
    file: str
    command: Command
    values: dict[str, Any]


def git(clone: Path, *arguments: str) -> str:
    run = subprocess.run(["git", "-C", str(clone), *arguments], capture_output=True, check=True)
    return run.stdout.decode("utf-8", "replace")


def scripts(clone: Path, release: str) -> Iterator[tuple[str, str]]:
    """File name and text of every shell script and code block of a release."""
    for name in git(clone, "-c", "core.quotePath=off", "ls-tree", "-r", "--name-only", release).splitlines():
        if name.endswith((".sh", ".md")):
            text = git(clone, "show", f"{release}:{name}")
            yield from (
                (name, part) for part in ([text] if name.endswith(".sh") else CODE_BLOCK.findall(text))
            )


def corpus(clone: Path) -> list[Example]:
    """All distinct commands with settings, per release."""
    found: dict[str, Example] = {}
    for release in RELEASES:
        for file, text in scripts(clone, release):
            for command in all_commands(text):
                # the settings file for ms-swift is not a setting
                values = {name: value for name, value in command.values.items() if name != "config"}
                key = json.dumps([release, command.command, values], sort_keys=True)
                if values:
                    found.setdefault(key, Example(release, file, command.command, values))
    return list(found.values())


class RejectedError(Exception):
    """The answer of the argument parser."""


def parsers() -> dict[Command, argparse.ArgumentParser]:
    """The argument parsers of the installed ms-swift."""
    from swift.utils import utils as swift_utils
    from transformers import HfArgumentParser

    def reject(message: str) -> NoReturn:
        raise RejectedError(message)

    line = installed().line
    found: dict[Command, argparse.ArgumentParser] = {}
    for command in COMMANDS:
        module, name = arguments_class(command, line)
        with swift_utils._patch_get_type_hints():
            found[command] = HfArgumentParser([getattr(importlib.import_module(module), name)])
        found[command].error = reject  # type: ignore[method-assign]
    return found


def arguments(values: Mapping[str, Any]) -> list[str]:
    """Settings as command line arguments."""
    words = []
    for name, value in values.items():
        words.append(f"--{name}")
        for item in value if isinstance(value, list) else [value]:
            words.append(item if isinstance(item, str) else json.dumps(item))
    return words


def accepted(parser: argparse.ArgumentParser, values: Mapping[str, Any]) -> str:
    """The parser's error for the settings; empty if there is none."""
    try:
        _, rest = parser.parse_known_args(arguments(values))
    except RejectedError as problem:
        return str(problem)
    return f"unused: {' '.join(rest)}" if rest else ""


def is_understood(example: Example, result: Translation) -> bool:
    return not result.unknown and result.values.keys() <= fields(example.command).keys()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clone", type=Path, help="a clone of github.com/modelscope/ms-swift with its tags")
    examples = corpus(parser.parse_args().clone)
    install, line = installed(), installed().line
    known = {command: fields(command) for command in COMMANDS}
    parse = parsers()
    understood, taken, refused = Counter[str](), Counter[str](), Counter[str]()
    for example in examples:
        result = translate(example.values, example.command, line, known[example.command])
        where = f"{example.release} {example.file}: swift {example.command}"
        if is_understood(example, result):
            understood[example.release] += 1
        for name in result.unknown:
            print(f"not understood: {name} ({where})")
        for name, what, do in result.errors:
            refused[f'"{name}" {what}. {do}'] += 1
        problem = accepted(parse[example.command], result.values)
        taken[example.release] += not problem
        if problem:
            print(f"not accepted: {problem[:120]} ({where})")
    for text, count in refused.most_common():
        print(f"rejected in {count}: {text}")
    print(f"\nms-swift {install.version}\n{'release':10}{'commands':>10}{'understood':>12}{'accepted':>10}")
    for release in RELEASES:
        total = sum(example.release == release for example in examples)
        print(f"{release:10}{total:10}{understood[release]:12}{taken[release]:10}")
    share = understood.total() / len(examples)
    print(f"{'all':10}{len(examples):10}{understood.total():12}{taken.total():10}   {share:.2%} understood")
    return int(share < 0.99)


if __name__ == "__main__":
    sys.exit(main())
