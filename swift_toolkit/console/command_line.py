"""What the command lines of the three scripts have in common.

A script declares its own flags with argparse. Every other ``--name value ...`` is a setting, an ms-swift argument or a
key of the toolkit, and is checked where settings are known, not here.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from swift_toolkit.console import screen
from swift_toolkit.console.secrets import masked
from swift_toolkit.console.words import did_you_mean
from swift_toolkit.machine import packages
from swift_toolkit.machine.interrupt import raise_on_ctrl_c
from swift_toolkit.machine.process import Terminated, interrupt_on_sigterm
from swift_toolkit.problems import Problem, RequestError, ToolkitError

_Settings = dict[str, "str | list[str] | bool"]


class Parser(argparse.ArgumentParser):
    """An argument parser that raises mistakes as RequestErrors and leaves settings to ``parse``."""

    def add_sources(self, example: str) -> None:
        """Add the flags that name the source of the settings; `request` reads them."""
        self.add_argument("--config", metavar="FILE", help="settings, as JSON or YAML")
        self.add_argument(
            "--from-command", metavar="LINE", help=f"settings from a command such as '{example} ...'"
        )
        self.add_argument(
            "--from-script", metavar="FILE", help="settings from a shell script that starts ms-swift"
        )

    def error(self, message: str) -> NoReturn:
        """Raise ``message`` as a RequestError."""
        number = re.fullmatch(r"argument (--[\w-]+): invalid (int|float) value: '(.*)'", message)
        if number:
            flag, kind, value = number.groups()
            what = f'must be a {"whole number" if kind == "int" else "number"}, not "{value}"'
            raise RequestError([Problem(what, key=flag)])
        choice = re.fullmatch(r"argument COMMAND: invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            name, known = choice[1], re.findall(r"[\w-]+", choice[2])
            do = did_you_mean(name, known, f"The commands are {', '.join(known)}.")
            raise RequestError([Problem(f'"{name}" is not a command', do)])
        raise RequestError([Problem(message, f"See {self.prog} --help.")])

    def parse_known_args(  # type: ignore[override]  # one signature instead of argparse's overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """The parsed words; unlike argparse's own method it leaves none over.

        Raises:
            RequestError: some words are not understood.
        """
        found, extra = super().parse_known_args(args, namespace)
        if problems := list(map(self._unknown, extra)):
            raise RequestError(problems)
        return found, []

    def _unknown(self, word: str) -> Problem:
        """The problem of a word that is neither a known flag nor an expected argument."""
        see = f"See {self.prog} --help."
        if not word.startswith("-"):
            return Problem(f'"{word}" is not expected here', self._flag_for(word) or see)
        flag = word.partition("=")[0]
        return Problem("is not a flag", did_you_mean(flag, self._flags(), see), flag)

    def _flag_for(self, word: str) -> str:
        """The advice for a file or directory without its flag; "" for another word."""
        kinds = {".json": "--config", ".yaml": "--config", ".yml": "--config", ".sh": "--from-script"}
        flag = "--checkpoint" if Path(word).is_dir() else kinds.get(Path(word).suffix)
        return f"Write {flag} {word}." if flag in self._flags() else ""

    def _flags(self) -> list[str]:
        """The long flags of this parser."""
        return [flag for flag in self._option_string_actions if flag.startswith("--")]

    def parse(self, argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, _Settings]:
        """The script's own flags, and the settings in the given order.

        ``-`` and ``_`` are equivalent in names. A setting takes one value (``--x v``, ``--x=v``), several (``--x a b``)
        or none (``--x``, which means true).

        Raises:
            RequestError: a word does not belong to a flag, or a setting is given twice.
        """
        flags, settings, own = [], {}, set()
        given = list(sys.argv[1:] if argv is None else argv)
        problems = list(_long_dashes(given))
        for words in _grouped(given):
            name, equals, value = words[0].partition("=")
            flag = "--" + name[2:].replace("_", "-") if name.startswith("--") else name
            if flag in self._option_string_actions or not name.startswith("--"):
                if flag in own and not isinstance(self._option_string_actions.get(flag), _REPEATABLE):
                    problems.append(Problem("is given twice", "Keep one of the two.", flag))
                own.add(flag)
                flags += [flag + equals + value, *words[1:]]
                continue
            key = name[2:].replace("-", "_")
            if key in settings:
                problems.append(Problem("is given twice", f"Write it once: {name} ... ...", name))
            values = [value] if equals else []
            values += words[1:]
            settings[key] = values[0] if len(values) == 1 else values or True
        if problems:
            raise RequestError(problems)
        return self.parse_args(flags), settings


_REPEATABLE = (argparse._AppendAction, argparse._StoreTrueAction)
"""Flags that may be repeated: their values add up, or are the same."""

_DASHES = "‐‑‒–—―−﹣－"
LONG_DASH = re.compile(
    rf"(?=-*[{_DASHES}])[-{_DASHES}]+(?P<name>[A-Za-z][\w.-]*|[\d.]+(?:[eE]-?\d+)?)(?:=.*)?", re.DOTALL
)
"""A word that starts with a typographic dash."""


def _long_dashes(words: Sequence[str]) -> Iterator[Problem]:
    for word in words:
        if found := LONG_DASH.fullmatch(word):
            yield long_dash(word, found)


def long_dash(word: str, found: re.Match[str], file: str | None = None, line: int | None = None) -> Problem:
    """The problem of a word that `LONG_DASH` matches."""
    name = found["name"]
    right = f"-{name}" if name[0].isdigit() or len(name) == 1 else f"--{name}"
    return Problem(f'"{word}" starts with a long dash', f"Write {right}.", file=file, line=line)


def _grouped(argv: Sequence[str]) -> list[list[str]]:
    """``argv`` split before every word that starts with ``--`` or is a one-letter flag."""
    groups: list[list[str]] = []
    for word in argv:
        starts = word.startswith("--") or (len(word) == 2 and word[0] == "-" and word[1].isalpha())
        if starts or not groups:
            groups.append([])
        groups[-1].append(word)
    return groups


def unwritable(place: Path, flag: str, suffixes: Sequence[str]) -> Iterator[Problem]:
    """Why a file named by ``flag`` cannot be written.

    Args:
        place: the file.
        flag: the flag that names it.
        suffixes: the extensions that it may have, each of which decides the format.
    """
    if place.is_dir():
        yield Problem(f'names "{place}", which is a directory', "Give a file.", flag)
    elif place.suffix not in suffixes:
        do = f"Name a file that ends in {' or '.join(suffixes)}."
        yield Problem(f"has an unsupported extension: {place}", do, flag)
    elif not place.parent.is_dir():
        what = f'names "{place}", whose directory does not exist'
        yield Problem(what, "Create it first, or give another path.", flag)


def take_over(environment: Mapping[str, str], notices: Iterable[str]) -> None:
    """Continue as if these variables had been set before the command; those of this process take precedence. Show the
    notices."""
    for notice in notices:
        screen.say(notice)
    for name, value in environment.items():
        os.environ.setdefault(name, value)


def run_command(command: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> int:
    """Call ``command`` with the words of the command line and convert its errors into an exit status.

    Errors go to stderr, and with ``--json`` among the words also as one object to stdout.

    Args:
        command: the script's work; it receives the words and returns the exit status.
        argv: the words; by default those of this process.

    Returns:
        The exit status of ``command``; 1 for a failed run, 2 for a wrong request; 130 after Ctrl-C, 143 after SIGTERM.
    """
    _open_standard_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    interrupt_on_sigterm()
    try:
        raise_on_ctrl_c()
        status = command(words)
        sys.stdout.flush()  # so that an error is reported here
        return status
    except ToolkitError as error:
        if debugging(words):
            traceback.print_exc()
        _tell(error, "--json" in words)
        return error.exit_status
    except BrokenPipeError:  # the reader of the output has closed it
        _discard_output()
        return 141
    except KeyboardInterrupt as interrupt:
        return 143 if isinstance(interrupt, Terminated) else 130
    except Exception as error:
        if debugging(words):
            raise
        if problem := _missing_package(error) or _impossible_path(error):
            _tell(RequestError([problem]), "--json" in words)
            return RequestError.exit_status
        if isinstance(error, OSError) and error.errno in _DISK:
            screen.say(f"Cannot write {error.filename or 'the output'}: {error.strerror}.")
            _discard_output()
            return 1
        screen.say(f"Unexpected {type(error).__name__}: {error}. Run again with --debug for the details.")
        return 1


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)
"""Error numbers of a full disk."""


def _open_standard_streams() -> None:
    """Connect stdin, stdout and stderr to the null device if they are closed; otherwise the next file that is opened
    would get the number of one of them, and receive the output.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _discard_output() -> None:
    """Discard the output that is not yet written, also at the end of this process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _missing_package(error: Exception) -> Problem | None:
    """The problem of a package that is not installed; None for any other error."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if name in ("", "swift_toolkit"):
        return None
    return Problem(f"{name} is not installed", packages.install(name))


