"""The errors of the toolkit and the problems they report to the user.

ToolkitError                base class: the command ends
├── RequestError            the request is wrong: config, data, model, arguments (exit status 2)
└── RunError                the request was fine, the run failed (exit status 1)

A RequestError carries every problem found, so that the user can fix them all at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, where it is and how to fix it.

    Printed as ``<file>:<line>: "<key>" <what>. <do>`` with the parts that are known.

    Args:
        what: what is wrong, without a full stop, e.g. ``is not a setting``.
        do: what the user can do, one or more whole sentences; may be empty.
        key: the setting it is about; for a setting from the command line ``--name``.
        file: the file it is in, as the user spelled it.
        line: line in that file, counted from 1.
    """

    what: str
    do: str = ""
    key: str | None = None
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        where = ""
        if self.file is not None:
            where = f"{self.file}:{self.line}: " if self.line is not None else f"{self.file}: "
        subject = f'"{self.key}" ' if self.key is not None else ""
        text = f"{where}{subject}{self.what}." + (f" {self.do}" if self.do else "")
        return text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate cannot be printed


def first_line(error: object) -> str:
    """The first line of an error's message, or the name of its type if the message is empty."""
    lines = str(error).strip().splitlines() or ["" if isinstance(error, str) else type(error).__name__]
    return lines[0].rstrip()


class ToolkitError(Exception):
    """Base of every error this project raises on purpose."""

    exit_status = 1


class RequestError(ToolkitError):
    """The request cannot be carried out as it stands.

    Args:
        problems: every problem found, at least one.
    """

    exit_status = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class RunError(ToolkitError):
    """A valid request whose run failed."""
