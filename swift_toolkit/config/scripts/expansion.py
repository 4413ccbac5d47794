"""What a shell makes of ``${name...}``, ``{a,b}`` and ``*.jsonl``.

Nothing is run.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

_BRACES = re.compile(r"\{(?P<items>[^{}\s]*,[^{}\s]*|(?P<first>-?\d+)\.\.(?P<last>-?\d+))\}")
_PATTERN = re.compile(r"(?<!\\)[*?\[]")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "e": "\x1b"}
_MOST = 1000
"""Words that one word in braces becomes at most; more is hardly meant."""


def expanded(value: str | None, how: str) -> str | None:
    """The value of ``${name<how>}``; None if it cannot be determined.

    Args:
        value: the value of the variable; None if it is not known.
        how: what follows the name, e.g. ``:-default``, ``%/``, ``##*/`` or ``//a/b``.
    """
    if found := re.fullmatch(r":?([-=+?])(.*)", how, re.DOTALL):
        return _or_instead(value, found[1], found[2])
    if value is None:
        return None
    if found := re.fullmatch(r"(##?|%%?)(.*)", how, re.DOTALL):
        return _trimmed(value, found[1], found[2])
    if found := re.fullmatch(r"/(/?)((?:\\.|[^/\\])+)(?:/(.*))?", how, re.DOTALL):
        pattern = _glob_pattern(re.sub(r"\\(.)", r"\1", found[2]))
        return re.sub(pattern, lambda _: found[3] or "", value, count=0 if found[1] else 1)
    if found := re.fullmatch(r":(\d+)(?::(\d+))?", how):
        start = int(found[1])
        return value[start : None if found[2] is None else start + int(found[2])]
    if how in ("^", ","):
        return (value[:1].upper() if how == "^" else value[:1].lower()) + value[1:]
    return {"^^": value.upper(), ",,": value.lower(), "": value}.get(how)


def _or_instead(value: str | None, sign: str, other: str) -> str | None:
    """The value or ``other``, as ``-``, ``=``, ``?`` and ``+`` choose between them."""
    if sign == "+":
        return other if value else ""
    return value or (None if sign == "?" else other)


def _trimmed(value: str, sign: str, pattern: str) -> str:
    """The value without the shortest or longest part that matches, at its start (``#``) or end (``%``)."""
    lengths = range(len(value) + 1) if len(sign) == 1 else range(len(value), -1, -1)
    matches = re.compile(_glob_pattern(pattern) + r"\Z", re.DOTALL).match
    for length in lengths:
        part = value[:length] if sign[0] == "#" else value[len(value) - length :]
        if matches(part):
            return value[length:] if sign[0] == "#" else value[: len(value) - length]
    return value


@cache
def _glob_pattern(pattern: str) -> str:
    return fnmatch.translate(pattern).removesuffix(r"\Z").removesuffix(r"\z")


def words_of(word: str) -> Iterator[str]:
    """The words that ``{a,b}`` and ``{1..3}`` in an unquoted word stand for, and the files that its ``*`` matches."""
    for one in _without_braces(word):
        yield from _files(one) if _PATTERN.search(one) else [one]


def _files(pattern: str) -> list[str]:
    """The files that a pattern matches; the pattern itself if it matches none."""
    path = at_home(re.sub(r"\*+", "*", pattern))
    root = Path(path.anchor)
    try:
        return sorted(map(str, root.glob(str(path.relative_to(root))))) or [pattern]
    except (OSError, ValueError, IndexError, NotImplementedError):  # not a pattern of a path
        return [pattern]


def at_home(path: str) -> Path:
    """The path with ``~`` replaced; unchanged if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _without_braces(word: str) -> list[str]:
    done: list[str] = []
    left = [word]
    while left and len(done) < _MOST:
        one = left.pop(0)
        found = _BRACES.search(one)
        if not found or one[: found.start()].endswith("$"):
            done.append(one)
            continue
        items = (
            found["items"].split(",") if found["first"] is None else _numbers(found["first"], found["last"])
        )
        left[:0] = [one[: found.start()] + item + one[found.end() :] for item in items]
    return done


def _numbers(first: str, last: str) -> Sequence[str]:
    low, high = int(first), int(last)
    step = 1 if low <= high else -1
    return [str(number) for number in range(low, high + step, step)[:_MOST]]


def unescaped(text: str) -> str:
    """The text of ``$'...'``."""
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), text, flags=re.DOTALL)