def _is_nowhere() -> bool:
    """Whether the current directory has been removed."""
    try:
        Path.cwd()
    except OSError:
        return True
    return False


def _impossible_path(error: Exception) -> Problem | None:
    """The problem of a path or string that the operating system rejects; None for any other error."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        name = str(error.filename)
        return Problem(f'"{name[:40]}..." is too long for the name of a file', "Check the path.")
    if isinstance(error, FileNotFoundError) and error.filename is None and _is_nowhere():
        return Problem("the current directory no longer exists", "Change to another one.")
    if isinstance(error, UnicodeEncodeError):
        return Problem(
            "an argument contains characters that are not valid text (a lone surrogate)",
            "Remove them.",
        )
    if isinstance(error, ValueError) and "null" in str(error) and "embedded" in str(error):
        return Problem("a path contains a NUL character", "Remove it.")
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return Problem(
            "a path starts with ~ and the name of a user who does not exist", "Write the full path."
        )
    return None


def debugging(words: Sequence[str] = ()) -> bool:
    """Whether the user requested tracebacks, with ``--debug`` or SWIFT_DEBUG=1."""
    return "--debug" in words or os.environ.get("SWIFT_DEBUG", "") not in ("", "0", "false")


def _tell(error: ToolkitError, as_json: bool) -> None:
    problems = error.problems if isinstance(error, RequestError) else []
    if as_json:
        fields = [asdict(problem) for problem in problems] or [{"what": str(error)}]
        found = [
            {name: masked(value) if isinstance(value, str) else value for name, value in one.items()}
            for one in fields
        ]
        text = json.dumps({"problems": found}, ensure_ascii=False)
        try:
            print(text.encode("utf-8", "replace").decode(), flush=True)
        except OSError:  # stdout is closed, or the disk is full; stderr has the error
            _discard_output()
    if problems:
        screen.print_problems(problems)
    else:
        screen.say(str(error))
