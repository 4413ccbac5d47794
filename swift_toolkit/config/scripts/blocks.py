"""Parts of a shell script that span lines: texts after ``<<EOF``, functions, and what a terminal shows around commands.

Each is taken out of the script, whose other lines keep their numbers.
"""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

_HEREDOC = re.compile(r"(?<![<\d])<<-?[ \t]*(?P<quote>['\"\\]?)(?P<mark>[A-Za-z_]\w*)(?P=quote)?")
_RUNS_TEXT = re.compile(
    r"(?:^|[\s;&|/])(?:ba|z|da)?sh(?=\s|$)|\b(?:ssh|sbatch|srun|qsub)\b|>\s*\S+\.(?:sh|bash|slurm|sbatch)\b"
)
"""A line whose text is a script: ``bash <<EOF``, ``sbatch <<EOF``, ``cat > run.sh <<EOF``."""
_FUNCTION = re.compile(
    r"^(?P<indent>[ \t]*)(?:function[ \t]+(?P<named>[\w-]+)(?:[ \t]*\([ \t]*\))?|(?P<plain>[\w-]+)[ \t]*\([ \t]*\))"
    r"\s*\{",
    re.MULTILINE,
)
_COUNTING_LOOP = re.compile(r"\bfor[ \t]*\(\([ \t]*(\w+)[^;\n]*;[^;\n]*;[^\n]*?\)\)")
_SUM_ALONE = re.compile(r"(?m)(^|[;&|]|\b(?:then|do|else)\b)([ \t]*)\(\(([^()\n]*)\)\)")
"""``((N = 2 * 4))``, which is ``let "N = 2 * 4"``."""
_AROUND = re.compile(
    r"(?m)^[ \t]*(?:```\w*|%%(?:bash|sh|script.*))[ \t]*\r?$|^[ \t]*!(?=[\w./])|[\u200b\u2060\ufeff]"
)
"""What surrounds a line copied from a page or a notebook: fences, cell marks, ``!``, invisible characters."""
_PROMPT = re.compile(r"\A\s*\$ (?=\S)")
_PROMPTS = re.compile(r"(?m)^[ \t]*(?:\$|>)[ \t](?=[ \t]*\S)")


class Function(NamedTuple):
    """A function of a script.

    Args:
        body: its commands.
        line: the line on which they start, counted from 1.
    """

    body: str
    line: int


def without_surroundings(text: str) -> str:
    """The text without the marks of the page, notebook or terminal that it was copied from."""
    text = _AROUND.sub("", text)
    return _PROMPTS.sub("", text) if _PROMPT.match(text) else text


def without_texts(text: str) -> str:
    """The script without texts after ``<<EOF``, except those that a shell runs, and with loops that count as
    loops over a name."""
    text = _SUM_ALONE.sub(r'\1\2let "\3"', _COUNTING_LOOP.sub(r"for \1 in", text))
    lines = text.split("\n")
    number = 0
    while number < len(lines):
        found = _HEREDOC.search(lines[number])
        end = _end_of(lines, number + 1, found["mark"]) if found else None
        if found and end is not None:
            runs = _RUNS_TEXT.search(lines[number])
            body = lines[number + 1 : end]
            read = _READS_TEXT.search(lines[number]) is not None and bool(body)
            text = f"<<< {_quoted(body, bool(found['quote']))}" if read else ""
            lines[number] = lines[number][: found.start()] + text + lines[number][found.end() :]
            blank = ["", ""] if read else [""] * (end - number)
            lines[number + 1 : end + 1] = [*body, ""] if runs else blank
            number = number if runs else number + len(blank)
        number += 1
    return "\n".join(lines)


_READS_TEXT = re.compile(r"(?:^|[;&|])\s*(?:\w+=\S*\s+)?read\s")


def _quoted(lines: list[str], literally: bool) -> str:
    """Lines as one word of a shell."""
    text = "\n".join(lines)
    return shlex.quote(text) if literally else '"' + text.replace('"', '\\"') + '"'


def _end_of(lines: list[str], start: int, mark: str) -> int | None:
    """The number of the line that ends a text."""
    return next((number for number in range(start, len(lines)) if lines[number].strip() == mark), None)


def functions_of(text: str) -> tuple[str, dict[str, Function]]:
    """The script without its functions, and these by name."""
    found: dict[str, Function] = {}
    start = 0
    while head := _FUNCTION.search(text, start):
        line_end = text.find("\n", head.end())
        rest = text[head.end() : line_end if line_end >= 0 else None].rstrip()
        if rest.endswith("}"):
            body_end, end = head.end() + len(rest) - 1, head.end() + len(rest)
        elif closing := re.compile(rf"^{head['indent']}\}}", re.MULTILINE).search(text, head.end()):
            body_end, end = closing.span()
        else:
            start = head.end()
            continue
        name, body = head["named"] or head["plain"], text[head.end() : body_end]
        found[name] = Function(body, text.count("\n", 0, head.end()) + 1)
        text = text[: head.start()] + "\n" * text.count("\n", head.start(), end) + text[end:]
        start = head.start()
    return text, found
